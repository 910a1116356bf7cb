"""Labels by the nearest references: in the images' own size, scored by hand, and a data set to go on from."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import examples.inference.transfer as inference
from examples import transfer
from examples.config import Config
from examples.data import ImageSet, check, load
from examples.data.base import IGNORE_INDEX
from examples.engine.loop import train
from examples.inference import transfer_votes
from examples.inference.transfer import Transfer
from examples.inference.transfer_features import build_features
from rpg_loss import FrozenFeatures
from tests.examples.files import read_json, save_image
from tests.examples.tiny import shrink

TOY = "tests.examples.test_transfer:brightness"
SIZES = [(40, 40), (48, 40), (36, 52), (40, 40), (31, 47), (64, 64), (40, 44), (52, 52)]  # height, width
ANNOTATED = 3
LEVELS = {"disk": 230, "square": 30}  # on 128


class Brightness(nn.Module):
    """Encodes a pixel by its gray value, as an angle."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        angle = images[:, :1] * math.pi / 2
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def brightness() -> nn.Module:
    return Brightness()


def draw(number: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """An image with a bright disk and a dark square, and where they are."""
    height, width = SIZES[number]
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width]
    cy, cx = height * rng.uniform(0.3, 0.4), width * rng.uniform(0.3, 0.4)
    disk = (y - cy) ** 2 + (x - cx) ** 2 < (0.2 * min(height, width)) ** 2
    square = (abs(y - 0.75 * height) < 0.15 * height) & (abs(x - rng.uniform(0.7, 0.8) * width) < 0.15 * width)
    image = 128 + rng.normal(0, 3, (height, width))
    for name, where in (("disk", disk), ("square", square)):
        image[where] = LEVELS[name]
    image[0, 0], image[-1, -1] = 0, 255  # images are scaled between their extremes
    return image.clip(0, 255).astype(np.uint8), {"disk": disk, "square": square}


def write_folder(root: Path, *, exclusive: bool, annotated: int = ANNOTATED, images: int = len(SIZES)) -> Path:
    for number in range(images):
        image, masks = draw(number)
        save_image(root / "images" / f"scan{number}.png", image)
        if number < annotated:
            write_masks(root, f"scan{number}", masks, exclusive=exclusive)
    if exclusive:
        (root / "classes.txt").write_text("disk\nsquare\n")
    return root


def write_masks(root: Path, name: str, masks: dict[str, np.ndarray], *, exclusive: bool) -> None:
    written = {f"{label}/{name}.png": 255 * mask.astype(np.uint8) for label, mask in masks.items()}
    if exclusive:
        written = {f"{name}.png": masks["disk"] + 2 * masks["square"].astype(np.uint8)}
    for file, values in written.items():
        save_image(root / "masks" / file, values)


def read_masks(root: Path, name: str, *, exclusive: bool) -> dict[str, np.ndarray]:
    if exclusive:
        ids = np.array(Image.open(root / "masks" / f"{name}.png"))
        return {label: ids == c for c, label in enumerate(LEVELS, 1)}
    return {label: np.array(Image.open(root / "masks" / label / f"{name}.png")) > 0 for label in LEVELS}


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(inference, "IMAGE_SIZE", 64)
    monkeypatch.setattr(inference, "GRID", 32)


@pytest.fixture(params=["exclusive", "overlapping"])
def exclusive(request) -> bool:
    return request.param == "exclusive"


def run(root: Path | None, out: Path, dataset: str = "folder", **changes) -> dict:
    options = Transfer(dataset, out, root, **{"encoder": TOY, "positions": 0.5, "k": 5, **changes})
    result, faults = inference.transfer(options)
    assert faults == []
    return result


# --- what is written


