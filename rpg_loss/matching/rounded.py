"""Similarities in 16 bits: counted several times faster than floats, and close bounds of the exact counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .references import LocalReferences
from .selection import Ranking

# What a similarity of 1 is rounded to; one that exceeds 1 by its own rounding must fit into 16 bits too.
_ROUNDED_ONE = 2**15 - 2
# Rows whose flags can be summed in 16 bits.
_COUNTABLE = 2**15 - 1
# One reference in so many is in the sample that guesses where the k nearest end.
_SAMPLED = 8


def count(compare: Callable[..., Tensor], values: Tensor, threshold: Tensor, flags: Tensor) -> Tensor:
    """Count the rows of ``values (n, c)`` that compare with ``threshold (c,)``: ``(c,)`` int64.

    ``flags`` is memory to work in; flags of the values' own type are made and summed several times faster than bools.
    """
    flags = flags.view(values.dtype)
    counts = [
        compare(part, threshold, out=flags[: part.numel()].view(part.shape)).sum(0, dtype=values.dtype)
        for part in torch.split(values, min(len(flags) // len(threshold), _COUNTABLE))
    ]
    return torch.stack(counts).sum(0, dtype=torch.int64)


class RoundedSimilarities:
    """Similarities of all references, in rows, to the queries of a block, in columns, rounded towards 0.

    Rounding keeps the order, so that similarities above a threshold are not below it when both are rounded
    (no fewer), and those above it when both are rounded are above it (no more).
    """

    def __init__(self, values: Tensor, flags: Tensor) -> None:
        self.values, self.flags = values, flags

    def keep(self, rows: slice, similarities: Tensor) -> None:
        """Round the similarities of some references, which are overwritten."""
        self.values[rows] = similarities.mul_(_ROUNDED_ONE)

    def narrow(self, ranking: Ranking, k: int, references: LocalReferences) -> None:
        """Bring ``inside`` and ``outside`` of a ranking together, up to what 16 bits cannot tell."""
        values = self.values
        if len(ranking.rows) < values.shape[1]:
            values = values.index_select(1, ranking.rows)

        def counted(compare: Callable[..., Tensor], values: Tensor, rank: Tensor) -> Tensor:
            threshold = ranking.thresholds.gather(1, rank[:, None])[:, 0] * _ROUNDED_ONE
            return references.sum(count(compare, values, threshold.to(torch.int16), self.flags))

        inside, beyond = ranking.inside, ranking.outside
        # A search in a sample guesses the first rank that is not inside: two or three counts of all then settle it.
        guess, end = inside, beyond
        while bool((guess < end).any()):
            middle = (guess + end) // 2
            within = counted(torch.gt, values[::_SAMPLED], middle) * _SAMPLED < k
            guess = torch.where(within, torch.minimum(middle + 1, end), guess)
            end = torch.where(within, end, middle)
        probe, step = guess - 1, 1
        while bool((inside < beyond).any()):
            probe = torch.minimum(torch.maximum(probe, inside), beyond - 1).clamp(min=0)
            within = counted(torch.ge, values, probe) < k
            inside = torch.where(within, torch.minimum(probe + 1, beyond), inside)
            beyond = torch.where(within, beyond, torch.maximum(probe, inside))
            # Away from the guess in growing steps, and no further than the middle of what remains.
            reach = ((beyond - inside + 1) // 2).clamp(max=step)
            probe = torch.where(within, inside + reach - 1, beyond - reach)
            step *= 2
        certain = counted(torch.gt, values, inside) >= k
        ranking.inside, ranking.outside = inside, torch.where(certain, inside, ranking.outside)
