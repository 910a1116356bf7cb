"""Write drawn radiographs to disk as a data set of your own would be: images/, masks/ for some of them, classes.txt.

    python -m examples.data.phantoms.folder --out my_data

To try the commands for a folder before your own images are at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from examples.command_line import ending_in_words
from examples.config import require
from examples.data.jsrt import CLASSES
from examples.data.phantoms.chest import draw_phantom, exclusive
from examples.engine.checkpoint import make_folder


@dataclass(frozen=True)
class WriteFolder:
    """What to write, and where."""

    out: Path
    """Folder to write to, which must not be there."""

    images: int = 60
    """How many images."""

    masks: int = 24
    """How many of them have a mask."""

    size: int = 256
    """Side of an image in pixels."""

    def __post_init__(self) -> None:
        require(1 <= self.masks <= self.images, "masks", self.masks, f"1 to --images {self.images}")
        require(self.size >= 16, "size", self.size, "16 or more")


def write(options: WriteFolder) -> None:
    """Write the images."""
    if options.out.exists():
        raise FileExistsError(f"out: {options.out} is there already; pass another --out, or remove it")
    for name in ("images", "masks"):
        make_folder(options.out / name)
    (options.out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for index in range(options.images):
        film, covers = draw_phantom(index, options.size)
        low, high = film.min(), film.max()
        gray = np.round(255 * (film - low) / (high - low)).astype(np.uint8)
        Image.fromarray(gray).save(options.out / "images" / f"patient{index:03d}.png")
        if index < options.masks:
            ids = exclusive(torch.from_numpy(covers.astype(np.int8))[None])[0].numpy().astype(np.uint8)
            Image.fromarray(ids).save(options.out / "masks" / f"patient{index:03d}.png")


def main() -> None:
    with ending_in_words():
        options = tyro.cli(WriteFolder, description=__doc__, prog="python -m examples.data.phantoms.folder")
        write(options)
    print(f"wrote {options.images} images, {options.masks} of them with a mask, to {options.out}")


if __name__ == "__main__":
    main()
