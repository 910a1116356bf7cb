"""The check says what is there, finds every fault at once, and draws what it found."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.data import check, jsrt
from tests.examples.files import save_image
from tests.examples.volumes import SCANS, write_tree, write_volume


def words_of(text: str, start: str) -> list[str]:
    return next(line for line in text.splitlines() if line.strip().startswith(start)).split()


def test_volumes_are_listed_and_drawn(tmp_path, command):
    root = write_tree(tmp_path / "tree", volumes=3)
    sheets = {}
    for view in ("whole", "crop"):
        out = tmp_path / view / "sheet.png"
        status, text, _ = command(check.main, "retouch", "--root", root, "--retina", view, "--out", out)
        assert status == 0
        assert words_of(text, "TRAIN026") == [
            "TRAIN026", str(SCANS), "64", "x", "48", "uint16", "4", "(0.78%)", "3", "(0.59%)", "2", "(0.39%)"
        ]  # fmt: skip
        assert words_of(text, "all")[:3] == ["all", "3", str(3 * SCANS)]
        assert "error" not in text
        with Image.open(out) as sheet:
            sheets[view] = sheet.size
    assert sheets["crop"][0] == 2 * sheets["whole"][0]  # the original beside the prepared


def test_all_faults_of_all_volumes_are_listed(tmp_path, command):
    root = write_tree(tmp_path / "tree", volumes=3)
    folder = root / "TrainingSpectralis"
    (folder / "TRAIN025" / "reference.mhd").unlink()
    (folder / "TRAIN026" / "oct.raw").write_bytes(b"")
    out = tmp_path / "sheet.png"
    status, text, _ = command(check.main, "retouch", "--root", root, "--out", out)
    assert status == 1
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "TRAIN025/reference.mhd is missing" in errors[0]
    assert "TRAIN026/oct.raw holds 0 bytes" in errors[1]
    assert words_of(text, "TRAIN027")
    assert out.exists()


def test_other_vendors_are_told_of(tmp_path, command):
    write_volume(tmp_path / "TrainingCirrus" / "TRAIN001")
    status, *_ = command(check.main, "retouch", "--root", tmp_path)
    assert "holds no Spectralis volume with a reference, but 1 of Cirrus" in status
    status, text, _ = command(
        check.main, "retouch", "--root", tmp_path, "--vendor", "cirrus", "--out", tmp_path / "sheet.png"
    )
    assert status == 0
    assert words_of(text, "TRAIN001")


def test_classes_that_never_occur_are_noted(tmp_path, command):
    for number in range(3):
        save_image(tmp_path / "images" / f"p{number}_a.png", np.full((20, 30), 90, np.uint8))
        save_image(tmp_path / "masks" / f"p{number}_a.png", np.eye(20, 30, dtype=np.uint8))
    save_image(tmp_path / "images" / "p2_b.png", np.zeros((20, 30), np.uint8))
    (tmp_path / "classes.txt").write_text("fluid\nabsent\n")
    words = ("folder", "--root", tmp_path, "--group-pattern", r"(p\d)_", "--out", tmp_path / "sheet.png")
    status, text, _ = command(check.main, *words)
    assert status == 0
    assert words_of(text, "p0") == ["p0", "1", "30", "x", "20", "L", "1", "(3.33%)", "0"]
    assert words_of(text, "p2")[1] == "2"
    assert "note: absent does not occur" in text
    assert "note: 1 images have no mask" in text
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("overlapping", [True, False])
def test_all_faults_of_a_folder_are_listed(overlapping, tmp_path, command):
    masks = tmp_path / "masks" / ("lung" if overlapping else ".")
    for stem in "abcde":
        save_image(tmp_path / "images" / f"{stem}.png", np.full((20, 30), 90, np.uint8))
        save_image(masks / f"{stem}.png", np.eye(20, 30, dtype=np.uint8))
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    (masks / "b.png").write_bytes(b"no mask")
    save_image(masks / "c.png", np.eye(20, 31, dtype=np.uint8))
    (tmp_path / "images" / "d.png").unlink()
    status, text, _ = command(check.main, "folder", "--root", tmp_path, "--out", tmp_path / "sheet.png")
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert status == 1
    assert len(errors) == 4
    for file in ("images/a.png cannot", "b.png cannot", "c.png is 31 x 20 pixels", "d.png has no image"):
        assert any(file in error for error in errors)
    if not overlapping:  # what masks mean together is looked at once each can be read
        for stem in "abcde":
            save_image(tmp_path / "images" / f"{stem}.png", np.full((20, 30), 90, np.uint8))
            save_image(masks / f"{stem}.png", 5 * np.eye(20, 30, dtype=np.uint8))
        status, text, _ = command(check.main, "folder", "--root", tmp_path, "--out", tmp_path / "sheet.png")
        assert status == 1
        others = ", ".join(f"{stem}.png" for stem in "bcde")
        assert f"a.png holds the value 5 (as do {others}), but no mask holds 1" in text


def listed(command, root: Path) -> tuple[int | str, list[str], list[str]]:
    """Exit status, errors and notes of a folder."""
    status, text, _ = command(check.main, "folder", "--root", root)
    lines = text.splitlines()
    return status, *([line for line in lines if line.startswith(kind)] for kind in ("error: ", "note: "))


def write_folder(root: Path) -> Path:
    for stem in "abcdef":
        save_image(root / "images" / f"{stem}.png", np.full((20, 30), 90, np.uint8))
        save_image(root / "masks" / f"{stem}.png", np.eye(20, 30, dtype=np.uint8))
    return root


def test_nothing_is_written_unasked(tmp_path, monkeypatch, command):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert listed(command, write_folder(tmp_path / "data")) == (0, [], [])
    assert not list(Path().iterdir())


def test_folders_without_images_get_a_hint(tmp_path, command):
    save_image(tmp_path / "masks" / "a.png", np.eye(20, 30, dtype=np.uint8))
    (tmp_path / "images").mkdir()
    status, *_ = listed(command, tmp_path)
    assert status.startswith("error: root: ")
    assert "images holds no image (.png" in status
    (tmp_path / "images" / "scan.npy").touch()
    status, *_ = listed(command, tmp_path)
    assert status.endswith("; scan.npy is of a kind that is not read: convert it to .png or .tif")
    save_image(tmp_path / "images" / "patient1" / "day2" / "a.png", np.zeros((20, 30), np.uint8))
    status, *_ = listed(command, tmp_path)
    assert status.endswith("those in its sub-folders, such as patient1/day2/a.png, are not read: move them up")


def test_files_that_are_not_read_are_noted(tmp_path, command):
    root = write_folder(tmp_path)
    for name in ("scan.npy", "volume.nii.gz", ".DS_Store"):
        (root / "images" / name).touch()
    (root / "masks" / "old").mkdir()
    status, errors, notes = listed(command, root)
    assert (status, errors) == (0, [])
    assert notes == [
        f"note: 2 entries of {root / 'images'} are not read: scan.npy, volume.nii.gz",
        f"note: 1 entries of {root / 'masks'} are not read: old",
    ]


def test_faults_of_splits_are_listed(tmp_path, command):
    root = write_folder(tmp_path)
    (root / "splits.json").write_text(json.dumps({"labeled": ["a"], "validation": ["b"], "test": ["g"]}))
    status, (error,), _ = listed(command, root)
    assert status == 1
    assert "names 'g' for test, but there is no image" in error
    (root / "splits.json").write_text(json.dumps({"labeled": ["a"], "validation": ["b", "f"], "test": ["c"]}))
    assert listed(command, root) == (0, [], [])


def test_all_masks_of_255_among_class_maps_are_named(tmp_path, command):
    root = write_folder(tmp_path)
    for stem in "bdf":
        save_image(root / "masks" / f"{stem}.png", 255 * np.eye(20, 30, dtype=np.uint8))
    status, (error,), _ = listed(command, root)
    assert status == 1
    assert "b.png holds the value 255 (as do d.png, f.png), expected class ids" in error


def test_radiographs_are_listed_with_their_faults(tmp_path, command):
    for number in (1, 2, 3):
        save_image(tmp_path / "images" / f"JPCLN00{number}.png", np.arange(4096, dtype=np.uint8).reshape(64, 64))
        for structure in jsrt.CLASSES:
            save_image(tmp_path / "masks" / structure / f"JPCLN00{number}.gif", 255 * np.eye(64, dtype=np.uint8))
    words = ("jsrt", "--root", tmp_path, "--out", tmp_path / "sheet.png")
    status, text, _ = command(check.main, *words)
    assert status == 0
    assert words_of(text, "first")[2:6] == ["2", "64", "x", "64"]
    assert words_of(text, "second")[2] == "1"
    assert "note: 3 of the 247 images are there" in text
    (tmp_path / "masks" / "heart" / "JPCLN002.gif").unlink()
    (tmp_path / "images" / "JPCLN003.png").write_bytes(b"no image")
    status, text, _ = command(check.main, *words)
    assert status == 1
    assert "JPCLN002.png has no mask for heart" in text
    assert "JPCLN003.png cannot be read" in text


def test_pictures_hold_the_rarest_class_first():
    def item(i: int, *pixels: int) -> check.Item:
        return check.Item(str(i), "", 10, 10, "L", 100, pixels, list)

    items = [item(i, 5, 1 + (i == 6), i == 4) for i in range(10)]
    assert [chosen.name for chosen in check.choose(items, 2, by_rarity=(2, 1, 0))] == ["4", "6"]
    assert {"0", "4", "6"} < {chosen.name for chosen in check.choose(items, 5, by_rarity=(2, 1, 0))}
    assert len(check.choose(items, 20, by_rarity=(2, 1, 0))) == 10


def test_the_sheet_is_written_under_the_name_that_was_given(tmp_path, command):
    save_image(tmp_path / "images" / "a.png", np.full((20, 30), 90, np.uint8))
    save_image(tmp_path / "masks" / "a.png", np.eye(20, 30, dtype=np.uint8))
    (tmp_path / "folder").mkdir()
    assert command(check.main, "folder", "--root", tmp_path, "--out", tmp_path / "sheet")[0] == 0
    with Image.open(tmp_path / "sheet") as sheet:
        assert sheet.format == "PNG"
    for out in (tmp_path / "folder", tmp_path / "sheet" / "sheet.png"):
        status, *_ = command(check.main, "folder", "--root", tmp_path, "--out", out)
        assert str(status).startswith("error: ")
    assert not (tmp_path / "folder.png").exists()
