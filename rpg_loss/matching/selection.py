"""Which label set is nearest and which are among the k nearest, by what an engine answers for similarities.

Two facts make k nearest neighbors unnecessary.  A class proximity is the best similarity m_S of a label set over the
*whole* reference set, or 0; and m_S is among the k nearest exactly if fewer than k references are more similar than
m_S.  So an engine is asked for maxima and for counts, and no list of neighbors ever exists.  With a query's sets in
order of m_S, a set is surely inside while the sets before it hold fewer than k references together.  Membership is
monotone in that order, so a search over what remains finds the boundary in a few counts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .definition import TIE, Matches
from .references import LocalReferences

NO_KEY = torch.iinfo(torch.int64).max


@dataclass
class Ranking:
    """The label sets of some queries in order of their maxima, and what is known of where the k nearest end.

    Attributes:
        rows: ``(R,)`` int64, the queries.
        maxima: ``(R, |S|)`` float32, falling.
        sets: ``(R, |S|)`` int64, label set of every rank.
        inside: ``(R,)`` int64; ranks below it are among the k nearest.
        outside: ``(R,)`` int64; ranks from it on are not, or their maximum is 0.
        thresholds: ``(R, |S| + 1)`` float32; references above it are nearer than the best of that rank.
    """

    rows: Tensor
    maxima: Tensor
    sets: Tensor
    inside: Tensor
    outside: Tensor
    thresholds: Tensor


class Engine(Protocol):
    """What answers for the similarities of m queries to the references of this process, without keeping them.

    ``rows`` are the queries that are asked for, ``(R,)`` int64.  An engine that knows cheap bounds overrides
    :meth:`undecided` and :meth:`narrow`; both must ask the other processes the same questions in the same order.

    Attributes:
        thresholds: how many thresholds per query :meth:`count_above` takes.
    """

    thresholds: int

    @abstractmethod
    def set_maxima(self) -> Tensor:
        """Return ``(m, |S|)`` float32, the highest similarity of every label set, or 0 if none is positive."""

    @abstractmethod
    def lowest_key(self, rows: Tensor, threshold: Tensor) -> Tensor:
        """Return ``(R,)`` int64, the key of the first reference whose similarity is not below the query's threshold.

        The key of a reference is its index times |S| plus its label set; NO_KEY where there is none.
        """

    @abstractmethod
    def count_above(self, rows: Tensor, thresholds: Tensor) -> Tensor:
        """Return integers ``(R, T)``, references above each of a query's positive, falling ``thresholds (R, T)``."""

    def undecided(self, best: Tensor, k: int, references: LocalReferences) -> Tensor:
        """Return the queries of which some set may be beyond the k nearest."""
        return torch.arange(len(best), device=best.device)

    def narrow(self, ranking: Ranking, k: int, references: LocalReferences) -> None:
        """Bring ``ranking.inside`` and ``ranking.outside`` nearer to each other, as far as cheap counts allow."""
        return


def match_in_blocks(
    engine_of: Callable[[slice], Engine], num_queries: int, block: int, k: int, references: LocalReferences
) -> Matches:
    """Match ``block`` queries at a time by what their engine answers."""
    device = references.features.device
    nearest_sets = torch.empty(num_queries, dtype=torch.int64, device=device)
    proximities = torch.empty(num_queries, references.num_sets, dtype=torch.float32, device=device)
    for start in range(0, num_queries, block):
        some = slice(start, start + block)
        engine = engine_of(some)
        best = references.maximum(engine.set_maxima()).clamp_(max=1)
        best.masked_fill_(best <= TIE, 0)
        nearest_sets[some] = _nearest_sets(engine, best, references)
        if k < references.total:
            _drop_sets_beyond_k(engine, best, k, references)
        proximities[some] = best
    return Matches(nearest_sets, proximities)


def _nearest_sets(engine: Engine, best: Tensor, references: LocalReferences) -> Tensor:
    """Return the label set of the nearest reference; ties between sets go to the lowest reference index."""
    top, nearest = best.max(1)
    tied = ((best >= top[:, None] - TIE).sum(1) > 1).nonzero().squeeze(1)
    if len(tied):
        # Where the best proximity is 0, every reference is equally near, whatever its negative cosine.
        threshold = torch.where(top == 0, -2.0, top - TIE)[tied]
        nearest[tied] = references.minimum(engine.lowest_key(tied, threshold)) % best.shape[1]
    return nearest


def _drop_sets_beyond_k(engine: Engine, best: Tensor, k: int, references: LocalReferences) -> None:
    """Set to 0 what is not among the k nearest: sets whose best has k or more references above it."""
    rows = engine.undecided(best, k, references)
    if len(rows) == 0:
        return
    maxima, sets = _rank(best[rows])
    # By the sizes of the sets alone.
    sizes = references.sizes[sets]
    inside = (sizes.cumsum(1) - sizes < k).sum(1)
    outside = torch.maximum((maxima > 0).sum(1), inside)
    ranking = Ranking(rows, maxima, sets, inside, outside, torch.cat([maxima, maxima[:, -1:]], dim=1) + TIE)
    engine.narrow(ranking, k, references)
    _search(engine, ranking, k, references)
    maxima.masked_fill_(torch.arange(best.shape[1], device=best.device) >= ranking.inside[:, None], 0)
    best[rows] = torch.empty_like(maxima).scatter_(1, sets, maxima)


def _rank(best: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the non-negative maxima ``(R, |S|)`` of every query in falling order, ties by the number of the set."""
    if best.device.type != "cpu":  # pragma: no cover  # needs a GPU
        maxima, sets = best.sort(dim=1, descending=True, stable=True)
        return maxima, sets
    # NumPy sorts short rows of integers some twenty times faster than torch does floats with their indices. The bits
    # of non-negative floats are in the order of the floats; adding 0 turns -0 into 0.
    bits = (best + 0).contiguous().view(torch.int32).to(torch.int64)
    keys = torch.arange(best.shape[1]) - (bits << 32)
    try:
        keys.numpy().sort(axis=1)
    except RuntimeError:  # the tensors of torch.func hold no memory of their own
        keys = keys.sort(dim=1).values
    bits = -(keys >> 32)
    return bits.to(torch.int32).view(torch.float32), keys & 0xFFFFFFFF


def _search(engine: Engine, ranking: Ranking, k: int, references: LocalReferences) -> None:
    """Raise ``inside`` to the first rank with k or more references nearer than its best, for every query.

    T thresholds at a time cut what is undecided into T + 1 parts.
    """
    numbers = torch.arange(1, engine.thresholds + 1, device=ranking.rows.device)
    while True:
        undecided = (ranking.inside < ranking.outside).nonzero().squeeze(1)
        if len(undecided) == 0:
            return
        low, high = ranking.inside[undecided], ranking.outside[undecided]
        step = (high - low + 1 + engine.thresholds) // (engine.thresholds + 1)
        probes = low[:, None] + step[:, None] * numbers - 1
        beyond = probes >= high[:, None]
        probes = torch.minimum(probes, high[:, None] - 1)
        thresholds = ranking.thresholds[undecided[:, None], probes]
        counts = references.sum(engine.count_above(ranking.rows[undecided], thresholds))
        within = ((counts < k) & ~beyond).sum(1)
        ranking.inside[undecided] = low + within * step
        ranking.outside[undecided] = torch.minimum(high, low + (within + 1) * step - 1)
