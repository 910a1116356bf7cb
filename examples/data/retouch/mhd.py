"""MetaImage files (.mhd): headers, and one slice of their values at a time."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK
from numpy.typing import NDArray

TYPES = {
    SimpleITK.sitkUInt8: "uint8",
    SimpleITK.sitkInt8: "int8",
    SimpleITK.sitkUInt16: "uint16",
    SimpleITK.sitkInt16: "int16",
    SimpleITK.sitkUInt32: "uint32",
    SimpleITK.sitkInt32: "int32",
}


class Header(NamedTuple):
    """What an .mhd file says."""

    size: tuple[int, ...]  # x, y, z
    type: str
    data: Path
    compressed: bool
    offset: int  # bytes before the values


def read_header(path: Path) -> Header:
    """Read an .mhd file.

    Raises:
        ValueError: it is missing or unreadable, or the file of values that it names is missing.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    lines = path.read_text(encoding="latin-1").splitlines()
    entries = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    data = path.parent / entries.get("ElementDataFile", "")
    if not entries.get("ElementDataFile"):
        raise ValueError(f"{path} cannot be read: it has no ElementDataFile, expected a MetaImage header")
    if not data.is_file():
        raise ValueError(f"{path} names {data.name} as its values, which is missing")
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        kind = TYPES.get(reader.GetPixelID(), SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()))
        offset = int(entries.get("HeaderSize", "0"))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from error
    return Header(size, kind, data, entries.get("CompressedData", "").lower() == "true", offset)


def check_values(header: Header) -> None:
    """Refuse a file of values that holds fewer or more of them than the header says."""
    expected = int(np.prod(header.size)) * np.dtype(header.type).itemsize
    if header.compressed:
        stream = zlib.decompressobj(wbits=47)  # zlib or gzip
        try:
            held = len(stream.decompress(header.data.read_bytes()))
        except zlib.error as error:
            raise ValueError(f"{header.data} cannot be unpacked ({error}); copy it again") from error
    else:
        held = header.data.stat().st_size - max(header.offset, 0)
        expected = min(held, expected) if header.offset < 0 else expected  # -1: the values are the last bytes
    if held != expected:
        shape = " x ".join(map(str, header.size))
        raise ValueError(
            f"{header.data} holds {held} bytes of values, expected {expected} ({shape} of {header.type});"
            f" is it {'cut' if held < expected else 'of another volume'}?"
        )


def read_slice(path: Path, scan: int) -> NDArray[Any]:
    """Read one slice (height, width) of a volume; of an uncompressed one, no more than that is read."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        width, height, _ = reader.GetSize()
        reader.SetExtractIndex((0, 0, scan))
        reader.SetExtractSize((width, height, 0))
        return SimpleITK.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise ValueError(f"{path} could be read before and now cannot: {str(error).splitlines()[-1]}") from error
