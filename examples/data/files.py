"""Image files: opened as gray images, by name, and those that cannot be read left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
GRAY_MODES = ("L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def open_image(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except Exception as error:  # of many kinds: what a damaged file does to a decoder is anyone's guess
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    return image


def open_gray(path: Path) -> Image.Image:
    image = open_image(path)
    return (image if image.mode in GRAY_MODES else image.convert("L")).convert("F")


def skip_unreadable(images: dict[str, Path], read: Callable[[str], object]) -> tuple[dict[str, Path], str]:
    """Leave out, and name, the images that cannot be read.

    Args:
        images: Name -> file.
        read: Called with a name; ValueError or OSError if the image or one of its masks cannot be read.

    Returns:
        The others, and how many were left out, in words.
    """
    left = dict(images)
    for name in images:
        try:
            read(name)
        except (ValueError, OSError) as error:
            print(f"skipped {name}: {error}")
            del left[name]
    if not left:
        raise ValueError("root: none of the images can be read")
    count = len(images) - len(left)
    return left, f", {count} unreadable skipped" if count else ""
