"""The matching in plain PyTorch: tiles of similarities that stay in cache, and no list of nearest neighbours at all.

Two facts make k nearest neighbours unnecessary.  A class proximity is the best similarity m_S of a label
set over the *whole* reference set, or 0; and m_S is among the k nearest exactly if fewer than k
references are more similar than m_S.  With the references sorted by label set, the first is a segmented
maximum of a matrix product and the second a count over the same product, so similarities live only as
long as a few queries are worked on.

The maximum is taken over groups of a few references first and over the groups of a set then.  Groups are filled up
with zero vectors, whose similarity 0 changes neither a maximum, which is clipped at 0, nor a count above a positive
threshold.  Counts are rarely needed: a group whose maximum is not above a threshold holds nothing above it, and
so the maxima of the groups alone show most sets to be inside.  With a query's sets in order of m_S, a set is also
inside while the sets before it hold fewer than k references together.  Membership is monotone in that order, so a
binary search over what remains finds the boundary with log2 |S| counts: in a sample of the references, whose guess
takes two or three counts of all to confirm or mend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .bounds import balanced_limit, size_bounds
from .contract import EPS, EPS_MATTERS, TIE, Matches
from .precision import full_float32_matmul
from .shards import LocalReferences
from .units import unit_length

# Queries in one block.  A multiple of 64: in between the product is up to twice as slow.
_QUERIES = {"cpu": 256, "cuda": 1024}
# Similarities in one tile of a block: on a CPU 2 MiB, near what its second-level caches hold.
_TILE = {"cpu": 2**19, "cuda": 2**23}
# Similarities of one block that are kept in 16 bits for the counts: 8 MiB on a CPU, within its shared cache.
_KEPT = {"cpu": 2**22, "cuda": 2**25}
# Maxima of groups that are kept of one block.
_GROUPS = {"cpu": 2**20, "cuda": 2**23}
_LARGEST_GROUP = 16
# One reference in so many is in the sample that guesses where the k nearest end.
_SAMPLED = 8

# References whose unit-length copies are made at a time.
_COPIED = 2**13

# What a similarity of 1 is rounded to; one that exceeds 1 by its own rounding must fit into 16 bits too.
_ROUNDED_ONE = 2**15 - 2
# Rows whose flags can be summed in 16 bits.
_COUNTABLE = 2**15 - 1

_NO_KEY = torch.iinfo(torch.int64).max


def match_chunked(
    queries: Tensor,
    references: Tensor,
    set_ids: Tensor,
    num_sets: int,
    k: float,
    shards: LocalReferences | None = None,
    *,
    balanced: bool = False,
    block: int | None = None,
    tile: int | None = None,
    kept: int | None = None,
) -> Matches:
    """Match ``block`` queries at a time with a tile of the references at a time (see :func:`match`).

    Extra memory: a unit-length copy of the references, O(N D); a tile of ``tile`` similarities and as much again;
    and at most ``kept`` similarities in 16 bits.  None takes sizes that suit the device.
    """
    device = queries.device
    shards = shards or LocalReferences(references, set_ids, num_sets)
    kept = _KEPT[device.type] if kept is None else kept
    all_inside = k >= (1 if balanced else shards.total)
    keeping = not (all_inside or balanced)
    # The same on all shards, as it decides which counts are exchanged.
    block = min(block or _block_size(device.type, shards.largest if keeping else 0, kept), len(queries))
    ours = _References(references, set_ids, num_sets, shards.first_index, block)
    height = max((tile or _TILE[device.type]) // block // ours.group, 1) * ours.group
    workspace = _Workspace(ours, block, height, keeping and shards.largest * block <= kept)

    nearest_sets = torch.empty(len(queries), dtype=torch.int64, device=device)
    proximities = torch.empty(len(queries), num_sets, dtype=torch.float32, device=device)
    with full_float32_matmul():
        for start in range(0, len(queries), block):
            chunk = slice(start, start + block)
            few = _Block(ours, queries[chunk], workspace)
            best = shards.maximum(few.set_maxima()).clamp_(max=1)
            best.masked_fill_(best <= TIE, 0)
            nearest_sets[chunk] = _nearest_sets(few, best, shards)
            if balanced and not all_inside:
                _drop_sets_beyond_balanced_k(few, best, k, shards)
            elif not all_inside:
                _drop_sets_beyond_k(few, best, int(k), shards)
            proximities[chunk] = best.T
    return Matches(nearest_sets, proximities)


def _block_size(device: str, references: int, kept: int) -> int:
    """Queries at a time: fewer than usual where their similarities can be kept for the counts only then."""
    usual = _QUERIES[device]
    return next((block for block in (usual, usual // 2, usual // 4) if block * references <= kept), usual)


class _References:
    """Unit-length references sorted by label set, every set filled up with zero vectors to whole groups."""

    def __init__(self, references: Tensor, set_ids: Tensor, num_sets: int, first_index: int, block: int) -> None:
        n, device = len(references), references.device
        sizes = torch.bincount(set_ids, minlength=num_sets)
        # Filling up costs half a group per set: not more than about a sixth of the work.
        self.group = 1
        while self.group < _LARGEST_GROUP and 6 * self.group * num_sets <= n:
            self.group *= 2
        while n // self.group * block > _GROUPS[device.type]:
            self.group *= 2
        groups = (sizes + self.group - 1) // self.group
        room = groups * self.group
        by_set = torch.argsort(set_ids, stable=True)
        shift = (room.cumsum(0) - room) - (sizes.cumsum(0) - sizes)
        slots = torch.empty_like(by_set)
        slots[by_set] = torch.arange(n, device=device) + shift[set_ids[by_set]]

        self.num_sets = num_sets
        self.group_sets = torch.repeat_interleave(torch.arange(num_sets, device=device), groups)
        filled = len(self.group_sets) * self.group
        # Smaller is an earlier reference; the label set comes along.
        self.keys = torch.full((filled,), _NO_KEY, device=device)
        self.keys[slots] = (first_index + torch.arange(n, device=device)) * num_sets + set_ids
        self.unit = torch.zeros(filled, references.shape[1], dtype=torch.float32, device=device)
        self.norm = torch.ones(filled, dtype=torch.float32, device=device)
        for start in range(0, n, _COPIED):
            some = slice(start, start + _COPIED)
            unit, norm = unit_length(references[some])
            self.unit[slots[some]] = unit
            self.norm[slots[some]] = norm
        self.smallest_norm = self.norm.amin() if n else self.norm.new_tensor(torch.inf)


class _Workspace:
    """Memory that one block after the other uses: a tile of similarities, flags, and what is kept in 16 bits."""

    def __init__(self, references: _References, block: int, height: int, keep: bool) -> None:
        rows, device = len(references.unit), references.unit.device
        self.height = height
        self.tile = torch.empty(min(height, rows) * block, dtype=torch.float32, device=device)
        self.flags = torch.empty_like(self.tile)
        self.rounded = torch.empty(rows * block, dtype=torch.int16, device=device) if keep else None
        self.group_maxima = torch.empty(len(references.group_sets) * block, dtype=torch.float32, device=device)


class _Block:
    """Similarities of all references, in rows, to a few queries, in columns."""

    def __init__(self, references: _References, queries: Tensor, workspace: _Workspace) -> None:
        self.references = references
        self.workspace = workspace
        self.unit, self.norm = unit_length(queries)
        self.eps_matters = bool(self.norm.amin() * references.smallest_norm < EPS_MATTERS)
        shape = len(references.group_sets), len(queries)
        self.group_maxima = workspace.group_maxima[: shape[0] * shape[1]].view(shape)
        self.rounded = None
        if workspace.rounded is not None:
            shape = len(references.unit), len(queries)
            self.rounded = workspace.rounded[: shape[0] * shape[1]].view(shape)

    def _tiles(self, columns: Tensor | None = None) -> Iterator[tuple[Tensor, slice]]:
        """Similarities of these queries (None: of all) tile by tile, and the rows of the tile."""
        unit, norm = (self.unit, self.norm) if columns is None else (self.unit[columns], self.norm[columns])
        unit = unit.T
        height = self.workspace.height
        for start in range(0, len(self.references.unit), height):
            rows = slice(start, min(start + height, len(self.references.unit)))
            shape = rows.stop - rows.start, unit.shape[1]
            similarities = self.workspace.tile[: shape[0] * shape[1]].view(shape)
            torch.mm(self.references.unit[rows], unit, out=similarities)
            if self.eps_matters:
                factor = self.workspace.flags[: similarities.numel()].view(shape)
                similarities /= torch.outer(EPS / self.references.norm[rows], 1 / norm, out=factor).add_(1)
            yield similarities, rows

    def set_maxima(self) -> Tensor:
        """``(|S|, c)``: highest similarity of every label set, or 0 if none is positive."""
        group, columns = self.references.group, len(self.unit)
        for similarities, rows in self._tiles():
            groups = slice(rows.start // group, rows.stop // group)
            torch.amax(similarities.view(-1, group, columns), dim=1, out=self.group_maxima[groups])
            if self.rounded is not None:
                self.rounded[rows] = similarities.mul_(_ROUNDED_ONE)
        best = self.unit.new_zeros(self.references.num_sets, columns)
        sets = self.references.group_sets[:, None].expand(-1, columns)
        return best.scatter_reduce_(0, sets, self.group_maxima, "amax")

    def lowest_key(self, columns: Tensor, threshold: Tensor) -> Tensor:
        """Key of the first reference whose similarity is not below the threshold, for each of these queries."""
        lowest = torch.full(columns.shape, _NO_KEY, device=columns.device)
        for similarities, rows in self._tiles(columns):
            hits = torch.where(similarities >= threshold, self.references.keys[rows, None], _NO_KEY)
            lowest = torch.minimum(lowest, hits.amin(0))
        return lowest

    def count_above(self, columns: Tensor, threshold: Tensor) -> Tensor:
        """References above a positive threshold, for each of these queries."""
        counts = torch.zeros_like(columns)
        for similarities, _ in self._tiles(columns):
            counts += self._count(torch.gt, similarities, threshold)
        return counts

    def count_above_by_set(self, columns: Tensor, threshold: Tensor) -> Tensor:
        """``(|S|, c)`` int64: references of every set above a positive threshold, for each of these queries."""
        group, group_sets = self.references.group, self.references.group_sets
        counts = columns.new_zeros(self.references.num_sets, len(columns))
        for similarities, rows in self._tiles(columns):
            flags = self.workspace.flags[: similarities.numel()].view(similarities.shape)
            above = torch.gt(similarities, threshold, out=flags).view(-1, group, len(columns)).sum(1)
            counts.index_add_(0, group_sets[rows.start // group : rows.stop // group], above.long())
        return counts

    def groups_above(self, threshold: Tensor) -> Tensor:
        """``(c,)`` int64: groups that hold a reference above a positive threshold."""
        return self._count(torch.gt, self.group_maxima, threshold)

    def restrict(self, columns: Tensor) -> None:
        """Go on with these queries alone."""
        self.unit, self.norm = self.unit[columns], self.norm[columns]
        if self.rounded is not None:
            self.rounded = self.rounded.index_select(1, columns)

    def count_above_at_most(self, threshold: Tensor) -> Tensor:
        """``(c,)`` int64: no fewer references than are above a positive threshold, from the similarities in 16 bits."""
        assert self.rounded is not None
        return self._count(torch.ge, self.rounded, (threshold * _ROUNDED_ONE).to(torch.int16))

    def count_in_sample(self, threshold: Tensor) -> Tensor:
        """``(c,)`` int64: references above a positive threshold, about, among one in _SAMPLED of all."""
        assert self.rounded is not None
        return self._count(torch.gt, self.rounded[::_SAMPLED], (threshold * _ROUNDED_ONE).to(torch.int16))

    def count_above_at_least(self, threshold: Tensor) -> Tensor:
        """``(c,)`` int64: no more references than are above a positive threshold, from the similarities in 16 bits."""
        assert self.rounded is not None
        return self._count(torch.gt, self.rounded, (threshold * _ROUNDED_ONE).to(torch.int16))

    def _count(self, compare: Callable[..., Tensor], values: Tensor, threshold: Tensor) -> Tensor:
        # Flags of the values' own type are made and summed several times faster than bools.
        flags = self.workspace.flags.view(values.dtype)
        counts = [
            compare(part, threshold, out=flags[: part.numel()].view(part.shape)).sum(0, dtype=values.dtype)
            for part in torch.split(values, min(len(flags) // len(threshold), _COUNTABLE))
        ]
        return torch.stack(counts).sum(0, dtype=torch.int64)


def _nearest_sets(few: _Block, best: Tensor, shards: LocalReferences) -> Tensor:
    """Label set of the nearest reference; ties between sets go to the lowest reference index."""
    top, nearest = best.max(0)
    tied = ((best >= top - TIE).sum(0) > 1).nonzero().squeeze(1)
    if len(tied):
        # Where the best proximity is 0, every reference is equally near, whatever its negative cosine.
        threshold = torch.where(top == 0, -2.0, top - TIE)[tied]
        nearest[tied] = shards.minimum(few.lowest_key(tied, threshold)) % len(best)
    return nearest


def _drop_sets_beyond_k(few: _Block, best: Tensor, k: int, shards: LocalReferences) -> None:
    """Set to 0 what is not among the k nearest: sets whose best has k or more references above it."""
    lowest = best.masked_fill(best == 0, torch.inf).amin(0)
    at_most = shards.sum(few.groups_above(lowest + TIE) * few.references.group)
    queries = (at_most >= k).nonzero().squeeze(1)
    if len(queries) == 0:
        return
    if 16 * len(queries) > best.shape[1]:
        queries = torch.arange(best.shape[1], device=best.device)  # copying some out would cost more than it saves
    else:
        few.restrict(queries)
    ranked, by_rank = _rank(best[:, queries])
    inside = _sets_inside(few, ranked, by_rank, k, shards)
    ranked.masked_fill_(torch.arange(len(best), device=best.device)[:, None] >= inside, 0)
    best[:, queries] = torch.empty_like(ranked).scatter_(0, by_rank, ranked)


def _drop_sets_beyond_balanced_k(few: _Block, best: Tensor, k: float, shards: LocalReferences) -> None:
    """The same where every reference counts one over the size of its set, and so a whole set 1."""

    def nearer(columns: Tensor, threshold: Tensor) -> Tensor:
        counts = shards.sum(few.count_above_by_set(columns, threshold))
        return (counts / shards.sizes[:, None].double()).sum(0)

    limit = balanced_limit(k, len(best))
    ranked, by_rank = _rank(best)
    inside, outside = size_bounds(ranked, by_rank, torch.ones_like(shards.sizes), limit)
    inside = _bisect(inside, outside, torch.cat([ranked, ranked[-1:]]) + TIE, nearer, limit)
    ranked.masked_fill_(torch.arange(len(best), device=best.device)[:, None] >= inside, 0)
    best.scatter_(0, by_rank, ranked)


def _rank(best: Tensor) -> tuple[Tensor, Tensor]:
    """The non-negative maxima ``(|S|, c)`` of every query in falling order, and their sets, ties by number."""
    if best.device.type != "cpu":  # pragma: no cover  # needs a GPU
        ranked, by_rank = best.sort(dim=0, descending=True, stable=True)
        return ranked, by_rank
    # NumPy sorts short rows of integers some twenty times faster than torch does floats with their indices. The bits
    # of non-negative floats are in the order of the floats; adding 0 turns -0 into 0.
    bits = (best.T + 0).contiguous().view(torch.int32).to(torch.int64)
    keys = torch.arange(len(best)) - (bits << 32)
    keys.numpy().sort(axis=1)
    bits = -(keys >> 32)
    return bits.to(torch.int32).view(torch.float32).T, (keys & 0xFFFFFFFF).T


def _sets_inside(few: _Block, ranked: Tensor, by_rank: Tensor, k: int, shards: LocalReferences) -> Tensor:
    """How many of a query's sets, in order of their maxima, are among the k nearest."""
    # Ranks below `inside` are inside, ranks from `outside` on are not, or their maximum is 0.
    inside, outside = size_bounds(ranked, by_rank, shards.sizes, k)
    thresholds = torch.cat([ranked, ranked[-1:]]) + TIE

    if few.rounded is not None:
        beyond = outside
        # A search in a sample guesses the first rank that is not inside; then as few counts as confirm it.
        guess, end = inside, beyond
        while bool((guess < end).any()):
            middle = (guess + end) // 2
            counts = shards.sum(few.count_in_sample(thresholds.gather(0, middle[None])[0]))
            guess = torch.where(counts * _SAMPLED < k, torch.minimum(middle + 1, end), guess)
            end = torch.where(counts * _SAMPLED < k, end, middle)
        probe, step = guess - 1, 1
        while bool((inside < beyond).any()):
            probe = torch.minimum(torch.maximum(probe, inside), beyond - 1).clamp(min=0)
            counts = shards.sum(few.count_above_at_most(thresholds.gather(0, probe[None])[0]))
            within = counts < k
            inside = torch.where(within, torch.minimum(probe + 1, beyond), inside)
            beyond = torch.where(within, beyond, torch.maximum(probe, inside))
            # Away from the guess in growing steps, and no further than the middle of what remains.
            reach = ((beyond - inside + 1) // 2).clamp(max=step)
            probe = torch.where(within, inside + reach - 1, beyond - reach)
            step *= 2
        counts = shards.sum(few.count_above_at_least(thresholds.gather(0, inside[None])[0]))
        outside = torch.where(counts < k, outside, inside)

    def nearer(columns: Tensor, threshold: Tensor) -> Tensor:
        return shards.sum(few.count_above(columns, threshold))

    return _bisect(inside, outside, thresholds, nearer, k)


def _bisect(
    inside: Tensor, outside: Tensor, thresholds: Tensor, nearer: Callable[[Tensor, Tensor], Tensor], limit: float
) -> Tensor:
    """The first rank between the two whose threshold has no less than ``limit`` references nearer, for every query."""
    while True:
        undecided = (inside < outside).nonzero().squeeze(1)
        if len(undecided) == 0:
            return inside
        middle = (inside[undecided] + outside[undecided]) // 2
        within = nearer(undecided, thresholds[middle, undecided]) < limit
        inside[undecided] = torch.where(within, middle + 1, inside[undecided])
        outside[undecided] = torch.where(within, outside[undecided], middle)
