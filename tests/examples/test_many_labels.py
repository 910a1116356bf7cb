"""The phantoms as class maps, and as a folder of 72 overlapping labels, of which each is a part of a structure."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.config import Config
from examples.data import load
from examples.data.base import Dataset
from examples.data.fusing import fuse_masks
from examples.data.phantoms import chest
from examples.evaluate import Evaluate, measure
from examples.train import train
from tests.examples.files import save_image
from tests.examples.tiny import tiny

SIDE = 64
COUNTS = dict(zip(chest.CLASSES, (26, 26, 16, 2, 2), strict=True))  # by area; 72 as in the paper's extended JSRT
IMAGES = 12


pytestmark = pytest.mark.usefixtures("shrunk")


def parts_of(mask: np.ndarray, count: int) -> np.ndarray:
    """The overlapping columns (count, H, W) of one structure (H, W); their union is the structure."""
    x = np.nonzero(mask)[1]
    place = (np.arange(mask.shape[1]) - x.min() + 0.5) / (np.ptp(x) + 1) * count
    distance = abs(place - (np.arange(count)[:, None] + 0.5))
    width = np.maximum(0.75, distance.min(1, keepdims=True))  # 0.5 would leave no overlap
    return (distance <= width)[:, None] & mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("many")
    for index in range(IMAGES):
        image, masks = chest.draw_phantom(index, SIDE)
        files = {"images": np.rint(255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)}
        for (structure, count), mask in zip(COUNTS.items(), masks, strict=True):
            for part, pixels in enumerate(parts_of(mask, count)):
                files[f"masks/{structure}_{part:02d}"] = 255 * pixels.astype(np.uint8)
        for name, values in files.items():
            save_image(root / name / f"phantom{index:02d}.png", values)
    fusing = {s: [f"{s}_{part:02d}" for part in range(count)] for s, count in COUNTS.items()}
    (root / "fuse.json").write_text(json.dumps(fusing))
    return root


def load_data(dataset: str, **changes: object) -> Dataset:
    return load(Config(**{"dataset": dataset, "image_size": SIDE, "map_size": 16, "k": 0.5, **changes}))


def test_later_classes_cover_earlier_ones():
    plain, data = load_data("phantom"), load_data("phantom_exclusive")
    assert not data.multilabel
    assert data.num_outputs == 6
    for part in ("labeled", "unlabeled", "validation", "test"):
        masks, ids = getattr(plain, part).labels, getattr(data, part).labels
        assert ids.dtype == torch.int64
        assert getattr(plain, part).names == getattr(data, part).names
        expected = torch.zeros_like(ids)
        for c in range(5):
            expected[masks[:, c] == 1] = c + 1
        assert torch.equal(ids, expected)
    overlap = (plain.unlabeled.labels[:, 0] & plain.unlabeled.labels[:, 3]) == 1
    assert overlap.any()
    assert (data.unlabeled.labels[overlap] == 4).all()


def test_72_labels_overlap_and_are_fused_to_the_structures(folder):
    data = load_data("folder", root=folder, fuse=folder / "fuse.json")
    labels = data.unlabeled.labels
    assert labels.shape[1:] == (72, SIDE, SIDE)
    assert labels.flatten(2).any(2).all()
    assert labels.sum(1).float()[labels.any(1)].mean() > 1.3
    assert data.evaluated_names == chest.CLASSES
    assert len(data.flip_pairs) in (28, 56)
    for part in (data.unlabeled, data.validation, data.test):
        drawn = np.stack([chest.draw_phantom(int(name[-2:]), SIDE)[1] for name in part.names])
        assert torch.equal(fuse_masks(part.labels > 0, data.fused), torch.from_numpy(drawn))


def test_a_run_with_72_labels_is_evaluated_as_the_structures(folder, tmp_path):
    options = {"root": folder, "fuse": folder / "fuse.json", "image_size": SIDE, "iterations": 2, "base_channels": 4}
    run = tiny(tmp_path / "run", **options)
    result = train(Config(**{**vars(run), "dataset": "folder"}))
    assert result["iou_per_class"].keys() == set(chest.CLASSES)
    assert {"heart_00", "right_clavicle_01", "background"} <= result["pseudo_label_weight"].keys()
    assert measure(Evaluate(tmp_path / "run")).classes == chest.CLASSES
