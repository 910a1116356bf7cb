"""MetaImage files (.mhd, .mha): headers, which are not trusted, and one slice of their values at a time."""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from examples.data.files import read_information

# As NumPy names them.
TYPES = {
    getattr(SimpleITK, f"sitk{name}"): name.lower()
    for name in ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64")
}
LONGEST_HEADER = 2**16  # bytes
MOST_PIXELS = 2**31
PIECE = 2**20  # bytes that are unpacked at a time
LAST_ENTRY = re.compile(rb"^[ \t]*ElementDataFile[ \t]*=[ \t]*(.*?)[ \t]*\r?(?:\n|\Z)", re.MULTILINE)


class Header(NamedTuple):
    """What the header of a MetaImage file says."""

    size: tuple[int, ...]  # x, y, z
    type: str  # of the values, as NumPy names it; other types as SimpleITK does
    components: int  # values a pixel
    data: Path  # file of the values
    compressed: bool  # whether they are
    offset: int  # bytes before the values; -1: they are the last of the file


def read_header(path: Path) -> Header:
    """Read what a .mhd or .mha file says about its values."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    with path.open("rb") as file:
        start = file.read(LONGEST_HEADER)
    last = LAST_ENTRY.search(start)
    if last is None or not last[1]:
        raise ValueError(f"{path} cannot be read: it has no ElementDataFile, expected a MetaImage header")
    lines = start[: last.end()].decode("latin-1").splitlines()
    entries = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    name = entries["ElementDataFile"]
    inside = name.upper() == "LOCAL"
    data = path if inside else path.parent / name
    if Path(name).name != name:
        raise ValueError(f"{path} names {name} as its values, expected a file in the same folder")
    if not data.is_file():
        raise ValueError(f"{path} names {name} as its values, which is missing")
    try:
        reader = read_information(path, "MetaImageIO")  # which it does not choose for .MHD
        offset = last.end() if inside else int(entries.get("HeaderSize", "0"))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from error
    compressed = entries.get("CompressedData", "").lower().startswith(("t", "1"))
    header = Header(reader.GetSize(), type_of(reader), reader.GetNumberOfComponents(), data, compressed, offset)
    shape = " x ".join(map(str, header.size))
    if min(header.size) < 1:
        raise ValueError(f"{path} is empty ({shape}), expected 1 or more pixels along every side")
    if math.prod(header.size) > MOST_PIXELS:
        raise ValueError(f"{path} says that it is {shape}, more than can be read; is the header damaged?")
    return header


def type_of(reader: SimpleITK.ImageFileReader) -> str:
    """Return the type of the values as NumPy names it; other types as SimpleITK does."""
    return TYPES.get(reader.GetPixelID(), SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()))


def check_values(header: Header) -> None:
    """Refuse a file of values of one component that holds fewer or more of them than the header says."""
    expected = math.prod(header.size) * np.dtype(header.type).itemsize
    if header.compressed:
        with header.data.open("rb") as file:
            file.seek(max(header.offset, 0))
            held = unpacked_bytes(file, header.data, enough=expected + 1)
    else:
        held = header.data.stat().st_size - max(header.offset, 0)
        expected = min(held, expected) if header.offset < 0 else expected
    if held != expected:
        shape = " x ".join(map(str, header.size))
        more = " or more" if held > expected and header.compressed else ""
        raise ValueError(
            f"{header.data} holds {held}{more} bytes of values, expected {expected} ({shape} of {header.type});"
            f" is it {'cut' if held < expected else 'of another volume'}?"
        )


def unpacked_bytes(file: BinaryIO, path: Path, enough: int) -> int:
    """Count the bytes that zlib or gzip data hold, up to ``enough``, without keeping them."""
    stream = zlib.decompressobj(wbits=47)
    held = 0
    try:
        while held < enough and not stream.eof and (packed := stream.unconsumed_tail or file.read(PIECE)):
            held += len(stream.decompress(packed, PIECE))
    except zlib.error as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); copy it again") from error
    return held


def read_slice(path: Path, scan: int) -> NDArray[Any]:
    """Read one slice (height, width) of a volume; of an uncompressed one, no more than that is read."""
    try:
        reader = read_information(path)
        width, height, _ = reader.GetSize()
        reader.SetExtractIndex((0, 0, scan))
        reader.SetExtractSize((width, height, 0))
        return SimpleITK.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise ValueError(f"{path} could be read before and now cannot: {str(error).splitlines()[-1]}") from error
