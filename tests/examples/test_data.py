"""Phantoms are what they say, and JSRT is read alike in both of its layouts."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.config import Config
from examples.data import jsrt, load
from examples.data.base import Dataset
from examples.data.loaders import PoolBatches, UnlabeledBatches
from examples.data.phantoms import chest
from tests.examples.files import real_data, save_image

NAMES = ("JPCLN001", "JPCNN003", "JPCLN002")
SIDE = 32


def config(dataset: str, **changes: object) -> Config:
    return Config(**{"dataset": dataset, "image_size": SIDE, "map_size": 16, "k": 0.5, **changes})


# --- phantom


@pytest.fixture(scope="module")
def phantoms() -> Dataset:
    return load(config("phantom"))


def test_phantoms_have_the_areas_of_jsrt(phantoms):
    area = phantoms.unlabeled.labels.float().mean((0, 2, 3))
    expected = torch.tensor([0.168, 0.137, 0.091, 0.010, 0.010])
    assert ((area / expected - 1).abs() < 0.3).all()
    assert phantoms.unlabeled.labels.flatten(2).any(2).all()  # every structure in every image
    assert phantoms.unlabeled.images.min() == -1
    assert phantoms.unlabeled.images.max() == 1


def test_right_lung_is_at_the_images_left(phantoms):
    columns = phantoms.unlabeled.labels.float().mean(2)
    center = (columns * torch.arange(SIDE)).sum(2) / columns.sum(2)
    for right, left in phantoms.flip_pairs:
        assert (center[:, right] < center[:, left]).all()


def test_phantoms_are_the_same_every_time_and_at_every_size():
    image, masks = chest.draw_phantom(7, SIDE)
    again, _ = chest.draw_phantom(7, SIDE)
    assert (image == again).all()
    _, large = chest.draw_phantom(7, 4 * SIDE)
    shrunk = large.reshape(5, SIDE, 4, SIDE, 4).mean((2, 4)) > 0.5
    assert (masks != shrunk).mean() < 0.02


def test_splits_of_phantoms_differ_and_repeat(phantoms, monkeypatch):
    monkeypatch.setattr(chest, "phantom_set", lambda indices, size: phantoms.unlabeled)  # draw them once
    assert phantoms.labeled.names == load(config("phantom")).labeled.names
    assert phantoms.labeled.names != load(config("phantom", split=1)).labeled.names


def test_parts_of_the_phantoms_are_disjoint(phantoms):
    assert set(phantoms.labeled.names) < set(phantoms.unlabeled.names)
    assert not set(phantoms.validation.names) & set(phantoms.unlabeled.names)
    assert not set(phantoms.test.names) & set(phantoms.unlabeled.names + phantoms.validation.names)


# --- batches


def test_every_class_is_in_every_pool(phantoms):
    pools = PoolBatches(phantoms, 3, torch.Generator().manual_seed(0))
    for _ in range(20):
        assert (next(pools).labels == 1).any(0).flatten(1).any(1).all()


def test_a_pool_that_loses_a_class_in_augmentation_says_which(phantoms):
    labels = torch.zeros_like(phantoms.labeled.labels)
    labels[:, :4] = 1
    labels[:, 4, 0, 0] = 1  # a single pixel in a corner: nearest-neighbor warps hardly ever hit it
    labeled = type(phantoms.labeled)(phantoms.labeled.images, labels, phantoms.labeled.names)
    data = Dataset(labeled, *[phantoms.test] * 3, phantoms.class_names, (), True, "")
    with pytest.raises(ValueError, match="no left_clavicle left"):
        for _, _ in zip(range(50), PoolBatches(data, 1, torch.Generator().manual_seed(0)), strict=False):
            pass


def test_unlabeled_batches_pass_over_all_images_once(phantoms):
    batches = UnlabeledBatches(phantoms, 7, torch.Generator().manual_seed(0))
    sizes = [len(next(batches).images) for _ in range(18)]
    assert sum(sizes) == chest.TRAIN
    assert sizes[-1] == chest.TRAIN % 7


# --- jsrt

# The odd-numbered half of 154 images with and 93 without a nodule.
FIRST_SET = [f"JPCLN{i:03d}" for i in range(1, 155, 2)] + [f"JPCNN{i:03d}" for i in range(1, 94, 2)]


def picture(index: int) -> np.ndarray:
    """Density of a film: high in the dark lungs. Blocks of 64 pixels, so that no resizing blurs it."""
    blocks = np.full((SIDE, SIDE), 300 + 16 * index)
    blocks[8:24, 4:28] = 3600
    return np.kron(blocks, np.ones((64, 64))).astype(">u2")


def mask(index: int, structure: int) -> np.ndarray:
    blocks = np.zeros((SIDE, SIDE), np.uint8)
    blocks[8 + index : 20, 4 + structure : 12 + structure] = 255
    return np.kron(blocks, np.ones((32, 32), np.uint8))


def write_distributed(root: Path) -> None:
    """The files as they are handed out: .IMG and folds."""
    for index, name in enumerate(NAMES):
        folder = root / "All247images"
        folder.mkdir(parents=True, exist_ok=True)
        picture(index).tofile(folder / f"{name}.IMG")
        for number, structure in enumerate(jsrt.CLASSES):
            fold = root / "scratch" / f"fold{1 + index % 2}" / "masks" / structure.replace("_", " ")
            save_image(fold / f"{name}.gif", mask(index, number))


def write_folder(root: Path) -> None:
    """The same as plain images with dark lungs."""
    for index, name in enumerate(NAMES):
        save_image(root / "images" / f"{name}.png", ((4095 - picture(index)[::4, ::4]) // 16).astype(np.uint8))
        for number, structure in enumerate(jsrt.CLASSES):
            save_image(root / "masks" / structure / f"{name}.gif", mask(index, number))


@pytest.fixture
def tiny_split(tmp_path, monkeypatch):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"1": [{"labeled": ["JPCLN001"], "validation": ["JPCNN003"]}]}))
    monkeypatch.setattr(jsrt, "SPLITS", path)


@pytest.fixture
def folder(tmp_path, tiny_split) -> Path:
    write_folder(tmp_path / "folder")
    return tmp_path / "folder"


@pytest.fixture(scope="module")
def distributed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("distributed")
    write_distributed(root)
    return root


def load_jsrt(root: Path) -> Dataset:
    return load(config("jsrt", root=root, labeled=1))


def test_both_layouts_give_the_same_arrays(folder, distributed):
    plain, raw = load_jsrt(folder), load_jsrt(distributed)
    for part in ("labeled", "unlabeled", "validation", "test"):
        one, other = getattr(plain, part), getattr(raw, part)
        assert one.names == other.names
        assert torch.equal(one.labels, other.labels)
        assert torch.allclose(one.images, other.images, atol=2 / 255)
    assert plain.labeled.names == ("JPCLN001",)
    assert plain.unlabeled.names == ("JPCLN001", "JPCNN003")
    assert plain.validation.names == ("JPCNN003",)
    assert plain.test.names == ("JPCLN002",)
    assert raw.found == "3 of 247 images (2 first set, 1 test)"


@pytest.mark.parametrize("layout", ["folder", "distributed"])
def test_lungs_are_dark_and_labels_where_they_belong(layout, folder, distributed):
    data = load_jsrt({"folder": folder, "distributed": distributed}[layout])
    assert data.labeled.images.shape == (1, 1, SIDE, SIDE)
    assert data.labeled.images[0, 0, 16, 16] == -1
    assert data.labeled.images[0, 0, 0, 0] == 1
    expected = torch.from_numpy(np.stack([mask(0, c)[::32, ::32] > 0 for c in range(5)])).to(torch.int8)
    assert torch.equal(data.labeled.labels[0], expected)


def test_masks_keep_pixels_covered_by_more_than_half(tmp_path):
    image = np.zeros((4, 4), np.uint8)
    image[0, :] = 255  # half of the upper two output pixels
    image[1, 0] = 255  # three quarters of the first
    save_image(tmp_path / "mask.gif", image)
    assert jsrt.read_mask(tmp_path / "mask.gif", 2).tolist() == [[True, False], [False, False]]


def test_errors_name_the_file(folder, tmp_path):
    with pytest.raises(ValueError, match="pass --root FOLDER"):
        load(config("jsrt"))
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        load_jsrt(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither images/JPC"):
        load_jsrt(tmp_path / "empty")
    (folder / "images" / "JPCNN003.png").unlink()
    with pytest.raises(ValueError, match="lacks JPCNN003, which split 0 needs"):
        load_jsrt(folder)
    (folder / "images" / "JPCNN003.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"JPCNN003\.png cannot be read"):
        load_jsrt(folder)
    (folder / "masks" / "heart" / "JPCLN002.gif").unlink()
    with pytest.raises(FileNotFoundError, match=r"JPCLN002\.png has no mask for heart"):
        load_jsrt(folder)


def test_a_cut_img_file_is_refused(tmp_path):
    (tmp_path / "JPCLN001.IMG").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match=r"JPCLN001\.IMG holds 500 16-bit values"):
        jsrt.read_image(tmp_path / "JPCLN001.IMG", SIDE)


def test_an_image_that_cannot_be_decoded_is_named_and_skipped_only_on_demand(folder):
    (folder / "images" / "JPCLN005.png").write_bytes(b"no image")
    for structure in jsrt.CLASSES:
        save_image(folder / "masks" / structure / "JPCLN005.gif", mask(0, 0))
    with pytest.raises(ValueError, match=r"JPCLN005\.png cannot be read as an image"):
        load_jsrt(folder)
    data = load(config("jsrt", root=folder, labeled=1, skip_unreadable=True))
    assert data.found == "3 of 247 images (2 first set, 1 test), 1 unreadable skipped"
    (folder / "masks" / "heart" / "JPCLN001.gif").write_bytes(b"")
    with pytest.raises(ValueError, match="lacks JPCLN001, which split 0 needs"):
        load(config("jsrt", root=folder, labeled=1, skip_unreadable=True))


def test_committed_splits_are_those_drawn():
    splits = json.loads(jsrt.SPLITS.read_text())
    rng = random.Random(2022)
    for size in (3, 6, 12, 24):
        drawn = [rng.sample(FIRST_SET, size + 5) for _ in range(5)]
        assert splits[str(size)] == [{"labeled": sorted(s[:size]), "validation": sorted(s[size:])} for s in drawn]
    assert len(FIRST_SET) == len(set(FIRST_SET)) == 124
    for size, drawn in splits.items():
        assert len(drawn) == 5
        for split in drawn:
            assert (len(split["labeled"]), len(split["validation"])) == (int(size), 5)
            assert len({*split["labeled"], *split["validation"]} & set(FIRST_SET)) == int(size) + 5


def test_missing_splits_are_refused():
    with pytest.raises(ValueError, match="splits for 3, 6, 12, 24"):
        jsrt.read_split(5, 0)
    with pytest.raises(ValueError, match="splits 0 to 4"):
        jsrt.read_split(3, 5)


def test_real_jsrt():
    images, masks = jsrt.find_files(real_data("jsrt"))
    assert {name for name in images if int(name[-3:]) % 2} == set(FIRST_SET)
    some = jsrt.read_set(list(images)[::40], images, masks, 64)
    lungs = some.labels[:, :2].any(1)
    assert (some.images[:, 0][lungs].mean() < some.images[:, 0][~lungs].mean()).item()
    area = some.labels.float().mean((0, 2, 3))
    assert ((area / torch.tensor([0.168, 0.137, 0.091, 0.010, 0.010]) - 1).abs() < 0.4).all()
