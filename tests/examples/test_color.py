"""``--color``: what differs in hue alone is learned, predicted, measured and transferred; without it, all is gray."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from examples.config import Config
from examples.data import check, load
from examples.data.augment import COLOR, OPERATIONS, PHOTOMETRIC, StrongAugmentation, WeakAugmentation
from examples.data.files import is_colored, read_values
from examples.engine.loop import train
from examples.inference.evaluation import Evaluate, measure
from examples.inference.inputs import find_inputs, read
from examples.inference.prediction import Predict, predict
from examples.inference.trained import read_trained
from examples.inference.transfer import Transfer, transfer
from examples.logging.pictures import tinted
from examples.models import build_network
from tests.examples.files import save_image
from tests.examples.tiny import shrink, small

SIDE = 32
GRAY, RED = (103, 103, 103), (220, 51, 65)  # the same gray to Pillow, 103 of 255


def disc(number: int) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    return (y - 8 - 5 * number % 17) ** 2 + (x - 8 - 7 * number % 17) ** 2 < 60


def draw(number: int) -> np.ndarray:
    """A red disc anywhere on gray, with a bright and a dark stripe so that gray values have a range."""
    image = np.full((SIDE, SIDE, 3), GRAY, np.uint8)
    image[disc(number)] = RED
    image[:2], image[-2:] = 255, 0
    return image


@pytest.fixture
def root(tmp_path) -> Path:
    for number in range(12):
        save_image(tmp_path / "data" / "images" / f"{number:02d}.png", draw(number))
        save_image(tmp_path / "data" / "masks" / f"{number:02d}.png", disc(number).astype(np.uint8))
    return tmp_path / "data"


@pytest.fixture
def tiny(root, tmp_path, monkeypatch):
    shrink(monkeypatch.setattr)

    def config(**changes: object) -> Config:
        options = {"method": "supervised", "out": tmp_path / "run", "color": True, "iterations": 4, "eval_every": 2}
        return small("folder", root=root, **{"device": "cpu", **options, **changes})

    return config


def test_the_drawn_classes_differ_in_hue_alone():
    assert len(np.unique(np.array(Image.fromarray(draw(0)).convert("L"))[2:-2])) == 1


# --- images


def test_colors_are_kept_in_their_order_and_scaled_together(tiny):
    data = load(tiny())
    image = data.labeled.images[0]
    assert image.shape == (3, SIDE, SIDE)
    drawn = torch.from_numpy(draw(int(data.labeled.names[0]))).movedim(-1, 0)
    torch.testing.assert_close(image, drawn / 127.5 - 1)
    assert load(tiny(color=False)).labeled.images.shape[1] == 1


def test_padding_is_of_one_value_in_all_channels(tiny, root):
    for folder in ("images", "masks"):
        path = root / folder / "00.png"
        Image.open(path).crop((0, 0, SIDE, SIDE // 2)).save(path)
    (root / "splits.json").write_text('{"labeled": ["00", "01", "02"], "validation": ["03"], "test": ["04"]}')
    images = load(tiny()).labeled
    image = images.images[images.names.index("00")]
    assert (image[:, : SIDE // 4] == image.min()).all()


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "L", "I;16", "1", "LA"])
def test_any_kind_of_image_is_read_in_color(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image = Image.fromarray(draw(0))
    if mode == "I;16":
        image = Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 200)
    else:
        image = image.convert(mode)
    image.save(path)
    values = read_values(path, channels=3)
    assert values.dtype == np.float32
    assert values.shape == (3, SIDE, SIDE)
    is_gray = mode in ("L", "I;16", "1", "LA")
    assert is_gray == (values == values[:1]).all()
    assert is_gray != is_colored(Image.open(path))
    if is_gray:  # a gray image is the same in color, at its own depth
        assert np.array_equal(values[:1], read_values(path))
    else:
        assert np.array_equal(values, np.moveaxis(np.array(image.convert("RGB")), -1, 0))


def test_what_is_gray_after_compression_is_not_called_colored(tmp_path):
    gray = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8))
    gray.convert("RGB").save(tmp_path / "gray.jpg")
    assert not is_colored(Image.open(tmp_path / "gray.jpg"))


def test_other_data_sets_refuse_it():
    message = "color: got True, expected it for a folder alone: the images of jsrt are gray"
    with pytest.raises(ValueError, match=message):
        Config("jsrt", color=True)


def test_check_says_how_many_are_in_color_and_draws_them(root, tmp_path, capsys):
    Image.fromarray(draw(3)).convert("L").save(root / "images" / "03.png")
    assert check.report(check.Check("folder", root, out=tmp_path / "sheet.png"))
    assert "note: 11 images are in color: --color keeps it; without that, it becomes gray" in capsys.readouterr().out
    drawn = np.array(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    assert ((drawn[..., 0] - drawn[..., 1]) > 40).any()


# --- augmentation


def test_augmentation_keeps_channels_apart():
    images = torch.tensor([0.5, -0.2, -0.8]).view(1, 3, 1, 1).expand(2, 3, SIDE, SIDE)
    labels = torch.zeros(2, SIDE, SIDE, dtype=torch.int64)
    for seed in range(20):
        view = WeakAugmentation((), torch.Generator().manual_seed(seed))(images, labels)
        means = view.images[:, :, SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4].mean((2, 3))
        assert (means[:, 0] > means[:, 1]).all()
        assert (means[:, 1] > means[:, 2]).all()
        assert view.valid.any()
        assert (view.labels[view.valid] == 0).all()
        assert StrongAugmentation(torch.Generator().manual_seed(seed))(view.images).images.shape == images.shape


def test_images_in_color_have_an_operation_more(monkeypatch):
    strong = StrongAugmentation(torch.Generator().manual_seed(0))
    seen = []
    monkeypatch.setattr(strong, "draw", lambda choices: seen.append(choices) or choices - 1)
    image = torch.tensor([0.8, 0.0, -0.8]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    colored, _ = strong.rand_augment(image)
    assert seen[0] == len(OPERATIONS) + 1
    assert not torch.equal(colored, image)
    strong.rand_augment(image[:, :1])
    assert seen[8] == len(OPERATIONS)


def test_less_color_is_nearer_to_gray():
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    spread = [float(COLOR["Color"](image, v).std(1).mean()) for v in (1, 5, 9)]
    assert spread == sorted(spread)
    assert spread[0] < 0.2 * float(image.std(1).mean())
    stretched = PHOTOMETRIC["AutoContrast"](image / 2, 1)
    assert torch.equal(stretched.amax((2, 3)), torch.ones(1, 3))


# --- networks and runs


@pytest.mark.parametrize("method", ["rpg_plus", "mlds", "iic"])
def test_networks_are_trained_on_three_channels(method, tiny, tmp_path):
    train(tiny(method=method))
    trained = read_trained(tmp_path / "run", "cpu")
    assert trained.config.color
    assert trained.net()(torch.zeros(1, 3, SIDE, SIDE))[0].shape == (1, 2, SIDE, SIDE)


def test_networks_of_yours_get_three_channels(tiny):
    net = build_network(tiny(network="tests.examples.test_models:plain"), 2)
    assert net(torch.zeros(1, 3, SIDE, SIDE))[0].shape == (1, 2, SIDE, SIDE)


def test_a_run_in_color_learns_what_gray_cannot_show(tiny, tmp_path):
    """And predict, evaluate and pictures see the same colors as the training did."""
    options = {"iterations": 60, "eval_every": 60, "learning_rate": 1e-2, "base_channels": 4}
    colored = train(tiny(out=tmp_path / "colored", **options))["miou_pooled"]
    gray = train(tiny(out=tmp_path / "gray", color=False, **options))["miou_pooled"]
    assert colored > 0.8
    assert gray < 0.3
    measured = measure(Evaluate(tmp_path / "colored", device="cpu"))
    assert float(measured.measures.pooled().nanmean()) == pytest.approx(colored, abs=1e-6)


# --- use


def test_images_are_prepared_as_in_training(tiny, root):
    config = tiny()
    data = load(config)
    for name, image in zip(data.unlabeled.names, data.unlabeled.images, strict=True):
        (plane,) = read(find_inputs([root / "images" / f"{name}.png"])[0], config).planes
        assert torch.equal(plane.square, image)
        assert plane.image.shape == (3, SIDE, SIDE)


def test_gray_and_color_are_brought_to_what_the_network_was_trained_on(tiny, root, tmp_path):
    config = tiny()
    gray = tmp_path / "gray.png"
    Image.fromarray(draw(0)).convert("L").save(gray)
    (plane,) = read(find_inputs([gray])[0], config).planes
    assert torch.equal(plane.square, plane.square[:1].expand(3, -1, -1))
    (expected,) = read(find_inputs([gray])[0], replace(config, color=False)).planes
    assert torch.equal(plane.square[:1], expected.square)
    (plane,) = read(find_inputs([root / "images" / "00.png"])[0], replace(config, color=False)).planes
    assert plane.square.shape == (1, SIDE, SIDE)


def test_predictions_of_a_run_in_color_with_overlays_in_color(tiny, root, tmp_path):
    train(tiny())
    read_images, faults = predict(
        Predict(tmp_path / "run", (root / "images",), tmp_path / "predicted", overlays=True, device="cpu")
    )
    assert (read_images, faults) == (12, [])
    overlay = np.array(Image.open(tmp_path / "predicted" / "overlays" / "00.png")).astype(int)
    assert ((overlay[..., 0] - overlay[..., 2]) > 60).any()


class Hue(nn.Module):
    """Encodes a pixel by how red it is, as an angle."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        angle = (images[:, :1] - images[:, -1:]) * math.pi / 2
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def test_transfer_by_hue(root, tmp_path):
    miou = {}
    for color in (True, False):
        options = Transfer(
            "folder", tmp_path / f"proposals-{color}", root=root, references=("00", "01", "02"), color=color,
            encoder="tests.examples.test_color:Hue", positions=0, device="cpu",
        )  # fmt: skip
        result, faults = transfer(options)
        assert faults == []
        miou[color] = result["miou_pooled"]
    assert miou[True] > 0.8
    assert miou[False] < 0.5
    strip = np.array(Image.open(tmp_path / "proposals-True" / "strips" / "05.jpg")).astype(int)
    assert ((strip[:, : strip.shape[1] // 3, 0] - strip[:, : strip.shape[1] // 3, 1]) > 60).any()


def test_tinted_keeps_colors():
    image = torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1).expand(3, 2, 2)
    assert tinted(image)[0, 0].tolist() == [1, 0, 0.5]
    assert tinted(image[:1])[0, 0].tolist() == [1, 1, 1]