def test_masks_weights_and_overlays_are_of_every_unlabeled_image_in_its_own_size(exclusive, tmp_path):
    root, out = write_folder(tmp_path / "data", exclusive=exclusive), tmp_path / "out"
    result = run(root, out)
    assert (result["images"], result["labeled"], result["scored"], result["miou"]) == (5, 3, 0, None)
    for number in range(ANNOTATED, len(SIZES)):
        for label, mask in read_masks(out, f"scan{number}", exclusive=exclusive).items():
            assert mask.shape == SIZES[number]
            assert iou(mask, draw(number)[1][label]) > 0.8, (number, label)
        weights = np.array(Image.open(out / "weights" / f"scan{number}.png"))
        assert (weights.shape, weights.dtype) == (SIZES[number], np.uint8)
        assert weights.max() > 128
        assert (out / "overlays" / f"scan{number}.jpg").is_file()


def test_masks_are_finer_than_the_grid(tmp_path, monkeypatch):
    """A border that is slanted runs through cells: masks of whole cells could only be as wide as these."""
    monkeypatch.setattr(inference, "GRID", 8)
    root, out = write_folder(tmp_path / "data", exclusive=False), tmp_path / "out"
    run(root, out)
    disk = read_masks(out, "scan5", exclusive=False)["disk"]  # 64 x 64: cells of 8
    changes = np.flatnonzero(np.diff(disk.astype(int), axis=0).any(1)) + 1
    assert (changes % 8 != 0).any()


def test_the_output_is_a_data_set_that_is_checked_and_trained_on(exclusive, tmp_path, monkeypatch, capsys):
    root, out = write_folder(tmp_path / "data", exclusive=exclusive), tmp_path / "out"
    run(root, out)
    assert check.report(check.Check("folder", out))
    assert "error" not in capsys.readouterr().out
    for number in range(ANNOTATED):  # the references' masks are those of the annotator
        for label, mask in read_masks(out, f"scan{number}", exclusive=exclusive).items():
            assert (mask == draw(number)[1][label]).all()
        copy = out / "images" / f"scan{number}.png"
        assert copy.read_bytes() == (root / "images" / copy.name).read_bytes()
    shrink(monkeypatch.setattr)
    options = {"image_size": 32, "base_channels": 2, "map_size": 8, "k": 0.5, "iterations": 3, "labeled": 3}
    trained = train(Config("folder", root=out, out=tmp_path / "run", **options))
    assert trained["data"].startswith("8 images (8 labeled)")
    assert math.isfinite(trained["miou"])


def test_the_page_shows_the_least_certain_first_and_names_what_to_label_next(tmp_path):
    root, out = write_folder(tmp_path / "data", exclusive=False), tmp_path / "out"
    strange = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(strange).save(root / "images" / "noise & <b>#1.png")
    run(root, out, positions=2.0)
    rows = list(csv.DictReader((out / "label_next.csv").open()))
    explained = [float(row["explained"]) for row in rows]
    assert explained == sorted(explained)
    assert rows[0]["image"] == "noise & <b>#1"  # like nothing that is labeled
    page = (out / "transfer.html").read_text()
    assert "<b>#1" not in page
    first, second = page.split("All images")
    shown = {part: [word.split(".jpg")[0] for word in part.split('src="strips/')[1:]] for part in (first, second)}
    assert shown[first][0] == "noise%20%26%20%3Cb%3E%231"
    by_certainty = [row["image"] for row in sorted(rows, key=lambda row: float(row["certainty"]))]
    assert [name.replace("noise%20%26%20%3Cb%3E%231", "noise & <b>#1") for name in shown[second]] == by_certainty
    assert all((out / "strips" / f"{row['image']}.jpg").is_file() for row in rows)


# --- scores


