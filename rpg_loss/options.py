"""What may be chosen of the matching, checked once."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import torch

from .checks import check_bool, check_choice, check_int
from .matching import IMPLEMENTATIONS, Impl

WAITS: dict[str, Any] = (
    {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}  # torch < 2.9
)
"""Marks operators that wait for the device: ``mode="reduce-overhead"`` leaves them out of CUDA graphs."""


@dataclass(frozen=True)
class Options:
    """Options that :class:`RPGLoss` and :func:`rpg_pseudo_labels` share, which says what each is.

    Raises:
        TypeError: an option is of a wrong type.
        ValueError: an option out of range.
    """

    k: int | float = 0.5
    ignore_index: int = -100
    impl: Impl = "auto"
    check_values: bool = True

    def __post_init__(self) -> None:
        expected = "an int >= 1 (a number of references) or a float in (0, 1] (a share of them)"
        if isinstance(self.k, bool) or not isinstance(self.k, numbers.Real):
            raise TypeError(f"k: got {type(self.k).__name__}, expected {expected}")
        if isinstance(self.k, numbers.Integral):
            if self.k < 1:
                raise ValueError(f"k: got {self.k}, expected {expected}")
        elif not 0 < float(self.k) <= 1:  # also refuses NaN
            raise ValueError(
                f"k: got the float {float(self.k)}, expected {expected}; a number of references must be an int"
            )
        check_int("ignore_index", self.ignore_index)
        check_choice("impl", self.impl, ("auto", *IMPLEMENTATIONS))
        check_bool("check_values", self.check_values)
        # NumPy's numbers as Python's: compilers and operators take no others.
        object.__setattr__(self, "k", int(self.k) if isinstance(self.k, numbers.Integral) else float(self.k))
        object.__setattr__(self, "ignore_index", int(self.ignore_index))

    def nearest_of(self, n: int) -> int:
        """Return how many of ``n`` references are the k nearest."""
        return min(self.k, n) if isinstance(self.k, int) else max(1, round(self.k * n))

    @property
    def values(self) -> tuple[int | float, int, str, bool]:
        """The options in order, as an operator takes them: ``Options(*options.values)`` is the same."""
        return self.k, self.ignore_index, self.impl, self.check_values
