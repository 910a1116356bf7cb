"""NIfTI files (.nii, .nii.gz): whether they hold what their header says; SimpleITK reads what a cut file lacks as 0."""

from __future__ import annotations

import math
from pathlib import Path

from examples.data.files import read_information
from examples.data.retouch.mhd import MOST_PIXELS, type_of, unpacked_bytes

ONE_FILE = "1"  # nifti_type where header and values are in the same file


def read_nifti_header(path: Path) -> tuple[tuple[int, ...], str, int]:
    """Return size (x, y, z), type of the values as NumPy names it, and values a voxel."""
    try:
        reader = read_information(path, "NiftiImageIO")
        told = {name: reader.GetMetaData(name) for name in ("nifti_type", "bitpix", "vox_offset")}
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from error
    if told["nifti_type"] != ONE_FILE:
        raise ValueError(f"{path} cannot be read: it has no header of a NIfTI file that holds its values as well")
    size, bits = reader.GetSize(), int(told["bitpix"])
    shape = " x ".join(map(str, size))
    if not 0 < math.prod(size) <= MOST_PIXELS:
        raise ValueError(f"{path} says that it is {shape}, none or more than can be read; is the header damaged?")
    expected = int(float(told["vox_offset"])) + math.prod(size) * bits // 8
    if path.name.lower().endswith(".gz"):
        with path.open("rb") as file:
            held = unpacked_bytes(file, path, enough=expected)
    else:
        held = path.stat().st_size
    if held < expected:
        raise ValueError(f"{path} holds {held} bytes, expected {expected} ({shape} of {bits} bits); is it cut?")
    return size, type_of(reader), reader.GetNumberOfComponents()