def test_scores_are_those_of_the_masks_on_the_test_images(exclusive, tmp_path):
    root, out = write_folder(tmp_path / "data", exclusive=exclusive, annotated=8), tmp_path / "out"
    result = run(root, out, labeled=3, split=1)
    division = load(Config("folder", root=root, labeled=3, split=1, image_size=64, map_size=8))
    assert set(result["references"]) == set(division.labeled.names)
    assert (result["labeled"], result["scored"], result["images"]) == (3, len(division.test), 5)
    pairs = {label: [] for label in LEVELS}
    for name in division.test.names:
        truth = draw(int(name.removeprefix("scan")))[1]
        for label, mask in read_masks(out, name, exclusive=exclusive).items():
            pairs[label].append((mask, truth[label]))
    by_hand = {label: np.mean([iou(*pair) for pair in of_label]) for label, of_label in pairs.items()}
    pooled = {
        label: sum((a & b).sum() for a, b in of_label) / sum((a | b).sum() for a, b in of_label)
        for label, of_label in pairs.items()
    }
    assert result["iou_per_class"] == pytest.approx(by_hand)
    assert result["miou"] == pytest.approx(np.mean(list(by_hand.values())))
    assert result["miou_pooled"] == pytest.approx(np.mean(list(pooled.values())))
    written = read_json(out / "transfer.json")
    assert written.items() >= {"dataset": "folder", "split": 1, "encoder": TOY, "k": 5, "state": "finished"}.items()
    assert written["seconds"] > 0


def test_a_class_that_is_nowhere_has_no_score(tmp_path):
    root, out = write_folder(tmp_path / "data", exclusive=True, annotated=4), tmp_path / "out"
    (root / "classes.txt").write_text("disk\nsquare\nring\n")
    result = run(root, out, references=("scan0", "scan1", "scan2"))
    assert result["iou_per_class"]["ring"] is None
    assert result["miou"] == pytest.approx((result["iou_per_class"]["disk"] + result["iou_per_class"]["square"]) / 2)
    assert "NaN" not in (out / "transfer.json").read_text()
    assert "<td>ring</td><td>\u2013</td>" in (out / "transfer.html").read_text()


def test_references_are_those_named_and_the_other_annotated_images_are_scored(tmp_path):
    root, out = write_folder(tmp_path / "data", exclusive=False, annotated=5), tmp_path / "out"
    result = run(root, out, references=("scan4", "scan1"))
    assert (result["references"], result["scored"], result["images"]) == (["scan4", "scan1"], 3, 6)
    assert not any(math.isnan(value) for value in result["iou_per_class"].values())


def test_classes_that_no_reference_shows_are_named(tmp_path, capsys):
    root = write_folder(tmp_path / "data", exclusive=True, annotated=5)
    for name in ("scan1", "scan4"):
        path = root / "masks" / f"{name}.png"
        save_image(path, np.minimum(np.array(Image.open(path)), 1))
    run(root, tmp_path / "all")
    assert "no reference" not in capsys.readouterr().err
    run(root, tmp_path / "out", references=("scan4", "scan1"))
    assert "note: no reference shows square, so that nothing is labeled so; name one" in capsys.readouterr().err


def test_the_test_images_alone_are_labeled_where_only_scores_are_wanted(tmp_path):
    root, out = write_folder(tmp_path / "data", exclusive=True, annotated=8), tmp_path / "out"
    whole = run(root, tmp_path / "whole", labeled=3)
    result = run(root, out, labeled=3, test_only=True)
    assert result["images"] == result["scored"] == whole["scored"]
    assert result["iou_per_class"] == whole["iou_per_class"]
    with pytest.raises(ValueError, match="test_only: there are no test images"):
        run(write_folder(tmp_path / "few", exclusive=True), tmp_path / "none", test_only=True)


def test_drawn_data_are_labeled_as_examples_train_divides_them(tmp_path, monkeypatch):
    shrink(monkeypatch.setattr)
    result = run(None, tmp_path / "out", "phantom", labeled=2, positions=2.0)
    data = load(Config("phantom", labeled=2, image_size=64, map_size=8))
    assert set(result["references"]) == set(data.labeled.names)
    assert result["scored"] == len(data.test)
    assert result["iou_per_class"]["right_lung"] > 0.5
    assert (tmp_path / "out" / "masks" / "heart" / f"{data.test.names[0]}.png").is_file()


