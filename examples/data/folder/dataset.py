"""Your own images: a folder with ``images/`` and ``masks/``, which go together by name without suffix.

Masks are of either kind:

* one for each image, ``masks/a.png``, whose values are class ids, 0 the background: classes exclude each other;
* one for each label and image, ``masks/lung/a.png``, 0 where the label is not: labels may overlap.

Images without a mask are unlabeled. docs/trainer/folder.md tells the rest: groups, names of classes, and files that
decide the division.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from examples.config import Config
from examples.data.base import Dataset, ImageSet, Original, to_unit_range
from examples.data.files import image_size, open_image, read_values, skip_unreadable
from examples.data.folder.masks import (
    files_by_stem,
    find_masks,
    label_folders,
    list_images,
    read_class_maps,
    read_label_masks,
    read_names,
)
from examples.data.folder.split import (
    draw_around,
    draw_split,
    find_groups,
    read_list,
    read_split,
    training_images,
)
from examples.data.resize import Placement, to_square


@dataclass(frozen=True)
class Contents:
    """All that a folder holds, before it is divided."""

    images: ImageSet
    labeled: list[str]  # names of those with a mask
    class_names: tuple[str, ...]
    multilabel: bool
    skipped: str  # how many cannot be read, in words

    @property
    def found(self) -> str:
        return f"{len(self.images)} images ({len(self.labeled)} labeled)"

    def part(self, names: Iterable[str]) -> ImageSet:
        position = {name: i for i, name in enumerate(self.images.names)}
        return self.images[[position[name] for name in names]]

    def dataset(
        self, found: str, labeled: ImageSet, unlabeled: ImageSet, validation: ImageSet, test: ImageSet
    ) -> Dataset:
        return Dataset(
            labeled, unlabeled, validation, test, self.class_names, find_flip_pairs(self.class_names), self.multilabel,
            found,
            # Class maps often hold rare classes, absent from most images.
            score="miou" if self.multilabel else "miou_pooled",
        )  # fmt: skip


def load(config: Config) -> Dataset:
    """Read the images and masks below ``config.root`` and divide them for a run."""
    contents = read_contents(config)
    assert config.root is not None  # or nothing would have been read
    groups = find_groups(contents.images.names, config.group_pattern)
    labels = dict(zip(contents.images.names, contents.images.labels, strict=True))
    shown = {name: classes_shown(labels[name], contents.class_names) for name in contents.labeled}
    chosen = read_list(config.root / "labeled.txt", shown, " with a mask")
    listed = read_list(config.root / "unlabeled.txt", groups, "")
    if (config.root / "splits.json").is_file():
        if chosen:
            raise ValueError(f"{config.root} holds both splits.json and labeled.txt, expected one of them; remove one")
        split = read_split(config.root / "splits.json", shown, groups, contents.class_names)
        if config.split != 0:
            raise ValueError(
                f"split: {config.split}, but {config.root}/splits.json holds a single one; pass --split 0, or remove it"
                " to draw splits"
            )
        check_number(len(split["labeled"]), config, "splits.json")
    elif chosen:
        check_number(len(chosen), config, "labeled.txt")
        split = draw_around(chosen, shown, groups, contents.class_names, config.split)
    else:
        split = draw_split(shown, groups, contents.class_names, config.labeled, config.split)
    train = training_images(split, groups, listed)
    found = contents.found
    found += f" of {len(set(groups.values()))} groups" if config.group_pattern else ""
    found += contents.skipped
    found += f"; {len(train)} train, {len(split['validation'])} validation, {len(split['test'])} test"
    if left_out := len(groups) - len(train) - len(split["validation"]) - len(split["test"]):
        reason = "because their group is in validation or test" + (", or unlabeled.txt names others" if listed else "")
        found += f", {left_out} left out {reason}"
    parts = map(contents.part, (split["labeled"], train, split["validation"], split["test"]))
    return contents.dataset(found, *parts)


def check_number(labeled: int, config: Config, file: str) -> None:
    if labeled != config.labeled:
        raise ValueError(f"labeled: {config.labeled}, but {config.root}/{file} names {labeled}; pass the same number")


def load_labeled(config: Config) -> tuple[Dataset, dict[str, Path]]:
    """Read the images with a mask alone, of which every part of the data set is all; and find the files of all."""
    images = list_images(checked_root(config))
    contents = read_contents(config, labeled_only=True)
    part = contents.part(contents.labeled)
    found = f"{len(images)} images ({len(part)} labeled){contents.skipped}"
    return contents.dataset(found, part, part, part, part), images


def checked_root(config: Config) -> Path:
    if config.root is None:
        raise ValueError("root: None, but folder is read from disk; pass --root FOLDER (images/ and masks/ in it)")
    return config.root


def read_contents(config: Config, *, labeled_only: bool = False) -> Contents:
    root = checked_root(config)
    images = list_images(root)
    if labeled_only:
        masks = [find_masks(folder, images) for folder in label_folders(root / "masks") or [root / "masks"]]
        images = {stem: path for stem, path in images.items() if any(stem in of for of in masks)}
        if not images:
            raise FileNotFoundError(f"root: {root / 'masks'} holds no mask; annotate a few images first")
    skipped = ""
    if config.skip_unreadable:
        folders = label_folders(root / "masks") or [root / "masks"]
        files = [images, *map(files_by_stem, folders)]
        images, skipped = skip_unreadable(images, lambda stem: [open_image(of[stem]) for of in files if stem in of])
    names = read_names(root / "classes.txt")
    if multilabel := any(label_folders(root / "masks")):
        labels, class_names, labeled, read_original = read_label_masks(root, images, names, config.image_size)
    else:
        labels, class_names, labeled, read_original = read_class_maps(root, images, names, config.image_size)
    sides = {stem: image_size(path) for stem, path in images.items()}
    placements = {stem: Placement(height, width, config.image_size) for stem, (width, height) in sides.items()}
    read = partial(read_values, channels=config.in_channels)
    squares = [to_unit_range(to_square(read(path), config.image_size)) for path in images.values()]
    everything = ImageSet(
        images=torch.stack(squares),
        labels=labels,
        names=tuple(images),
        shown=torch.stack([torch.from_numpy(placement.shown()) for placement in placements.values()]),
        originals=tuple(Original(of, partial(read_original, stem)) for stem, of in placements.items()),
    )
    return Contents(everything, labeled, class_names, multilabel, skipped)


def classes_shown(label: Tensor, class_names: tuple[str, ...]) -> frozenset[str]:
    """Return the classes that occur in one image's labels, (C, H, W) or (H, W)."""
    if label.ndim == 3:
        there = label.eq(1).flatten(1).any(1).tolist()
    else:
        ids = set(label.unique().tolist())
        there = [c in ids for c in range(1, len(class_names) + 1)]
    return frozenset(name for name, is_there in zip(class_names, there, strict=True) if is_there)


def find_flip_pairs(names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Find classes whose names differ in right and left only: they change places in a mirrored image."""
    folded = [name.casefold() for name in names]
    mirrored = [name.replace("right", "left") for name in folded]
    return tuple((i, folded.index(m)) for i, m in enumerate(mirrored) if m != folded[i] and m in folded)
