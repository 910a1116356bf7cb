"""Your own images: a folder with ``images/`` and ``masks/``, which go together by name without suffix.

Masks are of either kind:

* one for each image, ``masks/a.png``, whose values are class ids, 0 the background: classes exclude each other;
* one for each label and image, ``masks/lung/a.png``, 0 where the label is not: labels may overlap.

Images without a mask are unlabelled. The README tells the rest: ``classes.txt``, ``splits.json``, groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.config import Config
from examples.data.base import IGNORE_INDEX, Dataset, ImageSet, Original, to_unit_range
from examples.data.folder.split import draw_split, find_groups, read_split, training_images
from examples.data.jsrt import open_image, skip_unreadable
from examples.data.resize import Placement, pad, resize, shown_sides
from examples.engine.distributed import resolve_device

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
GREY_MODES = ("L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
MAX_CLASS = 254


@dataclass(frozen=True)
class Contents:
    """All that a folder holds, before it is divided."""

    images: ImageSet
    labelled: list[str]  # names of those with a mask
    class_names: tuple[str, ...]
    multilabel: bool
    skipped: str  # how many cannot be read, in words

    @property
    def found(self) -> str:
        return f"{len(self.images)} images ({len(self.labelled)} labelled)"

    def part(self, names: Iterable[str]) -> ImageSet:
        position = {name: i for i, name in enumerate(self.images.names)}
        return self.images[[position[name] for name in names]]

    def dataset(
        self, found: str, labeled: ImageSet, unlabeled: ImageSet, validation: ImageSet, test: ImageSet
    ) -> Dataset:
        return Dataset(
            labeled=labeled,
            unlabeled=unlabeled,
            validation=validation,
            test=test,
            class_names=self.class_names,
            flip_pairs=find_flip_pairs(self.class_names),
            multilabel=self.multilabel,
            found=found,
            # Class maps often hold rare classes, absent from most images.
            score="miou" if self.multilabel else "miou_pooled",
        )


def load(config: Config) -> Dataset:
    """Reads the images and masks below ``config.root`` and divides them for a run."""
    contents = read_contents(config)
    assert config.root is not None  # or nothing would have been read
    groups = find_groups(contents.images.names, config.group_pattern)
    labels = dict(zip(contents.images.names, contents.images.labels, strict=True))
    shown = {name: classes_shown(labels[name], contents.class_names) for name in contents.labelled}
    if (config.root / "splits.json").is_file():
        split = read_split(
            config.root / "splits.json", shown, groups, contents.class_names, config.labeled, config.split
        )
    else:
        split = draw_split(shown, groups, contents.class_names, config.labeled, config.split)
    train = training_images(split, groups)
    found = contents.found
    found += f" of {len(set(groups.values()))} groups" if config.group_pattern else ""
    found += contents.skipped
    found += f"; {len(train)} train, {len(split['validation'])} validation, {len(split['test'])} test"
    if left_out := len(groups) - len(train) - len(split["validation"]) - len(split["test"]):
        found += f", {left_out} left out because their group is in validation or test"
    parts = map(contents.part, (split["labeled"], train, split["validation"], split["test"]))
    return contents.dataset(found, *parts)


def load_undivided(config: Config) -> Dataset:
    """Reads the images and masks below ``config.root``; every part is all of those with a mask."""
    contents = read_contents(config)
    images = contents.part(contents.labelled).to(resolve_device(config.device))
    found = f"{contents.found}{contents.skipped}, not divided"
    return contents.dataset(found, images, images, images, images)


def read_contents(config: Config) -> Contents:
    root = config.root
    if root is None:
        raise ValueError("root: None, but folder is read from disk; pass --root FOLDER (images/ and masks/ in it)")
    images = files_by_stem(root / "images")
    if not images:
        raise FileNotFoundError(f"root: {root / 'images'} holds no image ({', '.join(SUFFIXES)})")
    skipped = ""
    if config.skip_unreadable:
        folders = label_folders(root / "masks") or [root / "masks"]
        files = [images, *map(files_by_stem, folders)]
        images, skipped = skip_unreadable(images, lambda stem: [open_image(of[stem]) for of in files if stem in of])
    names = read_names(root / "classes.txt")
    if multilabel := any(label_folders(root / "masks")):
        labels, class_names, labelled, read_original = read_label_masks(root, images, names, config.image_size)
    else:
        labels, class_names, labelled, read_original = read_class_maps(root, images, names, config.image_size)
    everything = ImageSet(
        images=torch.stack([to_unit_range(read_image(path, config.image_size)) for path in images.values()])[:, None],
        labels=labels,
        names=tuple(images),
        shown=torch.stack([shown_pixels(path, config.image_size) for path in images.values()]),
        originals=tuple(
            Original(whole_image(path, config.image_size), partial(read_original, stem))
            for stem, path in images.items()
        ),
    )
    return Contents(everything, labelled, class_names, multilabel, skipped)


def classes_shown(label: Tensor, class_names: tuple[str, ...]) -> frozenset[str]:
    """The classes that occur in one image's labels, (C, H, W) or (H, W)."""
    if label.ndim == 3:
        there = label.eq(1).flatten(1).any(1).tolist()
    else:
        ids = set(label.unique().tolist())
        there = [c in ids for c in range(1, len(class_names) + 1)]
    return frozenset(name for name, is_there in zip(class_names, there, strict=True) if is_there)