# --- how it is computed


@pytest.fixture
def cells() -> transfer_votes.Cells:
    features = torch.nn.functional.normalize(torch.randn(60, 6), dim=1)
    return transfer_votes.Cells(features, torch.rand(60, 3), torch.arange(2).repeat_interleave(30), k=4)


def test_votes_are_the_softmax_of_the_k_highest_cosines(cells):
    query = torch.randn(6)
    shares, nearest = cells.vote(query[None])
    cosines, order = (cells.features @ query / query.norm()).sort(descending=True)
    weights = (cosines[:4] / transfer_votes.TEMPERATURE).exp()
    assert torch.allclose(shares[0], (weights @ cells.shares[order[:4]]) / weights.sum(), atol=1e-5)
    assert nearest[0] == pytest.approx(float(cosines[0]), abs=1e-5)


def test_memory_is_bounded_and_blocks_change_nothing(cells, monkeypatch):
    queries = torch.randn(50, 6)
    at_once = cells.vote(queries)
    seen = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda block, k: (seen.append(block.numel()), topk(block, k))[1])
    for entries, most in ((1, 60), (7 * 60, 7 * 60)):
        monkeypatch.setattr(transfer_votes, "BLOCK", entries)
        for one, other in zip(at_once, cells.vote(queries), strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        assert max(seen) == most
        seen.clear()


def test_cells_are_labeled_on_the_fine_grid_unless_the_coarse_one_is_sure():
    """Only near the border between two labels are coarse votes not sure."""
    half = torch.zeros(1, 8, 8)
    half[:, :, 4:] = 1
    coarse = transfer_votes.Cells(torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2).long(), k=1)
    features = torch.cat([1 - half, half])
    full = transfer_votes.with_context(features, transfer_votes.halved(features), multilabel=False)
    fine = transfer_votes.Cells(
        torch.nn.functional.normalize(full.flatten(1).T, dim=1), torch.full((64, 2), 0.25), torch.zeros(64).long(), k=1
    )
    maps = transfer_votes.halved(full)[None]
    references = transfer_votes.References(coarse, fine, maps, maps[:, :2].argmax(1), 0.4)
    shares = references.label(features).shares
    assert (shares[:, :, 2:6] == 0.25).all()  # within a coarse cell of the border
    assert (shares[0, :, :2] == 1).all()
    assert (shares[1, :, 6:] == 1).all()


@pytest.mark.parametrize("cut", transfer_votes.CUTS)
def test_a_label_is_there_from_the_cut_on(cut):
    """Where labels exclude each other, of what it and background have."""
    share = torch.rand(1, 1, 9, 9)
    either = transfer_votes.decided(torch.cat([1 - share, share], dim=1), cut, multilabel=False)
    assert torch.equal(either.argmax(1, keepdim=True) == 1, share > cut)
    three = transfer_votes.decided(torch.tensor([0.5, 0.2, 0.3])[None, :, None, None] * share, cut, multilabel=False)
    assert (three.argmax(1) == (2 if cut < 0.3 / 0.8 else 0)).all()
    assert torch.equal(transfer_votes.decided(share, cut, multilabel=True) > 0, share > cut)


@pytest.mark.parametrize(("share", "found"), [(0.18, 0.15), (0.28, 0.25), (0.9, 0.4), (0.12, 0.4)])
def test_the_cut_is_the_one_that_finds_the_references_best(share, found, monkeypatch):
    """The first where several do, or where none finds anything, or no more than chance would."""
    truth, known = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    truth[:, 2:4], known[:, :6] = True, True
    label = torch.where(truth, share, 0.05)
    label[:, 5] = share - 0.06  # no label, and nearly as likely
    label[:, 6:], truth[:, 6:] = 0.42, True  # where nothing is known
    either, truth = torch.stack([1 - label, label], dim=1), truth[:, None]
    assert transfer_votes.best_cut(either, truth, known, multilabel=False) == found
    assert transfer_votes.best_cut(label[:, None], truth, known, multilabel=True) == found
    monkeypatch.setattr(transfer_votes, "CLEARLY", 1.0)
    assert transfer_votes.best_cut(either, truth, known, multilabel=False) == transfer_votes.CUTS[0]


