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
from numpy.typing import NDArray
from rich.progress import Progress

from examples.config import require
from examples.data.phantoms.oct import Volume
from examples.data.retouch.index import TRAINING_IDS

IDS = TRAINING_IDS["spectralis"]
SIZE, B_SCANS = (512, 496), 49  # of RETOUCH's Spectralis volumes: width and height of a B-scan, and how many
FIELD, DEPTH = 6.0, 1.92  # mm: across, both ways, and down


@dataclass(frozen=True)
class WritePhantom:
    """What to write, and where."""

    out: Path
    """Folder to write to, with a folder for each volume: oct.mhd, gray values of 16 bits, and reference.mhd, 0 to 3
    (none, IRF, SRF, PED)."""

    volumes: int = 10
    """How many, from TRAIN025 on, which is the phantom of index 25."""

    size: tuple[int, int] = SIZE
    """Width and height of a B-scan."""

    slices: int = B_SCANS
    """B-scans of a volume."""

    def __post_init__(self) -> None:
        """Refuse what could only fail later, naming the argument."""
        most = f"1 to {len(IDS)}, as many as there are"
        require(1 <= self.volumes <= len(IDS), "volumes", self.volumes, most)
        require(min(self.size) >= 1, "size", self.size, "1 or more, both ways")
        require(self.slices >= 1, "slices", self.slices, "1 or more")

    @property
    def folder(self) -> Path:
        """Where the volumes lie."""
        return self.out / "RETOUCH-TrainingSet-Spectralis"


def write(options: WritePhantom) -> list[Path]:
    """Write the volumes, each aside first: there is never half of one; return their folders."""
    folder = options.folder
    if folder.exists() and (there := sorted(folder.iterdir())):
        raise FileExistsError(f"out: {folder} already holds {there[0].name}; pass another --out, or remove that folder")
    folder.mkdir(parents=True, exist_ok=True)
    width, height = options.size
    shape = (options.slices, height, width)
    spacing = (FIELD / width, DEPTH / height, FIELD / shape[0])
    written = []
    with Progress() as progress:
        task = progress.add_task(folder.name, total=options.volumes * shape[0])
        for number in IDS[: options.volumes]:
            volume = Volume(number)
            values, classes = np.empty(shape, np.uint16), np.empty(shape, np.uint8)
            for b_scan in range(shape[0]):
                image, classes[b_scan] = volume.draw(b_scan, shape[0], width, height)
                values[b_scan] = np.round(image * np.iinfo(np.uint16).max)
                progress.advance(task)
            with TemporaryDirectory(prefix=".writing-", dir=folder) as aside:
                complete = Path(aside, f"TRAIN{number:03d}")
                complete.mkdir()
                save(complete / "oct.mhd", values, spacing)
                save(complete / "reference.mhd", classes, spacing)
                written.append(complete.rename(folder / complete.name))
    return written


def save(path: Path, values: NDArray[np.unsignedinteger], spacing: tuple[float, float, float]) -> None:
    """Write an array (Z, Y, X) as MetaImage: the header at ``path``, the values in a .raw beside it."""
    picture = SimpleITK.GetImageFromArray(values)
    picture.SetSpacing(spacing)
    SimpleITK.WriteImage(picture, path)


def main() -> None:
    try:
        options = tyro.cli(WritePhantom, description=__doc__, prog="python -m examples.data.phantoms.write")
        written = write(options)
    except (ValueError, OSError, RuntimeError) as error:  # SimpleITK raises RuntimeError where it cannot write
        sys.exit(f"error: {error}")
    print(f"wrote {written[0].name} to {written[-1].name} below {options.folder}")


if __name__ == "__main__":
    main()
