"""How images are divided: committed divisions of known data sets, and draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

MAX_DRAWS = 1000

T = TypeVar("T")


def best_of(draw: Callable[[], T], faults: Callable[[T], tuple[int, ...]]) -> T:
    """Return the first draw without faults, or the one with the fewest of ``MAX_DRAWS``."""
    best = draw()
    for _ in range(MAX_DRAWS - 1):
        if not any(faults(best)):
            break
        best = min(best, draw(), key=faults)
    return best
