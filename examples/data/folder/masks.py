"""The masks of a folder: of labels that may overlap, or of classes that exclude each other."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.data.base import IGNORE_INDEX
from examples.data.files import GRAY_MODES, SUFFIXES, image_size, open_image
from examples.data.resize import pad, resize, shown_sides

MAX_CLASS = 254
MAX_NAMED = 20  # masks in a message


def composed(name: str) -> str:
    """Return a name with each accented letter as one character: a Mac writes "u" and an accent in those of files."""
    return unicodedata.normalize("NFC", name)


def files_by_stem(folder: Path) -> dict[str, Path]:
    """Map names without suffix, composed, to image files, sorted by name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"root: {folder} is not a folder; expected images/ and masks/ below --root")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            stem = composed(path.stem)
            if stem in files:
                raise ValueError(f"{files[stem]} and {path} have the same name; expected one file for {stem}")
            files[stem] = path
    return dict(sorted(files.items()))


def list_images(root: Path) -> dict[str, Path]:
    """Map names to the images of a root."""
    folder = root / "images"
    images = files_by_stem(folder)
    if not images:
        deeper = (path for path in sorted(folder.glob("*/**/*")) if path.suffix.lower() in SUFFIXES)
        hint = ""
        if inside := next(deeper, None):
            hint = f"; those in its sub-folders, such as {inside.relative_to(folder)}, are not read: move them up"
        elif others := other_files(folder):
            hint = f"; {others[0]} is of a kind that is not read: convert it to .png or .tif"
        raise FileNotFoundError(f"root: {folder} holds no image ({', '.join(SUFFIXES)}){hint}")
    return images


def other_files(folder: Path) -> list[str]:
    """Return the names of what is in a folder and is not read, sorted."""
    visible = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return [path.name for path in visible if path.is_dir() or path.suffix.lower() not in SUFFIXES]


def label_folders(masks: Path) -> list[Path]:
    """Return the sub-folders with masks of one label each, sorted."""
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
    """Map names to masks, each of which has its image; those of images that are skipped are skipped as well."""
    masks = files_by_stem(folder)
    there = files_by_stem(next(iter(images.values())).parent)
    if without := [path for stem, path in masks.items() if stem not in there]:
        raise FileNotFoundError(
            f"{without[0]} has no image ({len(without)} of the {len(masks)} masks in {folder}):"
            f" expected images/{without[0].stem}.png or another suffix"
            f"{ending_hint([path.stem for path in without], there)}"
        )
    return {stem: path for stem, path in masks.items() if stem in images}


def ending_hint(masks: Iterable[str], images: Iterable[str]) -> str:
    """Say what masks have behind the names of their images, if they all have the same there."""
    endings = [{mask.removeprefix(image) for image in images if mask.startswith(image)} for mask in masks]
    common = sorted(set.intersection(*endings))
    return f"; name masks as their images are named, without {common[0]!r}" if common else ""


