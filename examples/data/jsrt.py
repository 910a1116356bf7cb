"""JSRT chest radiographs (Shiraishi et al. 2000) with the SCR masks (van Ginneken et al. 2006).

Two layouts are read, wherever below the root their files lie:

* as distributed: ``JPCLN001.IMG`` (2048 x 2048, headerless, 16-bit big-endian, high value = dense film) and
  ``fold1/masks/left lung/JPCLN001.gif``, ``fold2/masks/...``;
* as a plain folder: ``images/JPCLN001.png`` (lungs dark) and ``masks/left_lung/JPCLN001.gif``.

Odd-numbered images are the first set (labeled, unlabeled, validation), even-numbered ones the test set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from examples.config import Config
from examples.data.base import Dataset, ImageSet, to_unit_range
from examples.data.files import open_image, skip_unreadable

CLASSES = ("right_lung", "left_lung", "heart", "right_clavicle", "left_clavicle")
FLIP_PAIRS = ((0, 1), (3, 4))
ALL_IMAGES = 247
IMG_SIDE = 2048
IMG_MAX = 4095  # 12 of the 16 bits are used
NAME = re.compile(r"JPC[LN]N\d{3}")
SPLITS = Path(__file__).parent / "splits" / "jsrt.json"


def load(config: Config) -> Dataset:
    """Read JSRT from ``config.root`` and divide it by the committed split."""
    if config.root is None:
        raise ValueError("root: None, but jsrt is read from disk; pass --root FOLDER (images and SCR masks below it)")
    images, masks = find_files(config.root)
    skipped = ""
    if config.skip_unreadable:
        every = images
        images, skipped = skip_unreadable(every, lambda name: read_set([name], every, masks, config.image_size))
    split = read_split(config.labeled, config.split)
    first = [name for name in images if int(name[-3:]) % 2]
    second = [name for name in images if not int(name[-3:]) % 2]
    if absent := sorted({*split["labeled"], *split["validation"]} - set(first)):
        raise ValueError(f"root: {config.root} lacks {', '.join(absent)}, which split {config.split} needs")
    if not second:
        raise ValueError(f"root: {config.root} holds no even-numbered image, hence no test set")

    train = read_set(first, images, masks, config.image_size)
    position = {name: i for i, name in enumerate(first)}
    return Dataset(
        labeled=train[[position[name] for name in split["labeled"]]],
        unlabeled=train,
        validation=train[[position[name] for name in split["validation"]]],
        test=read_set(second, images, masks, config.image_size),
        class_names=CLASSES,
        flip_pairs=FLIP_PAIRS,
        multilabel=True,
        found=f"{len(images)} of {ALL_IMAGES} images ({len(first)} first set, {len(second)} test){skipped}",
    )


def read_split(labeled: int, split: int) -> dict[str, list[str]]:
    """Read the committed ids of one split: {"labeled": [...], "validation": [...]}."""
    splits: dict[str, list[dict[str, list[str]]]] = json.loads(SPLITS.read_text())
    if str(labeled) not in splits:
        raise ValueError(f"labeled: {labeled}, but jsrt has splits for {', '.join(splits)} labeled images")
    if not 0 <= split < len(splits[str(labeled)]):
        raise ValueError(f"split: {split}, but jsrt has splits 0 to {len(splits[str(labeled)]) - 1}")
    return splits[str(labeled)][split]


def find_files(root: Path) -> tuple[dict[str, Path], dict[tuple[str, str], Path]]:
    """Find as :func:`list_files`, once every image has all its masks."""
    images, masks = list_files(root)
    for name, path in images.items():
        check_masks(name, path, masks)
    return images, masks


def list_files(root: Path) -> tuple[dict[str, Path], dict[tuple[str, str], Path]]:
    """Map image names to files, and (structure, image name) to mask files."""
    if not root.is_dir():
        raise FileNotFoundError(f"root: {root} is not a folder")
    images = {path.stem: path for path in sorted(root.glob("images/*.png")) if NAME.fullmatch(path.stem)}
    images = images or {path.stem: path for path in sorted(root.rglob("*.IMG")) if NAME.fullmatch(path.stem)}
    if not images:
        raise FileNotFoundError(f"root: {root} holds neither images/JPC*.png nor JPC*.IMG at any depth")
    masks = {
        (path.parent.name.replace(" ", "_"), path.stem): path
        for folder in root.rglob("masks")
        for path in folder.glob("*/*.gif")
    }
    return images, masks


def check_masks(name: str, path: Path, masks: dict[tuple[str, str], Path]) -> None:
    """Refuse an image that lacks a mask."""
    if missing := [structure for structure in CLASSES if (structure, name) not in masks]:
        raise FileNotFoundError(
            f"{path} has no mask for {', '.join(missing)}: expected masks/{missing[0]}/{name}.gif or"
            f" fold1/masks/{missing[0].replace('_', ' ')}/{name}.gif (or fold2) below --root"
        )


def read_set(names: Iterable[str], images: dict[str, Path], masks: dict[tuple[str, str], Path], size: int) -> ImageSet:
    names = tuple(names)
    pixels = [torch.from_numpy(read_image(images[name], size)) for name in names]
    labels = [np.stack([read_mask(masks[structure, name], size) for structure in CLASSES]) for name in names]
    return ImageSet(
        images=torch.stack([to_unit_range(image) for image in pixels])[:, None],
        labels=torch.from_numpy(np.stack(labels)).to(torch.int8),
        names=names,
    )


def read_image(path: Path, size: int) -> NDArray[np.float32]:
    """Read one radiograph with dark lungs, averaged down to (size, size)."""
    return area_resize(open_radiograph(path), size)


def open_radiograph(path: Path) -> Image.Image:
    """Open one radiograph with dark lungs, mode F."""
    if path.suffix.upper() == ".IMG":
        values = np.fromfile(path, dtype=">u2")
        if values.size != IMG_SIDE**2:
            raise ValueError(f"{path} holds {values.size} 16-bit values, expected {IMG_SIDE} x {IMG_SIDE}; is it cut?")
        return Image.fromarray(IMG_MAX - values.reshape(IMG_SIDE, IMG_SIDE).astype(np.float32))
    return open_image(path).convert("F")


def read_mask(path: Path, size: int) -> NDArray[np.bool_]:
    """Read one structure's mask: the pixels it covers by more than half."""
    return area_resize(open_image(path).convert("L").point(lambda value: 255 * (value > 0)).convert("F"), size) > 127.5


def area_resize(image: Image.Image, size: int) -> NDArray[np.float32]:
    return np.array(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
