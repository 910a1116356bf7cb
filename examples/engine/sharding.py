"""How a batch and a data set are shared out over the processes of a run.

Every process draws the whole batch of every step from the same random streams and then takes its share: what is drawn
does not depend on the number of processes. Losses are means over the pixels of all, and batch statistics those of all
images, so that the run is that of one process, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from examples.config import Config
from examples.data import Images, Selection
from examples.engine.distributed import all_gather, all_reduce_sum, rank, world_size
from examples.engine.metrics import IoU

Batch = TypeVar("Batch", bound=tuple[Any, ...])
Collected = TypeVar("Collected", bound=IoU)


def check_shares(config: Config) -> None:
    """Refuse batches that the processes cannot share equally."""
    processes = world_size()
    for name in ("pool_size", "unlabeled_batch"):
        size = getattr(config, name)
        if size % processes:
            nearest = -(-size // processes) * processes
            raise ValueError(
                f"{name}: got {size} with {processes} processes, expected a multiple of {processes}, so that each has"
                f" an equal share; pass --{name.replace('_', '-')} {nearest}, or start fewer processes"
            )


def own(count: int) -> slice:
    """Return this process's share of so many, in order."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def share_of(batch: Batch) -> Batch:
    """Return this process's share of a tuple of tensors (B, ...) and of functions that lead from such to such."""
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
    """Augment this process's share as it would be augmented in the whole batch, by the same draws."""
    if world_size() == 1:
        return augment(*shares)
    count = int(all_reduce_sum(torch.tensor(len(shares[0]))))
    return share_of(augment(*(place_shard(share, count) for share in shares)))


def place_shard(share: Tensor, count: int) -> Tensor:
    """Return a share (B, ...) in its place in a batch of ``count``; what the others' places become is not used."""
    whole = share.new_zeros(count, *share.shape[1:])
    whole[own(count)] = share
    return whole


def own_images(images: Images) -> Images:
    """Return every so many-th image, for this process to evaluate."""
    return images if world_size() == 1 else Selection(images, range(rank(), len(images), world_size()))


def of_all_images(iou: Collected) -> Collected:
    """Return what the processes have collected of their own images, in the order of all images."""
    if world_size() == 1:
        return iou
    for counts in iou.collected():
        mine, counts[:] = list(counts), []
        parts = [torch.cat(theirs) for theirs in all_gather(mine) if theirs]  # a process may have had no image
        counts += [part[i : i + 1] for i in range(len(parts[0])) for part in parts if i < len(part)]
    return iou
