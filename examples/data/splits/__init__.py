"""How images are divided: committed divisions of known data sets, and draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

MAX_DRAWS = 1000

T = TypeVar("T")


def as_json(divisions: Mapping[str, Sequence[object]]) -> str:
    """Return one division a line."""
    named = (f'"{name}": [\n' + ",\n".join(map(json.dumps, drawn)) + "\n]" for name, drawn in divisions.items())
    return "{\n" + ",\n".join(named) + "\n}"


def best_of(draw: Callable[[], T], faults: Callable[[T], tuple[int, ...]]) -> T:
    """Return the first draw without faults, or the one with the fewest of ``MAX_DRAWS``."""
    best = draw()
    for _ in range(MAX_DRAWS - 1):
        if not any(faults(best)):
            break
        best = min(best, draw(), key=faults)
    return best
