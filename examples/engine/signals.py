"""Ctrl-C and a polite kill: a run finishes its step and saves it before it ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 2.0  # seconds: a terminal and a job's parent may both pass on one Ctrl-C


class Interrupted(KeyboardInterrupt):
    """A run was ended by the signal of this number."""

    def __init__(self, number: int, when: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {when}")
        self.number = number


class Interrupts:
    """Takes SIGINT and SIGTERM; use as a context manager, in the main thread (elsewhere it does nothing).

    A signal raises :class:`Interrupted` at once, but within :meth:`deferred` it is only noted in ``received``: the loop
    is to save and raise. A second one, two seconds later or more, raises at once even there.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferring = False
        self.since = 0.0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            # What the parent has told the process to ignore, it goes on ignoring.
            handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self.before = {number: signal.signal(number, self.handle) for number in handled}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.deferring:
            raise Interrupted(number, "where there was nothing to save")
        if self.received is None:
            self.received, self.since = number, time.monotonic()
        elif time.monotonic() - self.since > PATIENCE:
            raise Interrupted(number, "at once; the step under way is lost")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False
        if self.received is not None:
            raise Interrupted(self.received, "after the last step")