def read_lines(path: Path) -> list[str]:
    """Return the names in a file of UTF-8, with a byte order mark before them or without, one a line, composed."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}; save it as that") from error
    return [composed(line.strip()) for line in text.splitlines() if line.strip()]


def read_names(path: Path) -> tuple[str, ...] | None:
    """Read the class names, one a line; None where there is no such file."""
    if not path.is_file():
        return None
    names = tuple(read_lines(path))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path} holds {len(names)} names, {len(set(names))} different ones; expected one a class")
    return names


def is_line(name: str) -> bool:
    """Return whether a name can be a line of classes.txt."""
    return name.isprintable() and name == name.strip() and bool(name)


def read_label_masks(
    root: Path, images: Mapping[str, Path], names: tuple[str, ...] | None, size: int
) -> tuple[Tensor, tuple[str, ...], list[str], Callable[[str], Tensor]]:
    """Read masks of overlapping labels.

    Returns:
        Labels (N, C, size, size) int8, all ignored for images without a mask; class names; images with a mask; a reader
        of labels at the original size by image.
    """
    folders = {composed(path.name): path for path in label_folders(root / "masks")}
    if unfit := [name for name in folders if not is_line(name)]:
        raise ValueError(
            f"{root / 'masks'} has a folder {unfit[0]!r}, expected a name that is one line of a classes.txt; rename it"
        )
    names = names or tuple(folders)
    if set(names) != set(folders):
        raise ValueError(
            f"{root / 'classes.txt'} names {', '.join(names)}, but the folders in {root / 'masks'} are"
            f" {', '.join(folders)}; expected the same"
        )
    masks = [find_masks(folders[name], images) for name in names]
    labeled = set().union(*masks)
    labels = np.full((len(images), len(names), size, size), IGNORE_INDEX, dtype=np.int8)
    for label, stem in zip(labels, images, strict=True):
        if stem not in labeled:
            continue
        original = image_size(images[stem])
        label[:] = pad(np.zeros(shown_sides(original, size), np.int8), size, IGNORE_INDEX)
        for channel, of_label in zip(label, masks, strict=True):
            if stem in of_label:
                mask = Image.fromarray(read_binary(of_label[stem], original, images[stem]).astype(np.float32))
                channel[:] = pad(resize(mask, size, Image.Resampling.BOX) > 0.5, size, IGNORE_INDEX)

    def read_original(stem: str) -> Tensor:
        size = image_size(images[stem])
        absent = np.full(size[::-1], 0 if stem in labeled else IGNORE_INDEX, np.int8)
        covered = [read_binary(of[stem], size, images[stem]).astype(np.int8) if stem in of else absent for of in masks]
        return torch.from_numpy(np.stack(covered))

    return torch.from_numpy(labels), names, sorted(labeled), read_original


def read_class_maps(
    root: Path, images: Mapping[str, Path], names: tuple[str, ...] | None, size: int
) -> tuple[Tensor, tuple[str, ...], list[str], Callable[[str], Tensor]]:
    """Read masks of classes that exclude each other: as :func:`read_label_masks`, labels (N, size, size) int64."""
    if names is not None and "background" in map(str.casefold, names):
        raise ValueError(
            f"{root / 'classes.txt'} names background as class {[*map(str.casefold, names)].index('background') + 1},"
            " but it is always 0, without a line; remove that line"
        )
    masks = find_masks(root / "masks", images)
    if not masks:
        raise FileNotFoundError(f"root: {root / 'masks'} holds no mask, neither for each image nor in folders by label")
    labels = np.full((len(images), size, size), IGNORE_INDEX, dtype=np.int64)
    files_with: dict[int, list[Path]] = {}  # value -> the masks that hold it
    for label, stem in zip(labels, images, strict=True):
        if stem in masks:
            ids = read_ids(masks[stem], image_size(images[stem]), images[stem])
            for value in np.unique(ids).tolist():
                files_with.setdefault(value, []).append(masks[stem])
            label[:] = pad(resize(Image.fromarray(ids), size, Image.Resampling.NEAREST), size, IGNORE_INDEX)
    one = 255 if set(files_with) <= {0, 255} else 1
    if one == 255:
        labels[labels == 255] = 1
        files_with = {value // 255: paths for value, paths in files_with.items()}
    check_ids(files_with, names, root)
    names = names or tuple(f"class{c}" for c in range(1, max(files_with) + 1))

    def read_original(stem: str) -> Tensor:
        size = image_size(images[stem])
        if stem not in masks:
            return torch.full(size[::-1], IGNORE_INDEX)
        return torch.from_numpy(read_ids(masks[stem], size, images[stem])).long() // one

    return torch.from_numpy(labels), names, list(masks), read_original


def check_ids(files_with: Mapping[int, Sequence[Path]], names: tuple[str, ...] | None, root: Path) -> None:
    """Refuse masks whose values are not class ids 0, 1, 2, ..., C without a gap."""
    highest, lowest = max(files_with), min(files_with)
    if lowest < 0 or highest > MAX_CLASS:
        value = lowest if lowest < 0 else highest
        raise ValueError(
            f"{masks_with(value, files_with)}, expected class ids 0 (background) to {MAX_CLASS};"
            " 255 is understood as class 1 only where all masks hold nothing but 0 and 255"
        )
    if not highest:
        raise ValueError(f"{root / 'masks'}: all masks are 0 everywhere, expected values of 1 or more, the class ids")
    if names is not None and highest > len(names):
        raise ValueError(f"{masks_with(highest, files_with)}, but {root / 'classes.txt'} names {len(names)} classes")
    if names is None and (gaps := [value for value in range(1, highest) if value not in files_with]):
        raise ValueError(
            f"{masks_with(highest, files_with)}, but no mask holds {gaps[0]}: expected class ids"
            f" 0 (background), 1, 2, ... without a gap; renumber them, or name all classes in {root / 'classes.txt'}"
        )


def masks_with(value: int, files_with: Mapping[int, Sequence[Path]]) -> str:
    """Say which masks hold a value: the path of the first, and the names of others."""
    first, *others = files_with[value]
    named = ", ".join(path.name for path in others[:MAX_NAMED])
    more = f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
    return f"{first} holds the value {value}" + (f" (as do {named}{more})" if others else "")


def read_ids(path: Path, size: tuple[int, int], image: Path) -> NDArray[np.int32]:
    """Read a mask's values at full size; those of a palette image are its indices, whatever colors they stand for."""
    mask = open_mask(path, size, image)
    values = np.array(mask)
    if values.ndim == 3:
        colors = values[..., : {"RGBA": 3, "LA": 1, "PA": 1}.get(mask.mode)]  # without transparency
        if (colors != colors[..., :1]).any():
            raise ValueError(f"{path} is a color image (mode {mask.mode}), expected a gray or palette one of class ids")
        values = colors[..., 0]
    ids = values.astype(np.int32)
    if (ids != values).any():
        raise ValueError(f"{path} holds fractions, expected class ids 0, 1, 2, ...")
    return ids


def read_binary(path: Path, size: tuple[int, int], image: Path) -> NDArray[np.bool_]:
    """Read a label's mask at full size: all that is not black, and no index 0 of a palette."""
    mask = open_mask(path, size, image)
    values = np.array(mask if mask.mode in ("1", *GRAY_MODES) else mask.convert("RGB"))
    covered: NDArray[np.bool_] = np.atleast_3d(values).max(2) > 0
    if mask.mode in ("P", "PA") and (covered != (np.atleast_3d(np.array(mask))[..., 0] > 0)).any():
        raise ValueError(
            f"{path} is a palette image in which another index than 0 is black, or 0 is not, so that there is no"
            " telling where the label is; save it in gray, 0 where the label is not"
        )
    return covered


def open_mask(path: Path, size: tuple[int, int], image: Path) -> Image.Image:
    mask = open_image(path)
    if mask.format in ("JPEG", "MPO"):
        raise ValueError(f"{path} is a JPEG file, which does not keep values as they were; save masks as .png")
    if mask.size != size:
        raise ValueError(
            f"{path} is {mask.width} x {mask.height} pixels and {image} is {size[0]} x {size[1]}; expected the same"
        )
    return mask
