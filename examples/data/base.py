"""What every data set hands to the trainer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from examples.data.resize import Placement

IGNORE_INDEX = -100  # label of pixels of which none is known

Key = TypeVar("Key", bound=Hashable)


class Original(NamedTuple):
    """What one image was before it was brought to the common size."""

    placement: Placement
    read_labels: Callable[[], Tensor]  # (C, height, width) or (height, width), on the CPU


# An image (1 or 3, H, W) float32, its labels (C, H, W) or (H, W) of an integer dtype, shown (H, W) bool, and its
# original.
Content = tuple[Tensor, Tensor, Tensor, Original]


class Images(Protocol):
    """Images by their indices, in memory or not."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Sequence[int], /) -> ImageSet: ...

    def label_digest(self, index: int, /) -> str:
        """Return a hash of the labels of an image, at the size that they are evaluated at."""
        ...

    def to(self, device: str, /) -> Images: ...


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels, decoded and in memory."""

    images: Tensor  # (N, 1, H, W) float32 in [-1, 1], or (N, 3, H, W) in color
    labels: Tensor  # multi-label (N, C, H, W) int8 0/1, or class map (N, H, W) int64 with background 0
    names: tuple[str, ...]  # one per image
    # (N, H, W) bool, False where an image was padded to the common size; None if none was. Nothing is learned or
    # evaluated there
    shown: Tensor | None = None
    # One per image where predictions are evaluated at the image's original size; None: as they are
    originals: tuple[Original, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int]) -> ImageSet:
        chosen = torch.as_tensor(indices, device=self.images.device)
        shown = None if self.shown is None else self.shown[chosen]
        originals = None if self.originals is None else tuple(self.originals[i] for i in indices)
        return ImageSet(
            self.images[chosen], self.labels[chosen], tuple(self.names[i] for i in indices), shown, originals
        )

    def label_digest(self, index: int) -> str:
        return digest(self.labels[index] if self.originals is None else self.originals[index].read_labels())

    def to(self, device: str) -> ImageSet:
        shown = None if self.shown is None else self.shown.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), shown=shown)


@dataclass(frozen=True)
class LazyImages(Generic[Key]):
    """Images that are read when they are asked for (see :class:`CachedReader`): they need not fit into memory."""

    read: Callable[[Key], Content]  # key -> what there is of the image
    digest: Callable[[Key], str]  # key -> hash of its labels
    keys: tuple[Key, ...]  # one per image
    names: tuple[str, ...]  # one per image
    device: str = "cpu"  # where a batch goes

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, indices: Sequence[int]) -> ImageSet:
        images, labels, shown, originals = zip(*(self.read(self.keys[i]) for i in indices), strict=True)
        stacked = self.on_device(labels)
        return ImageSet(
            images=self.on_device(images),
            labels=stacked if stacked.ndim == 4 else stacked.long(),
            names=tuple(self.names[i] for i in indices),
            shown=self.on_device(shown),
            originals=originals,
        )

    def on_device(self, parts: Sequence[Tensor]) -> Tensor:
        """Return a batch; on its way to a GPU it is pinned, so that nothing waits for it here."""
        batch = torch.stack(tuple(parts))
        if torch.device(self.device).type == "cuda":
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch.to(self.device)

    def label_digest(self, index: int) -> str:
        return self.digest(self.keys[index])

    def to(self, device: str) -> LazyImages[Key]:
        return replace(self, device=device)


@dataclass(frozen=True)
class Selection:
    """Some of other images, by their indices."""

    source: Images
    indices: Sequence[int]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.source.names[i] for i in self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Sequence[int]) -> ImageSet:
        return self.source[[self.indices[i] for i in indices]]

    def label_digest(self, index: int) -> str:
        return self.source.label_digest(self.indices[index])

    def to(self, device: str) -> Selection:
        return Selection(self.source.to(device), self.indices)


class CachedReader(Generic[Key]):
    """Reads images, and keeps those that were read first, decoded, in at most ``max_bytes`` of tensors.

    Not those that were read last: in passes over shuffled images it is the longest until those come again. Of images
    three quarters of which fit, these are found in three quarters of the cases, and those in two fifths.
    """

    def __init__(self, read: Callable[[Key], Content], max_bytes: int) -> None:
        self.read = read
        self.room = max_bytes
        self.kept: dict[Key, Content] = {}
        self.lock = Lock()  # batches are prepared in a thread while others are evaluated

    def __call__(self, key: Key) -> Content:
        content = self.kept.get(key) or self.read(key)
        size = sum(part.nbytes for part in content[:3])
        with self.lock:
            if key not in self.kept and size <= self.room:
                self.kept[key] = content
                self.room -= size
        return content


@dataclass(frozen=True)
class Dataset:
    """A data set divided for one run."""

    labeled: ImageSet  # the N_l labeled images
    unlabeled: Images  # images without labels to the method; theirs are held back to log how good pseudo-labels are
    validation: Images  # chooses the best checkpoint
    test: Images  # looked at once, at the end
    # The classes without background, in the order of the label channels (or of class ids 1, 2, ...)
    class_names: tuple[str, ...]
    # Classes, as indices into class_names, that change places in a mirrored image
    flip_pairs: tuple[tuple[int, int], ...]
    multilabel: bool  # whether labels may overlap (sigmoid) or not (softmax with background)
    found: str  # what was found on disk, in words; after a semicolon, how the split divides it
    # Label -> the classes, as indices into class_names, whose union is evaluated as that label; None: the classes
    # themselves are evaluated
    fused: dict[str, tuple[int, ...]] | None = None
    # The figure that ranks methods: "miou", a mean over images, or "miou_pooled", of all pixels together
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


def digest(labels: Tensor) -> str:
    """Return a hash of labels (C, H, W) or (H, W), whatever integer dtype and device they have."""
    values = labels.to("cpu", torch.int16).contiguous()
    return hashlib.sha256(f"{tuple(values.shape)} ".encode() + values.numpy().tobytes()).hexdigest()[:16]


def to_unit_range(image: Tensor) -> Tensor:
    """Scale one image to [-1, 1] between its own extremes."""
    image = image.float()
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny) * 2 - 1