def test_references_choose_the_cut_by_each_other(monkeypatch):
    """None of its own cells votes for an image; alone it has no one to be labeled by."""
    voted = []
    refined = transfer_votes.refined
    monkeypatch.setattr(
        transfer_votes, "refined", lambda *of: (voted.append(set(of[2].images.tolist())), refined(*of))[1]
    )
    monkeypatch.setattr(transfer_votes, "best_cut", lambda *of, **kind: 0.15)
    labels = (torch.rand(2, 32, 32) > 0.5).long()
    features = FrozenFeatures(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1)), ["0"], size=8)
    for count, cut in ((2, 0.15), (1, 0.4)):
        images = ImageSet(torch.rand(count, 1, 32, 32) * 2 - 1, labels[:count], ("a", "b")[:count])
        assert transfer_votes.encode_references(images, features, (), 1, k=3).cut == cut
    assert voted == [{1}, {0}]


def test_references_of_which_one_is_unlabeled_have_a_cut():
    labels = torch.full((2, 32, 32), IGNORE_INDEX)
    labels[0, :16], labels[0, 16:] = 0, 1
    features = FrozenFeatures(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1)), ["0"], size=8)
    images = ImageSet(torch.rand(2, 1, 32, 32), labels, ("a", "b"))
    assert transfer_votes.encode_references(images, features, (), 1, k=3).cut in transfer_votes.CUTS


def test_the_context_is_the_votes_around():
    votes = torch.zeros(1, 16, 16)
    votes[:, 8:10, 8:10] = 1
    full = transfer_votes.with_context(torch.zeros(3, 32, 32), votes, multilabel=True)
    context = full[3:].view(9, 2, 32, 32)
    assert torch.allclose(context.flatten(0, 1).norm(dim=0), torch.ones(32, 32), atol=1e-5)
    assert context[0, 0, 17, 17] > 0.1  # the label, there
    assert context[:, 0, 1, 1].sum() == 0
    seen = {tuple(place) for place in (context[1:, 0] > 0.1).nonzero()[:, 1:].tolist()}
    for step in (4, 8):  # an eighth and a quarter of the side
        assert {(17 - step, 17), (17 + step, 17), (17, 17 - step), (17, 17 + step)} <= seen


def test_batches_change_no_file(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "data", exclusive=True)
    run(root, tmp_path / "one")
    monkeypatch.setattr(inference, "BATCH", 1)
    run(root, tmp_path / "other")
    for file in (tmp_path / "one" / "masks").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / "masks" / file.name).read_bytes()


def test_huggingface_models_are_encoders(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        image_size=32, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"encoder: hf:.* cannot be loaded"):
        build_features(f"hf:{tmp_path}", 8, 0.0)
    scale = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "image_processor_type": "BitImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(scale))
    features = build_features(f"hf:{tmp_path}", 8, 0.0)
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    rgb = ((images + 1) / 2).expand(-1, 3, -1, -1)
    scaled = (rgb - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.2, 0.1]).view(3, 1, 1)
    with torch.no_grad():
        tokens = features.encoder.net.model(pixel_values=scaled).last_hidden_state[:, 1:]
    expected = torch.nn.functional.normalize(tokens.transpose(1, 2).unflatten(2, (8, 8)), dim=1)
    assert torch.allclose(features(images), expected, atol=1e-5)


