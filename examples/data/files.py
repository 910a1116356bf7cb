"""Image files: read as gray values or in color, by name, and those that cannot be read left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

DICOM = ".dcm"
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", DICOM)
PAGED = ("GIF", "PNG", "TIFF")  # formats of which all pages count; a JPEG's others are previews
PHOTOGRAPHS = ("JPEG", "MPO")  # formats in which cameras note how they were held
GRAY_MODES = ("L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Raise a ValueError that names the file, whatever a decoder raises."""
    try:
        yield
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(
            f"{path} has more than {limit} million pixels, expected fewer; scale it down, or cut it into tiles"
        ) from error
    except Exception as error:  # of many kinds: what a damaged file does to a decoder is anyone's guess
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def open_image(path: Path) -> Image.Image:
    """Read the one image that a file holds; a photograph upright, as it is shown, and as its mask was drawn."""
    if path.suffix.lower() == DICOM:
        return open_dicom(path)
    with decoding(path):
        image = Image.open(path)
        image.load()
        if image.mode == "LAB":
            raise ValueError("it is in CIELAB, expected gray or RGB; convert it")
        pages = getattr(image, "n_frames", 1) if image.format in PAGED else 1
        if image.format in PHOTOGRAPHS:
            ImageOps.exif_transpose(image, in_place=True)
        not_finite = int((~np.isfinite(np.array(image))).sum()) if image.mode == "F" else 0
    if pages > 1:
        raise ValueError(
            f"{path} holds {pages} pages, expected one image; save each as an image of its own (examples.predict reads"
            " volumes as .mhd or .nii.gz)"
        )
    if not_finite:
        raise ValueError(f"{path} holds {not_finite} pixels that are NaN or infinite, expected numbers; replace those")
    return image


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image, which is not decoded."""
    if path.suffix.lower() == DICOM:
        with decoding(path):
            width, height, *_ = read_information(path, "GDCMImageIO").GetSize()
        return width, height
    with decoding(path), Image.open(path) as image:
        width, height = image.size
        # Of a PNG file this would decode all.
        orientation = image.getexif().get(ExifTags.Base.Orientation) if image.format in PHOTOGRAPHS else None
        return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def read_information(path: Path, image_io: str = "") -> SimpleITK.ImageFileReader:
    """Return a reader that has read all but the values.

    Raises:
        RuntimeError: it cannot.
    """
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def open_dicom(path: Path) -> Image.Image:
    """Read the one gray image of a DICOM file as one of mode F; GDCM turns MONOCHROME1 to what a viewer shows."""
    with decoding(path):
        reader = read_information(path, "GDCMImageIO")
        values = SimpleITK.GetArrayFromImage(reader.Execute())
    frames = values.shape[0] if values.ndim > 2 else 1
    if frames > 1 or reader.GetNumberOfComponents() > 1:
        raise ValueError(
            f"{path} holds {frames} frames of {reader.GetNumberOfComponents()} values a pixel, expected one gray image;"
            " convert a series to .nii.gz, which examples.predict reads as a volume, and an image in color to .png"
        )
    return Image.fromarray(values.reshape(values.shape[-2:]).astype(np.float32))


def read_values(path: Path, channels: int = 1) -> NDArray[np.float32]:
    """Read an image (channels, H, W): of 1, color becomes gray; of 3, red, green and blue, gray is all three alike."""
    image = open_image(path)
    if image.mode not in GRAY_MODES:
        image = image.convert("L" if channels == 1 else "RGB")
    values = np.array(image.convert("F") if len(image.getbands()) == 1 else image, np.float32)
    return repeat_gray(values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0), channels)


def is_colored(image: Image.Image) -> bool:
    """Return whether colors are seen; what is gray may be stored in color, and off by a little after compression."""
    return image.mode not in GRAY_MODES and int(np.ptp(np.array(image.convert("RGB")), axis=2).max()) > 16


def repeat_gray(values: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Return an image (1 or channels, H, W) with all its channels."""
    return np.repeat(values, channels // len(values), axis=0)


def skip_unreadable(images: dict[str, Path], read: Callable[[str], object]) -> tuple[dict[str, Path], str]:
    """Leave out, and name, the images that ``read`` refuses by name (or one of whose masks it does).

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
