"""NIfTI and DICOM, as clinics and peers have them: read like other images and volumes, and not believed blindly."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from examples.data import load
from examples.data.files import image_size, open_image
from examples.inference.inputs import Input, find_inputs, read
from examples.inference.prediction import Predict, predict
from examples.inference.trained import Labels
from tests.examples.files import save_image
from tests.examples.tiny import small
from tests.examples.trained import write_checkpoint

CONFIG = small("folder", labeled=1)
VALUES = np.random.default_rng(0).integers(0, 4000, (3, 20, 44)).astype(np.uint16)


def write(path: Path, values: np.ndarray, **tags: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(values)
    image.SetSpacing((0.5, 0.25, 3.0)[: values.ndim])
    for tag, value in tags.items():
        image.SetMetaData(tag.replace("_", "|")[1:], value)
    SimpleITK.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_volume_is_predicted_into_one_of_its_geometry(suffix, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "run" / "best.pt", CONFIG, Labels(("fluid",), multilabel=False))
    path = write(tmp_path / "scans" / f"knee.v1{suffix}", VALUES)
    assert [source.name for source in find_inputs([path.parent])] == ["knee.v1"]
    assert predict(Predict(checkpoint, (path,), out=tmp_path / "out", device="cpu")) == (1, [])
    mask = SimpleITK.ReadImage(str(tmp_path / "out" / "masks" / "knee.v1.nii.gz"))
    values = SimpleITK.GetArrayFromImage(mask)
    assert values.shape == VALUES.shape
    assert set(np.unique(values)) == {0, 1}
    assert mask.GetSpacing() == (0.5, 0.25, 3.0)


def test_a_nifti_volume_means_what_the_same_metaimage_means(tmp_path):
    paths = [write(tmp_path / f"a{suffix}", VALUES) for suffix in (".mhd", ".nii", ".nii.gz")]
    one, *others = (read(Input(path, "a"), CONFIG) for path in paths)
    for other in others:
        for a, b in zip(one.planes, other.planes, strict=True):
            assert a.square.equal(b.square)


@pytest.mark.parametrize("damage", ["cut", "cut inside gzip", "unpacked", "no header", "empty"])
def test_a_damaged_nifti_file_is_refused(damage, tmp_path):
    """SimpleITK alone would read the first two as if what is missing were 0."""
    whole = write(tmp_path / "a.nii", VALUES).read_bytes()
    packed = gzip.compress(whole)
    name, content = {
        "cut": ("b.nii", whole[:2000]),
        "cut inside gzip": ("b.nii.gz", packed[: len(packed) // 2]),
        "unpacked": ("b.nii.gz", whole),
        "no header": ("b.nii", bytes(5000)),
        "empty": ("b.nii", b""),
    }[damage]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"b\.nii"):
        read(Input(tmp_path / name, "b"), CONFIG)


def test_a_dicom_image_is_shown_as_a_viewer_shows_it(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES[0])
    assert image_size(path) == (44, 20)
    assert np.array_equal(np.array(open_image(path)), VALUES[0])
    content = path.read_bytes()
    assert content.count(b"MONOCHROME2 ") == 1
    path.write_bytes(content.replace(b"MONOCHROME2 ", b"MONOCHROME1 "))
    assert np.unique(np.array(open_image(path)) + VALUES[0]).size == 1  # bright became dark


def test_what_is_no_gray_dicom_image_is_refused(tmp_path):
    (tmp_path / "text.dcm").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.dcm cannot be read"):
        open_image(tmp_path / "text.dcm")
    frames = write(tmp_path / "frames.dcm", VALUES)
    with pytest.raises(ValueError, match="3 frames"):
        open_image(frames)


def test_a_folder_of_dicom_images_is_a_data_set(tmp_path):
    for i in range(6):
        write(tmp_path / "images" / f"case{i}.dcm", VALUES[i % 3] + i)
        save_image(tmp_path / "masks" / f"case{i}.png", (VALUES[i % 3] > 2000).astype(np.uint8))
    data = load(replace(CONFIG, root=tmp_path))
    assert len(data.unlabeled) + len(data.validation) + len(data.test) == 6
    assert data.labeled.images.unique().numel() > 10
