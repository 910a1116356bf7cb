"""The two endless streams of batches of every step: a labeled pool and unlabeled images, weakly augmented.

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
    """Return which classes (without background) occur in which image: (B, num_classes) bool."""
    return class_masks(labels, num_classes).flatten(2).any(2)


class PoolBatches(Iterator[View]):
    """Reference pools of ``size`` labeled images in which every class is present, after augmentation too."""

    def __init__(self, data: Dataset, size: int, generator: Generator) -> None:
        self.data = data
        self.weak = WeakAugmentation(data.flip_pairs, generator, multilabel=data.multilabel)
        presence = class_presence(data.labeled.labels, len(data.class_names)).cpu()
        self.pool = ReferencePool(presence, size, generator=generator)

    def __next__(self) -> View:
        names = self.data.class_names
        for _ in range(MAX_DRAWS):
            drawn = self.data.labeled[self.pool.sample()]
            view = self.weak(drawn.images, drawn.labels, drawn.shown)
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
    """Passes over the shuffled unlabeled images, ``size`` at a time; their labels are for the log only.

    A pass ends with what is left, less than a batch, unless there are more processes than images left.
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