def files_by_stem(folder: Path) -> dict[str, Path]:
    """Name without suffix -> image file, sorted by name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"root: {folder} is not a folder; expected images/ and masks/ below --root")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in files:
                raise ValueError(f"{files[path.stem]} and {path} have the same name; expected one file for {path.stem}")
            files[path.stem] = path
    return dict(sorted(files.items()))


def label_folders(masks: Path) -> list[Path]:
    """The sub-folders with masks of one label each, sorted."""
    if not masks.is_dir():
        raise FileNotFoundError(f"root: {masks} is not a folder; expected images/ and masks/ below --root")
    folders = [path for path in sorted(masks.iterdir()) if path.is_dir() and files_by_stem(path)]
    if folders and (loose := files_by_stem(masks)):
        raise ValueError(
            f"{masks} holds both {folders[0].name}/ and {next(iter(loose.values())).name}; expected either one mask"
            " for each image or one sub-folder for each label"
        )
    return folders


def find_masks(folder: Path, images: Mapping[str, Path]) -> dict[str, Path]:
    """Name -> mask, each of which has its image; those of images that are skipped are skipped as well."""
    masks = files_by_stem(folder)
    there = files_by_stem(next(iter(images.values())).parent)
    if without := [path for stem, path in masks.items() if stem not in there]:
        raise FileNotFoundError(
            f"{without[0]} has no image ({len(without)} of the {len(masks)} masks in {folder}):"
            f" expected images/{without[0].stem}.png or another suffix"
        )
    return {stem: path for stem, path in masks.items() if stem in images}


def read_names(path: Path) -> tuple[str, ...] | None:
    """The class names, one a line; None where there is no such file."""
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path} holds {len(names)} names, {len(set(names))} different ones; expected one a class")
    return names


def find_flip_pairs(names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Classes whose names differ in right and left only: they change places in a mirrored image."""
    mirrored = [name.replace("right", "left") for name in names]
    return tuple((i, names.index(m)) for i, m in enumerate(mirrored) if m != names[i] and m in names)


def read_label_masks(
    root: Path, images: Mapping[str, Path], names: tuple[str, ...] | None, size: int
) -> tuple[Tensor, tuple[str, ...], list[str], Callable[[str], Tensor]]:
    """Masks of overlapping labels.

    Returns:
        Labels (N, C, size, size) int8, all ignored for images without a mask; class names; images with a mask; a reader
        of labels at the original size by image.
    """
    folders = {path.name: path for path in label_folders(root / "masks")}
    names = names or tuple(folders)
    if set(names) != set(folders):
        raise ValueError(
            f"{root / 'classes.txt'} names {', '.join(names)}, but the folders in {root / 'masks'} are"
            f" {', '.join(folders)}; expected the same"
        )
    masks = [find_masks(folders[name], images) for name in names]
    labelled = set().union(*masks)
    labels = np.full((len(images), len(names), size, size), IGNORE_INDEX, dtype=np.int8)
    for label, stem in zip(labels, images, strict=True):
        if stem not in labelled:
            continue
        original = open_image(images[stem]).size
        label[:] = pad(np.zeros(shown_sides(original, size), np.int8), size, IGNORE_INDEX)
        for channel, of_label in zip(label, masks, strict=True):
            if stem in of_label:
                mask = Image.fromarray(read_binary(of_label[stem], original, images[stem]).astype(np.float32))
                channel[:] = pad(resize(mask, size, Image.Resampling.BOX) > 0.5, size, IGNORE_INDEX)

    def read_original(stem: str) -> Tensor:
        size = open_image(images[stem]).size
        absent = np.full(size[::-1], 0 if stem in labelled else IGNORE_INDEX, np.int8)
        covered = [read_binary(of[stem], size, images[stem]).astype(np.int8) if stem in of else absent for of in masks]
        return torch.from_numpy(np.stack(covered))

    return torch.from_numpy(labels), names, sorted(labelled), read_original


