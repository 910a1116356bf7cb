"""The next batch is prepared while the device computes the present one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch

Item = TypeVar("Item", covariant=True)


class Stream(Iterator[Item], Protocol[Item]):
    """Endless, and goes on from a ``state_dict`` exactly where it was taken."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


class Prefetched(Iterator[Item]):
    """A stream whose next item is prepared by another thread while the last one is in use.

    The items and their order are the stream's own, and ``state_dict`` is that after the last item handed out: what has
    been prepared beyond it is drawn again, alike, by a run that goes on. On a GPU both threads queue their work in one
    CUDA stream, so that a batch is complete before anything that uses it begins.

    Args:
        stream: From now on used by nothing else.
        worker: Where items are prepared. It must have one thread if several streams that share something use it.
    """

    def __init__(self, stream: Stream[Item], worker: Executor) -> None:
        self.stream = stream
        self.worker = worker
        self.coming: Future[tuple[Item, dict[str, Any]]] | None = None
        self.state = stream.state_dict()

    def __next__(self) -> Item:
        """The stream's next item, or the exception that it raises instead."""
        coming = self.coming or self.worker.submit(self.prepare)
        item, self.state = coming.result()
        self.coming = self.worker.submit(self.prepare)
        return item

    def prepare(self) -> tuple[Item, dict[str, Any]]:
        return next(self.stream), self.stream.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.coming is not None:
            self.coming.exception()  # waits: the thread must not draw from what is replaced
        self.coming = None
        self.stream.load_state_dict(state)
        self.state = self.stream.state_dict()


def data_thread() -> ThreadPoolExecutor:
    """The thread that prepares batches; use as a context manager.

    PyTorch takes no further threads for its work: on a CPU they would compete with those of the training step, which
    takes a third longer then.
    """
    return ThreadPoolExecutor(1, "data", torch.set_num_threads, (1,))
