"""How a batch, a data set and a bank are shared out over the processes of a run.

Every process draws the whole batch of every step from the same random streams and then takes its share: what is drawn
does not depend on the number of processes. Losses are means over the pixels of all, and so are batch statistics (unless
--no-sync-batch-norm), so that the run is that of one process, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from examples.config import Config
from examples.data import Images, ImageSet
from examples.engine.distributed import all_gather, all_reduce_sum, rank, world_size
from examples.engine.metrics import IoU

Batch = TypeVar("Batch", bound=tuple[Any, ...])


def check_shares(config: Config) -> None:
    """Refuses batches that the processes cannot share equally.

    Raises:
        ValueError: the option is named.
    """
    processes = world_size()
    if config.cutmix and processes > 1:
        raise ValueError(
            f"cutmix: given with {processes} processes, each of which holds a part of the batch that would have to be"
            " mixed; leave --cutmix out, or start one process"
        )
    for name in ("pool_size", "unlabeled_batch"):
        size = getattr(config, name)
        if size % processes:
            nearest = -(-size // processes) * processes
            raise ValueError(
                f"{name}: got {size} with {processes} processes, expected a multiple of {processes}, so that each has"
                f" an equal share; pass --{name.replace('_', '-')} {nearest}, or start fewer processes"
            )


def own(count: int) -> slice:
    """This process's share of so many, in order."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def share_of(batch: Batch) -> Batch:
    """This process's share of a tuple of tensors (B, ...) and of functions that lead from such to such."""
    if world_size() == 1:
        return batch
    count = len(batch[0])
    part = own(count)

    def share(item: Tensor | Callable[[Tensor], Tensor]) -> Tensor | Callable[[Tensor], Tensor]:
        if isinstance(item, Tensor):
            return item[part]
        return lambda maps: item(place_shard(maps, count))[part]

    make: Any = getattr(type(batch), "_make", tuple)  # of a named tuple, or of a plain one
    shared: Batch = make(map(share, batch))
    return shared


def on_whole_batch(augment: Callable[..., Batch], *shares: Tensor) -> Batch:
    """Augments this process's share as it would be augmented in the whole batch, by the same draws."""
    if world_size() == 1:
        return augment(*shares)
    count = int(all_reduce_sum(torch.tensor(len(shares[0]))))
    return share_of(augment(*(place_shard(share, count) for share in shares)))


def place_shard(share: Tensor, count: int) -> Tensor:
    """A share (B, ...) in its place in a batch of ``count``; what is augmented in the others' places is not used."""
    whole = share.new_zeros(count, *share.shape[1:])
    whole[own(count)] = share
    return whole


@dataclass(frozen=True)
class Part:
    """Some of the images, by their indices."""

    images: Images
    indices: Sequence[int]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.images.names[i] for i in self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Sequence[int]) -> ImageSet:
        return self.images[[self.indices[i] for i in indices]]

    def to(self, device: str) -> Part:
        return Part(self.images.to(device), self.indices)


def own_images(images: Images) -> Images:
    """Every so many-th image, for this process to evaluate."""
    return images if world_size() == 1 else Part(images, range(rank(), len(images), world_size()))


def of_all_images(iou: IoU) -> IoU:
    """What the processes have collected of their own images, in the order of all images."""
    if world_size() == 1:
        return iou
    whole = IoU()
    for mine, counts in ((iou.intersections, whole.intersections), (iou.unions, whole.unions)):
        parts = [torch.cat(theirs) for theirs in all_gather(mine) if theirs]  # a process may have had no image
        counts += [part[i : i + 1] for i in range(len(parts[0])) for part in parts if i < len(part)]
    return whole


class PerRankState:
    """The bank of each process, for checkpoints.

    Args:
        bank: This process's; None if there is none.
    """

    def __init__(self, bank: nn.Module | None) -> None:
        self.bank = bank

    def state_dict(self) -> dict[str, Any]:
        return {"banks": [] if self.bank is None else all_gather(self.bank.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.bank is not None:
            self.bank.load_state_dict(state["banks"][rank()])