def read_class_maps(
    root: Path, images: Mapping[str, Path], names: tuple[str, ...] | None, size: int
) -> tuple[Tensor, tuple[str, ...], list[str], Callable[[str], Tensor]]:
    """Masks of classes that exclude each other.

    Returns:
        Labels (N, size, size) int64, all ignored for images without a mask; class names; images with a mask; a reader
        of labels at the original size by image.
    """
    masks = find_masks(root / "masks", images)
    if not masks:
        raise FileNotFoundError(f"root: {root / 'masks'} holds no mask, neither for each image nor in folders by label")
    labels = np.full((len(images), size, size), IGNORE_INDEX, dtype=np.int64)
    first_with: dict[int, Path] = {}  # value -> the first mask that holds it
    for label, stem in zip(labels, images, strict=True):
        if stem in masks:
            ids = read_ids(masks[stem], open_image(images[stem]).size, images[stem])
            for value in np.unique(ids).tolist():
                first_with.setdefault(value, masks[stem])
            label[:] = pad(resize(Image.fromarray(ids), size, Image.Resampling.NEAREST), size, IGNORE_INDEX)
    one = 255 if set(first_with) <= {0, 255} else 1
    if one == 255:
        labels[labels == 255] = 1
        first_with = {value // 255: path for value, path in first_with.items()}
    check_ids(first_with, names, root)
    names = names or tuple(f"class{c}" for c in range(1, max(first_with) + 1))

    def read_original(stem: str) -> Tensor:
        size = open_image(images[stem]).size
        if stem not in masks:
            return torch.full(size[::-1], IGNORE_INDEX)
        return torch.from_numpy(read_ids(masks[stem], size, images[stem])).long() // one

    return torch.from_numpy(labels), names, list(masks), read_original


def check_ids(first_with: Mapping[int, Path], names: tuple[str, ...] | None, root: Path) -> None:
    """Refuses masks whose values are not class ids 0, 1, 2, ..., C without a gap."""
    highest, lowest = max(first_with), min(first_with)
    if lowest < 0 or highest > MAX_CLASS:
        value = lowest if lowest < 0 else highest
        raise ValueError(
            f"{first_with[value]} holds the value {value}, expected class ids 0 (background) to {MAX_CLASS};"
            " 255 is understood as class 1 only where all masks hold nothing but 0 and 255"
        )
    if not highest:
        raise ValueError(f"{root / 'masks'}: all masks are 0 everywhere, expected values of 1 or more, the class ids")
    if names is not None and highest > len(names):
        raise ValueError(
            f"{first_with[highest]} holds the value {highest}, but {root / 'classes.txt'} names {len(names)} classes"
        )
    if names is None and (gaps := [value for value in range(1, highest) if value not in first_with]):
        raise ValueError(
            f"{first_with[highest]} holds the value {highest}, but no mask holds {gaps[0]}: expected class ids"
            f" 0 (background), 1, 2, ... without a gap; renumber them, or name all classes in {root / 'classes.txt'}"
        )


def read_image(path: Path, size: int) -> Tensor:
    """One image, grey, in the middle of (size, size); what is left is filled with its darkest value."""
    return to_square(open_grey(path), size)


def to_square(image: Image.Image, size: int) -> Tensor:
    """The same of an image that is open."""
    shown = resize(image, size, Image.Resampling.BOX)
    return torch.from_numpy(pad(shown, size, shown.min()))


def open_grey(path: Path) -> Image.Image:
    image = open_image(path)
    return (image if image.mode in GREY_MODES else image.convert("L")).convert("F")


def shown_pixels(path: Path, size: int) -> Tensor:
    """Where in (size, size) the image is, bool; the rest is padding."""
    return torch.from_numpy(pad(np.ones(shown_sides(open_image(path).size, size), dtype=bool), size, 0)) == 1


def whole_image(path: Path, size: int) -> Placement:
    width, height = open_image(path).size
    return Placement(height, width, size)


def read_ids(path: Path, size: tuple[int, int], image: Path) -> NDArray[np.int32]:
    """A mask's values at full size; those of a palette image are its indices, whatever colours they stand for."""
    mask = open_mask(path, size, image)
    values = np.array(mask)
    if values.ndim == 3:
        colours = values[..., : {"RGBA": 3, "LA": 1, "PA": 1}.get(mask.mode)]  # without transparency
        if (colours != colours[..., :1]).any():
            raise ValueError(
                f"{path} is a colour image (mode {mask.mode}), expected a grey or palette one of class ids"
            )
        values = colours[..., 0]
    ids = values.astype(np.int32)
    if (ids != values).any():
        raise ValueError(f"{path} holds fractions, expected class ids 0, 1, 2, ...")
    return ids


def read_binary(path: Path, size: tuple[int, int], image: Path) -> NDArray[np.bool_]:
    """A label's mask at full size: all that is not black."""
    mask = open_mask(path, size, image)
    values = np.array(mask if mask.mode in ("1", *GREY_MODES) else mask.convert("RGB"))
    covered: NDArray[np.bool_] = np.atleast_3d(values).max(2) > 0
    return covered


def open_mask(path: Path, size: tuple[int, int], image: Path) -> Image.Image:
    mask = open_image(path)
    if mask.size != size:
        raise ValueError(
            f"{path} is {mask.width} x {mask.height} pixels and {image} is {size[0]} x {size[1]}; expected the same"
        )
    return mask
