"""Look at a data set before training on it: what was found, what is wrong with it, and a sheet of pictures.

    python -m examples.data.check retouch --root PATH/TO/RETOUCH --retina flatten

All faults are listed; with any, the exit status is 1. Pictures are drawn where --out says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from matplotlib.patches import Patch
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from examples.command_line import ending_in_words
from examples.config import RetinaView, Vendor
from examples.data import jsrt
from examples.data.base import to_unit_range
from examples.data.files import image_size, is_colored, open_image, read_values
from examples.data.folder.masks import (
    files_by_stem,
    find_masks,
    label_folders,
    list_images,
    other_files,
    read_binary,
    read_class_maps,
    read_ids,
    read_label_masks,
    read_names,
)
from examples.data.folder.split import find_groups, read_list, read_split
from examples.data.retouch.index import CLASSES, Volume, survey
from examples.data.retouch.retina import placement, scale
from examples.engine.checkpoint import make_folder
from examples.engine.metrics import class_masks
from examples.logging.pictures import color, printable, show

PER_VOLUME, PER_DATASET = 3, 12  # pictures on the sheet
ACROSS = 4  # images in a row of the sheet, where rows are not volumes
SIDE = 256  # at which shares are measured of JSRT
ROWS = 60  # of the table
FINEST = 512  # side of a picture

Drawn = tuple[Tensor, Tensor]  # image (1 or 3, H, W) in [-1, 1] and masks (C, H, W) bool


@dataclass(frozen=True)
class Check:
    """What to look at."""

    dataset: tyro.conf.Positional[Literal["retouch", "jsrt", "folder"]]
    """As for examples.train."""

    root: Path
    """Folder that the data set is read from."""

    vendor: Vendor = "spectralis"
    """retouch: whose volumes."""

    retina: RetinaView = "whole"
    """retouch: look at what this cuts off, and draw every B-scan as it prepares it, too."""

    group_pattern: str | None = None
    """folder: regular expression; images whose names agree in its first group (a patient) make one row of the table."""

    out: Path | None = None
    """File for a sheet of pictures; none is drawn without it."""


@dataclass(frozen=True)
class Item:
    """One image or B-scan; ``pixels`` of every class, of ``area`` in all, are None where it has no mask."""

    name: str
    group: str
    width: int
    height: int
    type: str
    area: int
    pixels: Sequence[int] | None
    draw: Callable[[], list[Drawn]]  # in one or two ways


@dataclass
class Findings:
    """What there is to tell about a data set."""

    classes: Sequence[str]
    groups: str  # what a row of the table is
    items: list[Item] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def totals(self) -> list[int]:
        """Pixels of every class."""
        return [sum(item.pixels[c] for item in self.items if item.pixels) for c in range(len(self.classes))]

    def attempt(self, read: Callable[..., object], *arguments: object) -> bool:
        """Return whether something can be read; if not, the reason is among the errors."""
        try:
            read(*arguments)
        except (OSError, ValueError) as error:
            self.errors.append(str(error))
            return False
        return True


# --- what is found


def check_retouch(check: Check) -> Findings:
    found = survey(check.root, check.vendor)
    findings = Findings(CLASSES, "volume", notes=found.notes, errors=found.errors)
    missed: list[str] = []
    lost: dict[str, int] = {}  # volume -> pixels of classes that the view cuts off
    for volume in found.volumes:
        width, height, _ = volume.size
        for scan, pixels in enumerate(volume.pixels):
            name = f"{volume.id}_{scan:03d}"
            draw = partial(draw_scan, volume, scan, check.retina)
            findings.items.append(Item(name, volume.id, width, height, volume.type, width * height, pixels, draw))
            if check.retina != "whole":
                place = placement(scale(volume.read_scan(scan)), check.retina, size=1)
                missed += [f"{volume.id} B-scan {scan}"] * (place.rows is None)
                if cut := sum(pixels) - np.count_nonzero(place.cut(volume.read_reference(scan), 0)):
                    lost[volume.id] = lost.get(volume.id, 0) + int(cut)
    if missed:
        findings.notes.append(f"no retina found in {some(missed)}: they stay whole")
    if lost:
        findings.notes.append(
            f"--retina {check.retina} cuts {sum(lost.values())} pixels of fluid off, in {some(list(lost))}"
        )
    return findings


def draw_scan(volume: Volume, scan: int, view: RetinaView) -> list[Drawn]:
    """Draw a B-scan as it is and, if that is something else, as it is prepared."""
    image, ids = scale(volume.read_scan(scan)), volume.read_reference(scan).astype(np.int64)
    drawn = []
    for shown in dict.fromkeys(("whole", view)):
        place = placement(image, shown, size=1)
        masks = class_masks(torch.from_numpy(place.cut(ids, 0))[None], len(CLASSES))[0]
        drawn.append((torch.from_numpy(place.cut(image, -1))[None], masks))
    return drawn


def check_jsrt(check: Check) -> Findings:
    images, masks = jsrt.list_files(check.root)
    findings = Findings(jsrt.CLASSES, "set")

    def look(name: str) -> None:
        jsrt.check_masks(name, images[name], masks)
        (_, covered), *_ = draw_radiograph(name, images, masks)
        group = "first (odd)" if int(name[-3:]) % 2 else "second (even)"
        image = jsrt.open_radiograph(images[name])
        kind = "16 bit" if images[name].suffix == ".IMG" else open_image(images[name]).mode
        pixels, draw = covered.sum((1, 2)).tolist(), partial(draw_radiograph, name, images, masks)
        findings.items.append(Item(name, group, *image.size, kind, SIDE**2, pixels, draw))

    for name in track(images, "reading", transient=True, disable=not sys.stderr.isatty()):
        findings.attempt(look, name)
    findings.notes.append(f"shares are those at {SIDE} x {SIDE}")
    if len(images) != jsrt.ALL_IMAGES:
        findings.notes.append(f"{len(images)} of the {jsrt.ALL_IMAGES} images are there")
    return findings


def draw_radiograph(name: str, images: dict[str, Path], masks: dict[tuple[str, str], Path]) -> list[Drawn]:
    one = jsrt.read_set([name], images, masks, SIDE)
    return [(one.images[0], one.labels[0] == 1)]


def check_folder(check: Check) -> Findings:
    """Open every file first, to name all that cannot be read; what masks mean together needs all of them."""
    images = list_images(check.root)
    findings = Findings((), "group" if check.group_pattern else "image")
    of_labels = label_folders(check.root / "masks")
    mask_folders = of_labels or [check.root / "masks"]
    for folder in (check.root / "images", *mask_folders):
        if others := other_files(folder):
            findings.notes.append(f"{len(others)} entries of {folder} are not read: {some(others)}")
    readable = {stem: image_size(path) for stem, path in images.items() if findings.attempt(open_image, path)}
    for masks in mask_folders:
        findings.attempt(find_masks, masks, images)
        for stem, path in files_by_stem(masks).items():
            if stem in readable:
                findings.attempt(read_binary if of_labels else read_ids, path, readable[stem], images[stem])
    if not findings.errors:
        findings.attempt(look_at_masks, check, findings, images, bool(of_labels))
    return findings


def look_at_masks(check: Check, findings: Findings, images: dict[str, Path], of_labels: bool) -> None:
    """Add what masks and the files beside them mean, of which each can be read."""
    groups = find_groups(images, check.group_pattern)
    names = read_names(check.root / "classes.txt")
    together = read_label_masks if of_labels else read_class_maps
    _, classes, labeled, read_original = together(check.root, images, names, size=16)
    findings.classes = classes

    def draw(stem: str) -> list[Drawn]:
        image = to_unit_range(torch.from_numpy(read_values(images[stem], channels=3)))
        return [(image, class_masks(read_original(stem)[None], len(classes))[0])]

    shown: dict[str, frozenset[str]] = {}
    colored = 0
    for stem, path in images.items():
        image, pixels = open_image(path), None
        colored += is_colored(image)
        if stem in labeled:
            pixels = draw(stem)[0][1].sum((1, 2)).tolist()
            shown[stem] = frozenset(name for name, count in zip(classes, pixels, strict=True) if count)
        area = image.width * image.height
        findings.items.append(Item(stem, groups[stem], *image.size, image.mode, area, pixels, partial(draw, stem)))
    if unlabeled := len(images) - len(labeled):
        findings.notes.append(f"{unlabeled} images have no mask: they are unlabeled ones")
    if colored:
        findings.notes.append(f"{colored} images are in color: --color keeps it; without that, it becomes gray")
    read_list(check.root / "labeled.txt", shown, " with a mask")
    read_list(check.root / "unlabeled.txt", groups, "")
    if (splits := check.root / "splits.json").is_file():
        read_split(splits, shown, groups, classes)


CHECKS = {"retouch": check_retouch, "jsrt": check_jsrt, "folder": check_folder}


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# --- how it is shown


def table(findings: Findings) -> Table:
    """Return a row for each group: sizes, types, and for each class the images that show it and its share of pixels."""
    groups: dict[str, list[Item]] = {}
    for item in findings.items:
        groups.setdefault(item.group, []).append(item)
    rows = Table(findings.groups, "images", "size", "type", *(f"{name} in" for name in findings.classes), box=SIMPLE)
    for name, items in list(groups.items())[:ROWS]:
        rows.add_row(escape(name), *cells(items, findings.classes))
    if len(groups) > ROWS:
        rows.add_row(f"... {len(groups) - ROWS} more")
    rows.add_section()
    rows.add_row(f"all {len(groups)}", *cells(findings.items, findings.classes))
    return rows


def cells(items: Sequence[Item], classes: Sequence[str]) -> list[str]:
    labeled = [item for item in items if item.pixels is not None]
    area = sum(item.area for item in labeled)
    sizes = sorted({(item.width, item.height) for item in items})
    size = f"{sizes[0][0]} x {sizes[0][1]}" if len(sizes) == 1 else f"{len(sizes)} sizes"
    shown = []
    for c in range(len(classes)):
        counts = [item.pixels[c] for item in labeled if item.pixels]
        share = f" ({sum(counts) / area:.2%})" if any(counts) else ""
        shown.append(f"{sum(count > 0 for count in counts)}{share}" if labeled else "no mask")
    return [str(len(items)), size, ", ".join(sorted({item.type for item in items})), *shown]


def choose(items: Sequence[Item], number: int, by_rarity: Sequence[int]) -> list[Item]:
    """Choose for each class, rarest first, the image with most of it, then others at even distances; in their order."""
    chosen: dict[int, None] = {}
    labeled = [(item.pixels, i) for i, item in enumerate(items) if item.pixels is not None]
    for c in by_rarity:
        most, i = max(((pixels[c], -i) for pixels, i in labeled), default=(0, 0))  # the first of equals
        if most:
            chosen[-i] = None
    spaced = np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int).tolist()
    chosen |= dict.fromkeys(spaced)
    return [items[i] for i in sorted(list(chosen)[:number])]


def save_sheet(path: Path, findings: Findings) -> None:
    """Return a few images with their masks; of volumes, a few B-scans each, in a row."""
    by_rarity = sorted(range(len(findings.classes)), key=findings.totals.__getitem__)
    if findings.groups == "volume":
        groups = dict.fromkeys(item.group for item in findings.items)
        rows = [
            choose([item for item in findings.items if item.group == group], PER_VOLUME, by_rarity) for group in groups
        ]
    else:
        chosen = choose(findings.items, PER_DATASET, by_rarity)
        rows = [chosen[start : start + ACROSS] for start in range(0, len(chosen), ACROSS)]
    drawn = [[(item.name, picture) for item in row for picture in item.draw()] for row in rows]
    across = max(map(len, drawn))
    tallest = max(image.shape[1] / image.shape[2] for row in drawn for _, (image, _) in row)
    size = (2.2 * across, (2.1 * min(tallest, 2) + 0.25) * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), across, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for row, pictures in zip(axes, drawn, strict=True):
        for axis, (name, (image, masks)) in zip(row, pictures, strict=False):
            step = max(1, max(image.shape[1:]) // FINEST)
            show(axis, image[:, ::step, ::step], masks[:, ::step, ::step])
            axis.set_title(printable(name), fontsize=8)
    patches = [Patch(color=color(c), label=name) for c, name in enumerate(findings.classes)]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    make_folder(path.parent)
    figure.savefig(path, dpi=110, format=path.suffix[1:] or "png")  # left to itself it adds the suffix to the name
    plt.close(figure)


def report(check: Check) -> bool:
    """Print and draw what is found; whether the data can be used."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    findings = CHECKS[check.dataset](check)
    if findings.items:
        console.print(table(findings))
        absent = [name for name, total in zip(findings.classes, findings.totals, strict=True) if not total]
        findings.notes += [f"{name} does not occur" for name in absent]
        if check.out is not None:
            save_sheet(check.out, findings)
            console.print(f"pictures: {check.out}", soft_wrap=True, markup=False, highlight=False)
    for kind, lines in (("note", findings.notes), ("error", findings.errors)):
        for line in lines:
            console.print(f"{kind}: {line}", soft_wrap=True, markup=False, highlight=False)
    return not findings.errors


def main() -> None:
    check = tyro.cli(Check, description=__doc__, prog="python -m examples.data.check")
    with ending_in_words():
        usable = report(check)
    sys.exit(0 if usable else 1)


if __name__ == "__main__":
    main()
