"""Written volumes are in RETOUCH's form, hold what was drawn, and are whole or not there."""

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from examples.config import Config
from examples.data import load
from examples.data.phantoms import write as write_phantom
from examples.data.phantoms.oct import Volume
from examples.data.phantoms.write import WritePhantom, main, write

SIZE, SLICES = (24, 16), 5


def options(out: Path, **changes: object) -> WritePhantom:
    return WritePhantom(**{"out": out, "volumes": 2, "size": SIZE, "slices": SLICES, **changes})


def header(path: Path) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in path.read_text().splitlines())


def test_what_is_read_back_is_what_was_drawn(tmp_path):
    write(options(tmp_path))
    folder = tmp_path / "RETOUCH-TrainingSet-Spectralis"
    assert sorted(path.name for path in folder.iterdir()) == ["TRAIN025", "TRAIN026"]
    for number in (25, 26):
        volume = folder / f"TRAIN{number:03d}"
        files = {path.name for path in volume.iterdir()}
        assert files == {"oct.mhd", "oct.raw", "reference.mhd", "reference.raw"}
        drawn = [Volume(number).draw(b_scan, SLICES, *SIZE) for b_scan in range(SLICES)]
        oct_values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(volume / "oct.mhd"))
        reference = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(volume / "reference.mhd"))
        assert np.array_equal(reference, np.stack([label for _, label in drawn]))
        np.testing.assert_allclose(oct_values / 65535, np.stack([image for image, _ in drawn]), atol=0.51 / 65535)
        for name, of_type in (("oct", "MET_USHORT"), ("reference", "MET_UCHAR")):
            fields = header(volume / f"{name}.mhd")
            assert fields["DimSize"] == "24 16 5"  # x y z
            assert fields["ElementType"] == of_type
            assert fields["BinaryDataByteOrderMSB"] == "False"
            assert fields["ElementDataFile"] == f"{name}.raw"
            spacing = [float(side) for side in fields["ElementSpacing"].split()]
            assert np.multiply(spacing, (24, 16, 5)) == pytest.approx((6, 1.92, 6))


def test_the_reader_of_retouch_reads_it(tmp_path):
    size, slices = (48, 40), 8
    write(options(tmp_path / "data", volumes=4, size=size, slices=slices))
    config = Config("retouch", root=tmp_path / "data", labeled=6, image_size=48, map_size=8, k=0.5)
    data = load(config)
    assert len(data.unlabeled) == 2 * slices
    for part in (data.unlabeled, data.validation, data.test):
        for name, original in zip(part.names, part[range(len(part))].originals, strict=True):
            volume, b_scan = name.removeprefix("TRAIN").split("_")
            drawn = Volume(int(volume)).label(int(b_scan), slices, *size)
            assert np.array_equal(original.read_labels().numpy(), drawn)


def test_raw_files_are_plain_little_endian_values(tmp_path):
    (volume,) = write(options(tmp_path, volumes=1, size=(256, 248)))
    image, label = Volume(25).draw(2, SLICES, 256, 248)
    values = np.fromfile(volume / "oct.raw", "<u2").reshape(SLICES, 248, 256)
    assert np.array_equal(values[2], np.round(image * 65535))
    assert values.max() == 65535
    classes = np.fromfile(volume / "reference.raw", "u1").reshape(SLICES, 248, 256)
    assert np.array_equal(classes[2], label)
    assert label.any()


def test_sizes_are_those_of_spectralis_by_default(tmp_path, monkeypatch):
    def blank(self, b_scan, b_scans, width, height):
        return np.zeros((height, width), np.float32), np.zeros((height, width), np.uint8)

    monkeypatch.setattr(Volume, "draw", blank)
    (volume,) = write(WritePhantom(tmp_path, volumes=1))
    assert SimpleITK.ReadImage(volume / "oct.mhd").GetSize() == (512, 496, 49)


def test_nothing_is_written_twice(tmp_path):
    write(options(tmp_path, volumes=1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(FileExistsError, match=r"out: .*Spectralis already holds TRAIN025; pass another --out"):
        write(options(tmp_path))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}


@pytest.mark.parametrize("when", ["drawing", "writing"])
def test_an_interrupted_run_leaves_no_half_volume(tmp_path, monkeypatch, when):
    module, name = (Volume, "draw") if when == "drawing" else (write_phantom, "save")
    original, calls = getattr(module, name), []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == (SLICES + 2 if when == "drawing" else 4):  # in the second volume
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(options(tmp_path, volumes=3))
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in folder.iterdir()] == ["TRAIN025"]
    assert len(list((folder / "TRAIN025").iterdir())) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"volumes": 25}, "volumes: got 25, expected 1 to 24, as many as there are"),
        ({"volumes": 0}, "volumes: got 0"),
        ({"size": (0, 16)}, r"size: got \(0, 16\), expected 1 or more"),
        ({"slices": 0}, "slices: got 0, expected 1 or more"),
    ],
)
def test_bad_values_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        options(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path, command):
    words = ("--out", tmp_path, "--volumes", "1", "--size", "32", "24", "--slices", "2")
    assert "wrote TRAIN025 to TRAIN025 below" in command(main, *words).out
    assert SimpleITK.ReadImage(next(tmp_path.rglob("oct.mhd"))).GetSize() == (32, 24, 2)
    assert re.match(r"error: out: .* already holds TRAIN025", command(main, *words).status)
