"""What every data set hands to the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels, decoded once and kept in memory.

    Attributes:
        images: (N, 1, H, W) float32 in [-1, 1].
        labels: Multi-label (N, C, H, W) int8 0/1, or class map (N, H, W) int64 with background 0.
        names: One per image.
        shown: (N, H, W) bool, False where an image was padded to the common size; None if none was. Nothing is
            learned or evaluated there.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    shown: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int]) -> ImageSet:
        chosen = torch.as_tensor(indices, device=self.images.device)
        shown = None if self.shown is None else self.shown[chosen]
        return ImageSet(self.images[chosen], self.labels[chosen], tuple(self.names[i] for i in indices), shown)

    def to(self, device: str) -> ImageSet:
        shown = None if self.shown is None else self.shown.to(device)
        return ImageSet(self.images.to(device), self.labels.to(device), self.names, shown)


@dataclass(frozen=True)
class Dataset:
    """A data set divided for one run.

    Attributes:
        labeled: The N_l labelled images.
        unlabeled: Images without labels to the method; theirs are held back to log how good pseudo-labels are.
        validation: Chooses the best checkpoint.
        test: Seen once, at the end.
        class_names: The classes without background, in the order of the label channels (or of class ids 1, 2, ...).
        flip_pairs: Classes, as indices into class_names, that change places in a mirrored image.
        multilabel: Whether labels may overlap (sigmoid) or not (softmax with background).
        found: What was found on disk, in words.
        fused: Label -> the classes, as indices into class_names, whose union is evaluated as that label; None: the
            classes themselves are evaluated.
        score: The figure that ranks methods: "miou", a mean over images, or "miou_pooled", of all pixels together.
    """

    labeled: ImageSet
    unlabeled: ImageSet
    validation: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    multilabel: bool
    found: str
    fused: dict[str, tuple[int, ...]] | None = None
    score: Literal["miou", "miou_pooled"] = "miou"

    @property
    def num_outputs(self) -> int:
        """Channels of the network's logits."""
        return len(self.class_names) + (not self.multilabel)

    @property
    def evaluated_names(self) -> tuple[str, ...]:
        """What the evaluation names: the classes, or the labels that they are fused to."""
        return self.class_names if self.fused is None else tuple(self.fused)

    def to(self, device: str) -> Dataset:
        parts = ("labeled", "unlabeled", "validation", "test")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})


def to_unit_range(image: Tensor) -> Tensor:
    """Scales one image to [-1, 1] between its own extremes."""
    image = image.float()
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp(min=1e-6) * 2 - 1
