"""The volumes of RETOUCH on disk: found, checked and counted."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import SimpleITK
import torch
from numpy.typing import NDArray
from rich.progress import track

from examples.config import Vendor
from examples.data.base import digest
from examples.data.retouch.mhd import check_values, read_header, read_slice

CLASSES = ("IRF", "SRF", "PED")  # values 1, 2, 3 of a reference
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
VENDORS: tuple[Vendor, ...] = get_args(Vendor)
TRAINING_IDS: dict[Vendor, range] = {"cirrus": range(1, 25), "spectralis": range(25, 49), "topcon": range(49, 71)}


@dataclass(frozen=True, eq=False)
class Volume:
    """One OCT volume with its reference."""

    id: str  # name of its folder
    folder: Path  # holds oct.mhd and reference.mhd
    size: tuple[int, int, int]  # width, height and number of its B-scans
    type: str  # of the intensities: uint8 or uint16
    pixels: tuple[tuple[int, ...], ...]  # of each class, by B-scan
    digests: tuple[str, ...]  # of the references, by B-scan

    def read_scan(self, scan: int) -> NDArray[Any]:
        """Read the intensities (height, width) of one B-scan."""
        return read_slice(self.folder / "oct.mhd", scan)

    def read_reference(self, scan: int) -> NDArray[Any]:
        """Read the class ids (height, width) of one B-scan."""
        return read_slice(self.folder / "reference.mhd", scan)


@dataclass
class Survey:
    """What was found below a root."""

    volumes: list[Volume] = field(default_factory=list)  # those of the vendor that can be used, sorted by id
    errors: list[str] = field(default_factory=list)  # why others cannot, one line each
    notes: list[str] = field(default_factory=list)  # what else is worth knowing, one line each


def survey(root: Path, vendor: Vendor) -> Survey:
    """Find a vendor's volumes, and read and check each."""
    found = Survey()
    folders = find_volumes(root, vendor, found)
    for folder in track(folders, "reading volumes", transient=True, disable=not sys.stderr.isatty()):
        try:
            found.volumes.append(examine(folder))
        except ValueError as error:
            found.errors.append(str(error))
    found.volumes.sort(key=lambda volume: volume.id)
    return found


def find_volumes(root: Path, vendor: Vendor, found: Survey) -> list[Path]:
    """Find the folders of a vendor's volumes; add to ``found`` what is wrong with others."""
    if not root.is_dir():
        raise FileNotFoundError(f"root: {root} is not a folder")
    # What is hidden is no volume: copies that file systems keep, or one that is being written.
    seen = [path for path in root.rglob("*") if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    folders = sorted({path.parent for path in seen if path.name in ("oct.mhd", "reference.mhd")})
    named = (path for path in seen if re.fullmatch(r"TRAIN\d+", path.name) and path.is_dir())
    folders += sorted(path for path in named if not any(folder.is_relative_to(path) for folder in folders))
    vendors: Counter[str] = Counter()
    chosen: dict[str, Path] = {}
    tests = 0
    for folder in folders:
        if folder.name.upper().startswith("TEST") and not (folder / "reference.mhd").exists():
            tests += 1
            continue
        try:
            by = vendor_of(folder, root)
        except ValueError as error:
            found.errors.append(str(error))
            continue
        vendors[by] += 1
        if by != vendor:
            continue
        if folder.name in chosen:
            found.errors.append(f"{chosen[folder.name]} and {folder} are both {folder.name}; keep one below --root")
        elif missing := [name for name in ("oct.mhd", "reference.mhd") if not (folder / name).is_file()]:
            found.errors.append(f"{folder / missing[0]} is missing")
        chosen.setdefault(folder.name, folder)
    if not folders:
        raise FileNotFoundError(
            f"root: {root} holds no volume: expected a folder with oct.mhd and reference.mhd below it"
        )
    if not chosen and not found.errors:
        others = ", ".join(f"{count} of {name.capitalize()}" for name, count in sorted(vendors.items()))
        raise FileNotFoundError(
            f"root: {root} holds no {vendor.capitalize()} volume with a reference, but"
            f" {others or 'only volumes of the test set'}; pass another --vendor or --root"
        )
    if tests:
        found.notes.append(f"{tests} volumes of the test set, which have no reference, are left out")
    return [folder for folder in chosen.values() if all((folder / f).is_file() for f in ("oct.mhd", "reference.mhd"))]


def vendor_of(folder: Path, root: Path) -> Vendor:
    """Return the vendor that the nearest folder up to the root names, or else the id."""
    for parent in (folder, *folder.parents):
        named = [vendor for vendor in VENDORS if vendor in parent.resolve().name.lower()]
        if len(named) == 1:
            return named[0]
        if parent == root:
            break
    if number := re.fullmatch(r"TRAIN(\d+)", folder.name):
        for vendor, ids in TRAINING_IDS.items():
            if int(number[1]) in ids:
                return vendor
    raise ValueError(
        f"{folder} does not tell its vendor: neither a folder above it is called"
        f" {', '.join(v.capitalize() for v in VENDORS)}, nor is {folder.name} an id of the training set; name a folder"
        " after the vendor"
    )


def examine(folder: Path) -> Volume:
    """Read a whole volume once."""
    paths = folder / "oct.mhd", folder / "reference.mhd"
    oct_header, header = (read_header(path) for path in paths)
    for path, this in zip(paths, (oct_header, header), strict=True):
        if len(this.size) != 3:
            raise ValueError(f"{path} has {len(this.size)} dimensions, expected 3: width, height, B-scans")
    if oct_header.type not in ("uint8", "uint16"):
        raise ValueError(f"{paths[0]} holds {oct_header.type}, expected uint8 or uint16 (MET_UCHAR, MET_USHORT)")
    if header.type not in INTEGERS:
        raise ValueError(f"{paths[1]} holds {header.type}, expected integers (MET_UCHAR)")
    if header.size != oct_header.size:
        shapes = [" x ".join(map(str, this.size)) for this in (header, oct_header)]
        raise ValueError(f"{paths[1]} is {shapes[0]} and oct.mhd beside it {shapes[1]}; expected the same")
    check_values(oct_header)
    check_values(header)
    reference = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(paths[1])))
    if wrong := sorted(set(np.unique(reference).tolist()) - set(range(len(CLASSES) + 1))):
        where = int((reference == wrong[-1]).any((1, 2)).argmax())
        raise ValueError(
            f"{paths[1]} holds the value {wrong[-1]} (first in B-scan {where}), expected 0 to {len(CLASSES)}:"
            f" background, {', '.join(CLASSES)}"
        )
    width, height, b_scans = oct_header.size
    return Volume(
        id=folder.name,
        folder=folder,
        size=(width, height, b_scans),
        type=oct_header.type,
        pixels=tuple(tuple(int((ids == c + 1).sum()) for c in range(len(CLASSES))) for ids in reference),
        digests=tuple(digest(torch.from_numpy(ids)) for ids in reference),
    )
