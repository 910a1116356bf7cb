"""The two endless streams of batches of every step: a labelled pool and unlabelled images, weakly augmented."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from examples.augment import View, WeakAugmentation
from examples.data import Dataset
from examples.metrics import class_masks
from rpg_loss import ReferencePool

MAX_DRAWS = 100


def class_presence(labels: Tensor, num_classes: int) -> Tensor:
    """Which classes (without background) occur in which image: (B, num_classes) bool."""
    return class_masks(labels, num_classes).flatten(2).any(2)


def pool_batches(data: Dataset, size: int, generator: Generator) -> Iterator[View]:
    """Reference pools of ``size`` labelled images in which every class is present, after augmentation too.

    Raises:
        ValueError: no draw kept every class; the message names those lost last.
    """
    weak = WeakAugmentation(data.flip_pairs, generator, multilabel=data.multilabel)
    presence = class_presence(data.labeled.labels, len(data.class_names)).cpu()
    pool = ReferencePool(presence, size, generator=generator)
    while True:
        for _ in range(MAX_DRAWS):
            drawn = data.labeled[pool.sample()]
            view = weak(drawn.images, drawn.labels, drawn.shown)
            present = class_presence(view.labels, len(data.class_names)).any(0).tolist()
            if all(present):
                break
        else:
            lost = ", ".join(name for name, kept in zip(data.class_names, present, strict=True) if not kept)
            raise ValueError(f"no {lost} left in {MAX_DRAWS} pools after augmentation; enlarge image_size or pool_size")
        yield view


def unlabeled_batches(data: Dataset, size: int, generator: Generator) -> Iterator[View]:
    """Passes over the shuffled unlabelled images, ``size`` at a time; their labels are for the log only."""
    weak = WeakAugmentation(data.flip_pairs, generator, multilabel=data.multilabel)
    while True:
        order = torch.randperm(len(data.unlabeled), generator=generator).tolist()
        for start in range(0, len(order), size):
            drawn = data.unlabeled[order[start : start + size]]
            yield weak(drawn.images, drawn.labels, drawn.shown)
