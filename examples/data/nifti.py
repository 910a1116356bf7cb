"""NIfTI files (.nii, .nii.gz): whether they hold what their header says; SimpleITK reads what a cut file lacks as 0."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

from examples.data.files import read_information
from examples.data.retouch.mhd import MOST_PIXELS, type_of, unpacked_bytes

LONGEST_HEADER = 544  # bytes, of NIfTI-2
# Bytes of the header -> where bits per voxel (int16) and the offset of the values are; the offset's type; the mark.
FORMS = {348: (72, 108, "f", 344, b"n+1\0"), 540: (14, 168, "q", 4, b"n+2\0")}


def read_nifti_header(path: Path) -> tuple[tuple[int, ...], str, int]:
    """Return size (x, y, z), type of the values as NumPy names it, and values a voxel."""
    packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            start = file.read(LONGEST_HEADER)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); copy it again") from error
    for order in "<>":
        form = FORMS.get(struct.unpack(f"{order}i", start[:4])[0]) if len(start) >= LONGEST_HEADER else None
        if form and start[form[3] : form[3] + 4] == form[4]:
            break
    else:
        raise ValueError(f"{path} cannot be read: it has no header of a NIfTI file that holds its values as well")
    try:
        reader = read_information(path, "NiftiImageIO")
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from error
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    shape = " x ".join(map(str, size))
    if not 0 < math.prod(size) <= MOST_PIXELS:
        raise ValueError(f"{path} says that it is {shape}, none or more than can be read; is the header damaged?")
    bits = struct.unpack_from(f"{order}h", start, form[0])[0]
    expected = int(struct.unpack_from(f"{order}{form[2]}", start, form[1])[0]) + math.prod(size) * bits // 8
    if packed:
        with path.open("rb") as file:
            held = unpacked_bytes(file, path, enough=expected)
    else:
        held = path.stat().st_size
    if held < expected:
        raise ValueError(f"{path} holds {held} bytes, expected {expected} ({shape} of {bits} bits); is it cut?")
    return size, type_of(reader), components
