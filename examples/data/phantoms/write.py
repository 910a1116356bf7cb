"""Write the drawn OCT volumes of oct_phantom to disk in the form in which RETOUCH is distributed.

    python -m examples.data.phantoms.write --out DIR --volumes 10

makes DIR/RETOUCH-TrainingSet-Spectralis/TRAIN025/{oct,reference}.{mhd,raw} to TRAIN034. What reads that reads RETOUCH.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK
import tyro
from numpy.typing import DTypeLike, NDArray
from rich.progress import Progress

from examples.config import Vendor, require
from examples.data.phantoms.oct import Volume
from examples.data.retouch.index import TRAINING_IDS


@dataclass(frozen=True)
class Scanner:
    """What RETOUCH's training volumes of one make of scanner are like."""

    size: tuple[int, int]  # width, height
    b_scans: int
    dtype: DTypeLike
    depth: float  # mm; the other two sides are 6 mm


VENDORS: dict[Vendor, Scanner] = {
    "cirrus": Scanner((512, 1024), 128, np.uint8, 2.0),
    "spectralis": Scanner((512, 496), 49, np.uint16, 1.92),
    "topcon": Scanner((512, 885), 128, np.uint8, 2.3),
}
FIELD = 6.0  # mm, both ways


@dataclass(frozen=True)
class WritePhantom:
    """What to write, and where."""

    out: Path
    """Folder to write to, with a folder for each volume: oct.mhd, gray values, and reference.mhd, 0 to 3 (none, IRF,
    SRF, PED); the volumes of other vendors may be there already."""

    volumes: int = 10
    """How many; TRAIN025 is the phantom of index 25."""

    vendor: Vendor = "spectralis"
    """Whose form: spectralis 512 x 496 x 49, 16-bit, from 025 on; cirrus 512 x 1024 x 128, 8-bit, from 001 on;
    topcon 512 x 885 x 128, 8-bit, from 049 on."""

    size: tuple[int, int] | None = None
    """Width and height of a B-scan; default the vendor's."""

    slices: int | None = None
    """B-scans of a volume; default the vendor's."""

    compressed: bool = False
    """Write .zraw instead of .raw."""

    def __post_init__(self) -> None:
        """Refuse what could only fail later, naming the argument."""
        most = len(TRAINING_IDS[self.vendor])
        require(1 <= self.volumes <= most, "volumes", self.volumes, f"1 to {most}, as many as are of {self.vendor}")
        require(self.size is None or min(self.size) >= 1, "size", self.size, "1 or more, both ways")
        require(self.slices is None or self.slices >= 1, "slices", self.slices, "1 or more")

    @property
    def folder(self) -> Path:
        """Where the volumes lie."""
        return self.out / f"RETOUCH-TrainingSet-{self.vendor.capitalize()}"


def write(options: WritePhantom) -> list[Path]:
    """Write the volumes, each aside first: there is never half of one; return their folders."""
    folder, vendor = options.folder, VENDORS[options.vendor]
    if folder.exists() and (there := sorted(folder.iterdir())):
        raise FileExistsError(f"out: {folder} already holds {there[0].name}; pass another --out, or remove that folder")
    folder.mkdir(parents=True, exist_ok=True)
    width, height = options.size or vendor.size
    shape = (options.slices or vendor.b_scans, height, width)
    spacing = (FIELD / width, vendor.depth / height, FIELD / shape[0])
    written = []
    with Progress() as progress:
        task = progress.add_task(folder.name, total=options.volumes * shape[0])
        for number in TRAINING_IDS[options.vendor][: options.volumes]:
            volume = Volume(number)
            values, classes = np.empty(shape, vendor.dtype), np.empty(shape, np.uint8)
            for b_scan in range(shape[0]):
                image, classes[b_scan] = volume.draw(b_scan, shape[0], width, height)
                values[b_scan] = np.round(image * np.iinfo(vendor.dtype).max)
                progress.advance(task)
            with TemporaryDirectory(prefix=".writing-", dir=folder) as aside:
                complete = Path(aside, f"TRAIN{number:03d}")
                complete.mkdir()
                save(complete / "oct.mhd", values, spacing, options.compressed)
                save(complete / "reference.mhd", classes, spacing, options.compressed)
                written.append(complete.rename(folder / complete.name))
    return written


def save(
    path: Path, values: NDArray[np.unsignedinteger], spacing: tuple[float, float, float], compressed: bool
) -> None:
    """Write an array (Z, Y, X) as MetaImage: the header at ``path``, the values in a .raw or .zraw beside it."""
    picture = SimpleITK.GetImageFromArray(values)
    picture.SetSpacing(spacing)
    SimpleITK.WriteImage(picture, path, useCompression=compressed)


def main() -> None:
    try:
        options = tyro.cli(WritePhantom, description=__doc__, prog="python -m examples.data.phantoms.write")
        written = write(options)
    except (ValueError, OSError, RuntimeError) as error:  # SimpleITK raises RuntimeError where it cannot write
        sys.exit(f"error: {error}")
    print(f"wrote {written[0].name} to {written[-1].name} below {options.folder}")


if __name__ == "__main__":
    main()
