"""Labels are fused as the file says, and a wrong file is refused with what is wrong in it."""

import json
from pathlib import Path

import pytest
import torch

from examples.config import Config
from examples.data import load
from examples.data.fusing import fuse_masks, read_fusing
from examples.data.phantoms import chest

NAMES = ("right_lung", "left_lung", "heart")


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_labels_become_indices_in_the_order_of_the_file(tmp_path):
    path = write(tmp_path / "fuse.json", {"middle": ["heart"], "lungs": ["left_lung", "right_lung", "left_lung"]})
    fused = read_fusing(path, NAMES)
    assert list(fused.items()) == [("middle", (2,)), ("lungs", (1, 0))]


def test_fused_masks_are_unions():
    masks = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    fused = fuse_masks(masks, {"middle": (2,), "lungs": (1, 0)})
    assert fused.shape == (2, 2, 4, 5)
    assert fused.dtype == torch.bool
    assert torch.equal(fused[:, 0], masks[:, 2])
    assert torch.equal(fused[:, 1], masks[:, 0] | masks[:, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"lungs": ["right_lung", "left_long"]}, r"'lungs' the label 'left_long', which is not trained; 'left_lung'\?"),
        ({}, r"holds \{\}, expected"),
        (["heart"], r"holds \[\"heart\"\], expected"),
        ({"lungs": "left_lung"}, r"gives 'lungs' \"left_lung\", expected"),
        ({"lungs": []}, r"gives 'lungs' \[\], expected"),
        ({"lungs": [0, 1]}, r"gives 'lungs' \[0, 1\], expected"),
    ],
)
def test_wrong_files_are_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_fusing(write(tmp_path / "fuse.json", content), NAMES)


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fuse: .*fuse\.json is not a file"):
        read_fusing(tmp_path / "fuse.json", NAMES)
    (tmp_path / "fuse.json").write_text("lungs: left_lung")
    with pytest.raises(ValueError, match=r"fuse\.json is not JSON"):
        read_fusing(tmp_path / "fuse.json", NAMES)


def test_any_data_set_can_be_fused(tmp_path, monkeypatch):
    monkeypatch.setattr(chest, "TRAIN", 3)
    monkeypatch.setattr(chest, "TEST", 1)
    path = write(tmp_path / "fuse.json", {"lungs": ["right_lung", "left_lung"]})
    data = load(Config("phantom", image_size=32, map_size=16, k=0.5, fuse=path))
    assert data.fused == {"lungs": (0, 1)}
    assert data.evaluated_names == ("lungs",)
    assert len(data.class_names) == 5
