"""The volumes of RETOUCH on disk: found, checked and counted once, and remembered in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import SimpleITK
import torch
from numpy.typing import NDArray
from rich.progress import track

from examples.config import RetinaView, Vendor
from examples.data.base import digest
from examples.data.resize import Placement
from examples.data.retouch import mhd, retina
from examples.data.retouch.mhd import check_values, read_header, read_slice
from examples.data.retouch.retina import Retina, find_retina, scale
from examples.data.splits.draw_retouch import TRAINING_IDS

CLASSES = ("IRF", "SRF", "PED")  # values 1, 2, 3 of a reference
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
VENDORS: tuple[Vendor, ...] = get_args(Vendor)
HEIGHTS: dict[tuple[int, str], Vendor] = {  # and types of B-scans
    (496, "uint16"): "spectralis",
    (1024, "uint8"): "cirrus",
    (650, "uint8"): "topcon",
    (885, "uint8"): "topcon",
}


@dataclass(frozen=True, eq=False)
class Volume:
    """One OCT volume with its reference.

    Attributes:
        id: Name of its folder.
        folder: Holds oct.mhd and reference.mhd.
        size: Width, height and number of its B-scans.
        type: Of the intensities, uint8 or uint16.
        pixels: For every B-scan, how many of its pixels are of each class.
        retinas: For every B-scan, where the retina was found.
        lost: Ways to look at the retina -> pixels of classes that lie outside what is kept.
        digests: For every B-scan, a hash of its reference.
    """

    id: str
    folder: Path
    size: tuple[int, int, int]
    type: str
    pixels: tuple[tuple[int, ...], ...]
    retinas: tuple[Retina | None, ...]
    lost: dict[str, int]
    digests: tuple[str, ...]

    def placement(self, scan: int, view: RetinaView, size: int) -> Placement:
        """Return how a B-scan comes into a square; whole where its retina was not found."""
        width, height, _ = self.size
        return placed(height, width, self.retinas[scan], view, size)

    def read_scan(self, scan: int) -> NDArray[Any]:
        """Read the intensities (height, width) of one B-scan."""
        return read_slice(self.folder / "oct.mhd", scan)

    def read_reference(self, scan: int) -> NDArray[Any]:
        """Read the class ids (height, width) of one B-scan."""
        return read_slice(self.folder / "reference.mhd", scan)


def placed(height: int, width: int, found: Retina | None, view: RetinaView, size: int) -> Placement:
    """Return how a B-scan comes into a square; whole where its retina was not found."""
    if view == "whole" or found is None:
        return Placement(height, width, size)
    if view == "crop":
        return Placement(height, width, size, found.crop)
    return Placement(height, width, size, found.flat, found.shift(width))


@dataclass
class Survey:
    """What was found below a root.

    Attributes:
        volumes: Those of the vendor that can be used, sorted by id.
        errors: Why others cannot, one line each.
        notes: What else is worth knowing, one line each.
    """

    volumes: list[Volume] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def survey(root: Path, vendor: Vendor) -> Survey:
    """Find and check a vendor's volumes; those unchanged since the last time are remembered.

    Raises:
        FileNotFoundError: ``root`` is no folder, holds no volume or none of this vendor.
    """
    found = Survey()
    folders = find_volumes(root, vendor, found)
    path = cache_file(root, vendor)
    remembered = read_cache(path)
    entries: dict[str, Any] = {}
    new = []
    for folder in folders:
        name = str(folder.relative_to(root))
        try:
            stamp = stamp_of(folder)
        except ValueError as error:
            found.errors.append(str(error))
            continue
        if name in remembered and remembered[name]["stamp"] == stamp:
            entries[name] = remembered[name]
        else:
            new.append((name, folder, stamp))
    for name, folder, stamp in track(
        new, "reading volumes, once", transient=True, disable=not (new and sys.stderr.isatty())
    ):
        try:
            entries[name] = {"stamp": stamp, "volume": examine(folder)}
        except ValueError as error:
            found.errors.append(str(error))
    if entries != remembered:
        write_cache(path, entries)
    found.volumes = sorted((volume_from(root / name, entry["volume"]) for name, entry in entries.items()),
                           key=lambda volume: volume.id)  # fmt: skip
    return found


# --- files


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
    """Return the vendor that the nearest folder up to the root names, or else the id, or else shape and type.

    Raises:
        ValueError: none of them tells.
    """
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
    header = read_header(folder / "oct.mhd")
    if (header.size[1], header.type) in HEIGHTS:
        return HEIGHTS[header.size[1], header.type]
    raise ValueError(
        f"{folder / 'oct.mhd'} does not tell its vendor: neither a folder above it is called"
        f" {', '.join(v.capitalize() for v in VENDORS)}, nor is {folder.name} an id of the training set, nor is"
        f" {' x '.join(map(str, header.size))} {header.type} the shape of one; name a folder after the vendor"
    )


def examine(folder: Path) -> dict[str, Any]:
    """Read a whole volume once.

    Raises:
        ValueError: it is not what it should be; the message names the file.
    """
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
    scans, reference = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))) for path in paths)
    if wrong := sorted(set(np.unique(reference).tolist()) - set(range(len(CLASSES) + 1))):
        where = int((reference == wrong[-1]).any((1, 2)).argmax())
        raise ValueError(
            f"{paths[1]} holds the value {wrong[-1]} (first in B-scan {where}), expected 0 to {len(CLASSES)}:"
            f" background, {', '.join(CLASSES)}"
        )
    width, height, _ = oct_header.size
    volume = Volume(
        id=folder.name,
        folder=folder,
        size=(width, height, len(scans)),
        type=oct_header.type,
        pixels=tuple(tuple(int((ids == c + 1).sum()) for c in range(len(CLASSES))) for ids in reference),
        retinas=tuple(find_retina(scale(values)) for values in scans),
        lost={},
        digests=tuple(digest(torch.from_numpy(ids)) for ids in reference),
    )
    for view in get_args(RetinaView):
        kept = (volume.placement(i, view, 1).cut(ids, 0) for i, ids in enumerate(reference))
        volume.lost[view] = int((reference > 0).sum()) - sum(int((ids > 0).sum()) for ids in kept)
    entry = asdict(volume)
    del entry["id"], entry["folder"]
    return json.loads(json.dumps(entry))


def volume_from(folder: Path, entry: Mapping[str, Any]) -> Volume:
    """Return a volume as :func:`examine` found it."""
    fields = {name: as_tuples(value) for name, value in entry.items()}
    fields["retinas"] = tuple(found and Retina(*found) for found in fields["retinas"])
    return Volume(folder.name, folder, **fields)


def as_tuples(value: Any) -> Any:
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


# --- the index of what was examined


def stamp_of(folder: Path) -> dict[str, list[int]]:
    """Return the size and time of the last change of all files of a volume."""
    headers = folder / "oct.mhd", folder / "reference.mhd"
    files: Iterable[Path] = (*headers, *(read_header(path).data for path in headers))
    return {os.path.relpath(path, folder): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def cache_file(root: Path, vendor: Vendor) -> Path:
    """Return where the index of a root is kept; another one for another version of the code that makes it."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    key = hashlib.sha256(f"{root.resolve()}\n{vendor}\n".encode())
    for source in (__file__, str(mhd.__file__), str(retina.__file__)):
        key.update(Path(source).read_bytes())
    return Path(folder, "rpg_loss", f"retouch-{key.hexdigest()[:20]}.json")


def read_cache(path: Path) -> dict[str, Any]:
    """Read volumes by folder; none where there is no index or a damaged one."""
    try:
        digest, _, text = path.read_text().partition("\n")
    except (OSError, ValueError):
        return {}
    whole = digest == hashlib.sha256(text.encode()).hexdigest()
    return json.loads(text) if whole else {}


def write_cache(path: Path, entries: Mapping[str, Any]) -> None:
    """Write aside and rename, so that another process reads the old index or the new one."""
    text = json.dumps(entries)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
            os.replace(aside, path)
        except OSError:
            os.unlink(aside)
            raise
    except OSError as error:
        print(f"note: the index of the volumes cannot be kept ({error}); they are read anew each time", file=sys.stderr)
