"""The two endless streams of batches of every step: a labelled pool and unlabelled images, weakly augmented.

Both go on from a ``state_dict`` exactly where it was taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from examples.data import Dataset
from examples.data.augment import View, WeakAugmentation
from examples.engine.distributed import world_size
from examples.engine.metrics import class_masks
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


class PoolBatches(Iterator[View]):
    """Reference pools of ``size`` labelled images in which every class is present, after augmentation too.

    About the share ``balanced_crops`` of the images is cropped around a pixel of a class, each class alike.

    Raises:
        ValueError: no draw kept every class; the message names those lost last.
    """

    def __init__(self, data: Dataset, size: int, generator: Generator, balanced_crops: float = 0.0) -> None:
        self.data = data
        self.balanced_crops = balanced_crops
        self.weak = WeakAugmentation(data.flip_pairs, generator, multilabel=data.multilabel)
        presence = class_presence(data.labeled.labels, len(data.class_names)).cpu()
        self.pool = ReferencePool(presence, size, generator=generator)

    def __next__(self) -> View:
        names = self.data.class_names
        for _ in range(MAX_DRAWS):
            drawn = self.data.labeled[self.pool.sample()]
            focus = None
            if self.balanced_crops:
                focus = pixels_of_classes(drawn.labels, len(names), self.balanced_crops, self.pool.generator)
            view = self.weak(drawn.images, drawn.labels, drawn.shown, focus)
            present = class_presence(view.labels, len(names)).any(0).tolist()
            if all(present):
                return view
        lost = ", ".join(name for name, kept in zip(names, present, strict=True) if not kept)
        raise ValueError(f"no {lost} left in {MAX_DRAWS} pools after augmentation; enlarge image_size or pool_size")

    def state_dict(self) -> dict[str, Tensor]:
        return self.pool.state_dict()  # the augmentation draws from the same generator

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.pool.load_state_dict(state)


class UnlabeledBatches(Iterator[View]):
    """Passes over the shuffled unlabelled images, ``size`` at a time; their labels are for the log only.

    A pass ends with what is left, less than a batch, unless there are more processes than
    images left.

    Raises:
        ValueError: there are fewer images than processes.
    """

    def __init__(self, data: Dataset, size: int, generator: Generator) -> None:
        self.images = data.unlabeled
        self.size = size
        self.generator = generator
        self.weak = WeakAugmentation(data.flip_pairs, generator, multilabel=data.multilabel)
        self.order: list[int] = []  # of the pass under way
        self.start = 0  # in it, of the next batch
        if not self.steps_per_pass:
            raise ValueError(
                f"unlabeled: {len(self.images)} images, expected one or more for each of {world_size()} processes"
            )

    @property
    def steps_per_pass(self) -> int:
        return len(self.images) // self.size + (len(self.images) % self.size >= world_size())

    def __next__(self) -> View:
        if len(self.order) - self.start < world_size():
            self.order = torch.randperm(len(self.images), generator=self.generator).tolist()
            self.start = 0
        drawn = self.images[self.order[self.start : self.start + self.size]]
        self.start += self.size
        return self.weak(drawn.images, drawn.labels, drawn.shown)

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "start": self.start, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.start = state["order"], state["start"]
        self.generator.set_state(state["generator"])
