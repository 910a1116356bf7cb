"""RETOUCH: retinal fluid in OCT volumes of three vendors (Bogunović et al. 2019).

Any folder below the root that holds ``oct.mhd`` and ``reference.mhd`` is a volume and its name the volume's id, as in
``TrainingSpectralis/TRAIN025/`` or ``RETOUCH-TrainingSet-Spectralis/TRAIN025/``. Classes exclude each other:
background, intraretinal fluid (IRF), subretinal fluid (SRF), pigment epithelial detachment (PED).

B-scans are read when they are needed. Intensities are scaled to [-1, 1] between two percentiles of each B-scan, white
padding left out (``retina.scale``). ``--retina crop`` keeps the rows around the retina, ``flatten``
levels its lowest bright layer first; then the B-scan is brought into a square with its aspect kept. What pads it is
neither learned nor evaluated; predictions are evaluated against the references at their original size, what was cropped
away as background.

Cross-validation is over volumes. Fold f tests part f, validates part f + 1 and trains on the others, with all their
B-scans as unlabeled ones; the parts of the training set are committed, other volumes are dealt out by the same rule.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from examples.config import Config, RetinaView
from examples.data.base import IGNORE_INDEX, CachedReader, Content, Dataset, LazyImages, Original
from examples.data.retouch.index import CLASSES, Volume, survey
from examples.data.retouch.retina import placement, scale
from examples.data.splits import MAX_DRAWS, best_of

FOLDS = 10
SPLITS = Path(__file__).parents[1] / "splits" / "retouch.json"
MIN_AREA = 8  # pixels of a class at the training size in a B-scan that is drawn for it

Key = tuple[Volume, int]  # a B-scan


def load(config: Config) -> Dataset:
    """Find the volumes below ``config.root`` and divide them by the fold ``config.split``."""
    if config.root is None:
        raise ValueError("root: None, but retouch is read from disk; pass --root FOLDER (TRAIN.../oct.mhd below it)")
    found = survey(config.root, config.vendor)
    if found.errors:
        raise ValueError("root: volumes cannot be used:\n  " + "\n  ".join(found.errors))
    parts = find_parts([volume.id for volume in found.volumes], config.vendor)
    if config.split >= len(parts):
        raise ValueError(f"split: {config.split}, but {len(found.volumes)} volumes have folds 0 to {len(parts) - 1}")
    test = parts[config.split]
    validation = parts[(config.split + 1) % len(parts)]
    training = [volume for volume in found.volumes if volume.id not in (*test, *validation)]
    train = scans_of(training)
    read = CachedReader(partial(read_scan, view=config.retina, size=config.image_size), config.cache_mib * 2**20)

    def images(keys: Iterable[Key]) -> LazyImages[Key]:
        chosen = tuple(keys)
        names = tuple(f"{volume.id}_{scan:03d}" for volume, scan in chosen)
        return LazyImages(read, lambda key: key[0].digests[key[1]], chosen, names)

    def part(ids: Sequence[str]) -> LazyImages[Key]:
        return images(scans_of(volume for volume in found.volumes if volume.id in ids))

    unlabeled = images(train)
    return Dataset(
        labeled=unlabeled[draw_labeled(train, config)],
        unlabeled=unlabeled,
        validation=part(validation),
        test=part(test),
        class_names=CLASSES,
        flip_pairs=(),
        multilabel=False,
        found=(
            f"{len(found.volumes)} {config.vendor.capitalize()} volumes, {len(scans_of(found.volumes))} B-scans;"
            f" fold {config.split} of {len(parts)}: {len(training)} volumes ({len(train)} B-scans) to train,"
            f" {len(validation)} to validate, {len(test)} to test"
        ),
        score="miou_pooled",
    )


def scans_of(volumes: Iterable[Volume]) -> list[Key]:
    return [(volume, scan) for volume in volumes for scan in range(volume.size[2])]


def find_parts(ids: Sequence[str], vendor: str) -> list[list[str]]:
    """Return the committed parts where these are the training set's ids, or others dealt out by the same rule."""
    if len(ids) < 3:
        raise ValueError(
            f"root: {len(ids)} {vendor.capitalize()} volumes, expected 3 or more: one each to train, validate and test"
        )
    committed: list[list[str]] = json.loads(SPLITS.read_text())[vendor]
    return committed if sorted(ids) == sorted(chain.from_iterable(committed)) else deal(ids)


def deal(ids: Iterable[str]) -> list[list[str]]:
    """Deal ids out in random order into ten parts, or one each if there are fewer; the same for the same ids."""
    order = sorted(ids)
    random.Random(2022).shuffle(order)
    parts = min(FOLDS, len(order))
    return [sorted(order[part::parts]) for part in range(parts)]


def draw_labeled(train: Sequence[Key], config: Config) -> list[int]:
    """Draw the positions of the labeled B-scans such that every class occurs; the same for the same fold and number.

    A class occurs where it covers ``MIN_AREA`` pixels or more at the training size. Uniform draws are repeated until
    every class does; where that never happens, one B-scan is drawn for each class still missing, the rest at random.
    """
    shows = np.array(
        [
            np.array(volume.pixels[scan]) * (config.image_size / max(volume.size[:2])) ** 2 >= MIN_AREA
            for volume, scan in train
        ]
    )
    if absent := [name for c, name in enumerate(CLASSES) if not shows[:, c].any()]:
        raise ValueError(
            f"root: no B-scan to train on shows {MIN_AREA} pixels of {', '.join(absent)} at image_size"
            f" {config.image_size}; pass a larger --image-size or another --split"
        )
    if config.labeled > len(train):
        raise ValueError(f"labeled: {config.labeled}, but there are only {len(train)} B-scans to train on")
    rng = np.random.default_rng([config.labeled, config.split])

    def lacking(chosen: Sequence[int]) -> tuple[int, ...]:
        return (int((~shows[list(chosen)].any(0)).sum()),)

    def by_class() -> list[int]:
        chosen: list[int] = []
        for c in shows.sum(0).argsort():  # the rarest first
            if not shows[chosen, c].any():
                chosen.append(int(rng.choice(shows[:, c].nonzero()[0])))
        rest = rng.permutation(np.setdiff1d(np.arange(len(train)), chosen))
        return (chosen + rest.tolist())[: config.labeled]

    chosen = best_of(lambda: rng.permutation(len(train))[: config.labeled].tolist(), lacking)
    if any(lacking(chosen)):
        chosen = best_of(by_class, lacking)
    if any(lacking(chosen)):
        raise ValueError(
            f"labeled: {config.labeled} B-scans did not show {', '.join(CLASSES)} in {MAX_DRAWS} draws; pass a larger"
            " --labeled"
        )
    return sorted(chosen)


def read_scan(key: Key, view: RetinaView, size: int) -> Content:
    """Read one B-scan as :class:`LazyImages` wants it."""
    volume, scan = key
    image = scale(volume.read_scan(scan))
    place = placement(image, view, size)
    labels = place.place(volume.read_reference(scan).astype(np.int32), IGNORE_INDEX, Image.Resampling.NEAREST)
    return (
        torch.from_numpy(place.place(image, -1, Image.Resampling.BOX))[None],
        torch.from_numpy(labels.astype(np.int8)),
        torch.from_numpy(place.shown()),
        Original(place, partial(read_labels, key)),
    )


def read_labels(key: Key) -> Tensor:
    volume, scan = key
    return torch.from_numpy(volume.read_reference(scan).astype(np.int64))