# --- what goes wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--encoder", "resnet"), "encoder: got 'resnet', expected lite0, hf:NAME or module:callable"),
        (("--encoder", "no_such_module:make"), "encoder: no_such_module:make cannot be imported"),
        (("--encoder", "math:sqrt"), "encoder: math:sqrt cannot be called without arguments"),
        (("--encoder", "os:getcwd"), "encoder: os:getcwd returned a str, expected a torch.nn.Module"),
        (("--references", "scan0", "scan7"), "references: 'scan7' is not the name of a labeled image, as scan0, scan1"),
    ],
)
def test_errors_name_the_option(words, message, tmp_path, command):
    root = write_folder(tmp_path / "data", exclusive=False)
    words = words if "--encoder" in words else (*words, "--encoder", TOY)
    status, _, _ = command(transfer.main, "folder", "--root", root, "--out", tmp_path / "out", *words)
    assert str(status).startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: got 0, expected 1 or more"),
        ({"positions": -1.0}, "positions: got -1.0, expected a length of 0 or more"),
        ({"split": 1}, "labeled: got None, expected a number with --split or --group-pattern"),
        ({"labeled": 1, "references": ("scan0",)}, "references: got .* expected none with --labeled"),
    ],
)
def test_options_that_cannot_be_right_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Transfer("folder", Path("out"), **options)


def test_without_any_labeled_image_there_is_an_error(tmp_path):
    root = write_folder(tmp_path / "data", exclusive=True, annotated=0)
    (root / "masks").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no mask; annotate a few images first"):
        run(root, tmp_path / "out")
    shutil.rmtree(root)
    write_folder(root, exclusive=True, annotated=2, images=2)
    with pytest.raises(ValueError, match="all 2 images are references"):
        run(root, tmp_path / "out")


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_labeled(tmp_path, command):
    root, out = write_folder(tmp_path / "data", exclusive=False), tmp_path / "out"
    (root / "images" / "broken.png").write_bytes(b"no image")
    status, text, errors = command(transfer.main, "folder", "--root", root, "--out", out, "--encoder", TOY)
    assert status == 1
    assert "5 images labeled by 3" in text
    assert "broken.png" in errors
    assert not list(out.rglob("broken*"))


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"out: .*file is a file, expected a folder; pass another --out"):
        run(write_folder(tmp_path / "data", exclusive=False), tmp_path / "file")


def test_nothing_is_written_over_unless_asked_for_and_then_all(tmp_path):
    root, out = write_folder(tmp_path / "data", exclusive=False), tmp_path / "out"
    run(root, out)
    with pytest.raises(FileExistsError, match="--overwrite"):
        run(root, out)
    (root / "images" / "scan7.png").unlink()
    assert run(root, out, overwrite=True)["images"] == 4
    assert not list(out.rglob("scan7*"))  # or the mask of another image would be trained on
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(FileExistsError, match="not a transfer's"):
        run(root, tmp_path / "mine", overwrite=True)
    for folder in (root, tmp_path):
        with pytest.raises(ValueError, match=r"out: .* is the folder that images are read from, or holds it"):
            run(root, folder, overwrite=True)
    assert len(list((root / "images").iterdir())) == 7


def test_after_an_interruption_files_are_whole_and_the_same_command_begins_again(tmp_path, monkeypatch, command):
    root, out = write_folder(tmp_path / "data", exclusive=False), tmp_path / "out"
    words = ("folder", "--root", root, "--out", out, "--encoder", TOY)
    monkeypatch.setattr(inference, "BATCH", 2)
    label = transfer_votes.References.label
    left = iter(range(3))

    def interrupted(self, features):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return label(self, features)

    monkeypatch.setattr(transfer_votes.References, "label", interrupted)
    status, _, errors = command(transfer.main, *words)
    assert status == 130
    assert "--overwrite begins again" in errors
    assert read_json(out / "transfer.json")["state"] == "unfinished"
    assert not list(out.rglob("*.tmp"))
    assert check.report(check.Check("folder", out))  # images without a mask are unlabeled
    monkeypatch.setattr(transfer_votes.References, "label", label)
    assert command(transfer.main, *words, "--overwrite")[0] == 0
    assert read_json(out / "transfer.json")["state"] == "finished"
