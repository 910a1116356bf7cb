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


def pixels_of_classes(labels: Tensor, num_classes: int, share: float, generator: Generator) -> Tensor:
    """In about this share of the images a pixel of a class (without background), to crop around: see ``focus``.

    The class is drawn before the pixel, from those in the image, so that the smallest is chosen as often as the
    largest.

    Returns:
        (B, 2), x and y from the centre in shares of the side; NaN where no pixel was drawn, or no class is.
    """
    focus = torch.full((len(labels), 2), torch.nan)
    for place, masks in zip(focus, class_masks(labels, num_classes).cpu(), strict=True):
        classes = masks.flatten(1).any(1).nonzero()[:, 0]
        if torch.rand((), generator=generator) < share and len(classes):
            pixels = masks[classes[one_of(len(classes), generator)]].nonzero()
            y, x = pixels[one_of(len(pixels), generator)].tolist()
            height, width = masks.shape[1:]
            place[:] = torch.tensor([(x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5])
    return focus


def one_of(count: int, generator: Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def pool_batches(data: Dataset, size: int, generator: Generator, balanced_crops: float = 0.0) -> Iterator[View]:
    """Reference pools of ``size`` labelled images in which every class is present, after augmentation too.

    About the share ``balanced_crops`` of the images is cropped around a pixel of a class, each class alike.

    Raises:
        ValueError: no draw kept every class; the message names those lost last.
    """
    weak = WeakAugmentation(data.flip_pairs, generator, multilabel=data.multilabel)
    presence = class_presence(data.labeled.labels, len(data.class_names)).cpu()
    pool = ReferencePool(presence, size, generator=generator)
    while True:
        for _ in range(MAX_DRAWS):
            drawn = data.labeled[pool.sample()]
            focus = None
            if balanced_crops:
                focus = pixels_of_classes(drawn.labels, len(data.class_names), balanced_crops, generator)
            view = weak(drawn.images, drawn.labels, drawn.shown, focus)
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
