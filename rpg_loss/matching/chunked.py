"""The matching in plain PyTorch: tiles of similarities that stay in cache, and live as long as they are worked on.

With the references sorted by label set, the maxima of the sets are a segmented maximum of a matrix product, and counts
are counts over the same product.  The maximum is taken over groups of a few references first and over the groups of a
set then.  Groups are filled up with zero vectors, whose similarity 0 changes neither a maximum, which is clipped at 0,
nor a count above a positive threshold.  Counts are rarely needed: a group whose maximum is not above a threshold holds
nothing above it, and so the maxima of the groups alone show most sets to be inside (:meth:`_Block.undecided`).  Where
they do not, similarities kept in 16 bits settle nearly all of what remains (:mod:`.rounded`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .definition import EPS, EPS_MATTERS, TIE, Matches
from .normalize import full_float32_matmul, unit_length
from .references import LocalReferences
from .rounded import RoundedSimilarities, count
from .selection import NO_KEY, Engine, Ranking, match_in_blocks


class _Sizes(NamedTuple):
    """How the work is cut up on a device.

    Attributes:
        queries: in one block.  A multiple of 64: in between the product is up to twice as slow.
        tile: similarities in one tile of a block: on a CPU 2 MiB, near what its second-level caches hold.
        kept: similarities of one block that are kept in 16 bits for the counts: 8 MiB on a CPU, in its shared cache.
        groups: maxima of groups that are kept of one block.
    """

    queries: int
    tile: int
    kept: int
    groups: int


_CPU, _ACCELERATOR = _Sizes(2**8, 2**19, 2**22, 2**20), _Sizes(2**10, 2**23, 2**25, 2**23)
_LARGEST_GROUP = 16
# References whose unit-length copies are made at a time.
_COPIED = 2**13


def match_chunked(
    queries: Tensor,
    references: LocalReferences,
    k: int,
    *,
    block: int | None = None,
    tile: int | None = None,
    kept: int | None = None,
) -> Matches:
    """Match ``block`` queries at a time with a tile of the references at a time (see :func:`match`).

    Extra memory: a unit-length copy of the references, O(N D); a tile of ``tile`` similarities and as much again;
    and at most ``kept`` similarities in 16 bits.  None takes sizes that suit the device.
    """
    sizes = _sizes(queries.device)
    kept = sizes.kept if kept is None else kept
    counting = k < references.total
    # The same on all processes, as it decides which counts are exchanged.
    block = min(block or _block_size(sizes.queries, references.largest if counting else 0, kept), len(queries))
    grouped = _Grouped(references, block)
    height = max((tile or sizes.tile) // block // grouped.group, 1) * grouped.group
    workspace = _Workspace(grouped, block, height, counting and references.largest * block <= kept)
    with full_float32_matmul():
        return match_in_blocks(
            lambda some: _Block(grouped, queries[some], workspace), len(queries), block, k, references
        )


def _sizes(device: torch.device) -> _Sizes:
    return _CPU if device.type == "cpu" else _ACCELERATOR


def _block_size(usual: int, references: int, kept: int) -> int:
    """Return how many queries to take at a time: fewer where their similarities can be kept for counts only then."""
    return next((block for block in (usual, usual // 2, usual // 4) if block * references <= kept), usual)


class _Grouped:
    """Unit-length references sorted by label set, every set filled up with zero vectors to whole groups."""

    def __init__(self, references: LocalReferences, block: int) -> None:
        features, set_ids, num_sets = references.features, references.set_ids, references.num_sets
        n, device = len(features), features.device
        sizes = torch.bincount(set_ids, minlength=num_sets)
        # Filling up costs half a group per set: not more than about a sixth of the work.
        self.group = 1
        while self.group < _LARGEST_GROUP and 6 * self.group * num_sets <= n:
            self.group *= 2
        while n // self.group * block > _sizes(device).groups:
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
        self.keys = torch.full((filled,), NO_KEY, device=device)
        self.keys[slots] = (references.first_index + torch.arange(n, device=device)) * num_sets + set_ids
        self.unit = torch.zeros(filled, features.shape[1], dtype=torch.float32, device=device)
        self.norm = torch.ones(filled, dtype=torch.float32, device=device)
        for start in range(0, n, _COPIED):
            some = slice(start, start + _COPIED)
            unit, norm = unit_length(features[some])
            self.unit[slots[some]] = unit
            self.norm[slots[some]] = norm
        self.smallest_norm = self.norm.amin() if n else self.norm.new_tensor(torch.inf)


class _Workspace:
    """Memory that one block after the other uses: a tile of similarities, flags, and what is kept in 16 bits."""

    def __init__(self, grouped: _Grouped, block: int, height: int, keep: bool) -> None:
        rows, device = len(grouped.unit), grouped.unit.device
        self.height = height
        self.tile = torch.empty(min(height, rows) * block, dtype=torch.float32, device=device)
        self.flags = torch.empty_like(self.tile)
        self.rounded = torch.empty(rows * block, dtype=torch.int16, device=device) if keep else None
        self.group_maxima = torch.empty(len(grouped.group_sets) * block, dtype=torch.float32, device=device)


class _Block(Engine):
    """Similarities of all references, in rows, to a few queries, in columns."""

    thresholds = 1

    def __init__(self, grouped: _Grouped, queries: Tensor, workspace: _Workspace) -> None:
        self.grouped = grouped
        self.workspace = workspace
        self.unit, self.norm = unit_length(queries)
        self.eps_matters = bool(self.norm.amin() * grouped.smallest_norm < EPS_MATTERS)
        self.group_maxima = _part(workspace.group_maxima, len(grouped.group_sets), len(queries))
        self.rounded = None
        if workspace.rounded is not None:
            values = _part(workspace.rounded, len(grouped.unit), len(queries))
            self.rounded = RoundedSimilarities(values, workspace.flags)

    def _tiles(self, columns: Tensor | None = None) -> Iterator[tuple[Tensor, slice]]:
        """Yield similarities of these queries (None: of all) tile by tile, and the rows of the tile."""
        unit, norm = (self.unit, self.norm) if columns is None else (self.unit[columns], self.norm[columns])
        height = self.workspace.height
        for start in range(0, len(self.grouped.unit), height):
            rows = slice(start, min(start + height, len(self.grouped.unit)))
            similarities = _part(self.workspace.tile, rows.stop - rows.start, len(unit))
            torch.mm(self.grouped.unit[rows], unit.T, out=similarities)
            if self.eps_matters:
                factor = _part(self.workspace.flags, *similarities.shape)
                similarities /= torch.outer(EPS / self.grouped.norm[rows], 1 / norm, out=factor).add_(1)
            yield similarities, rows

    def set_maxima(self) -> Tensor:
        group, columns = self.grouped.group, len(self.unit)
        for similarities, rows in self._tiles():
            groups = slice(rows.start // group, rows.stop // group)
            torch.amax(similarities.view(-1, group, columns), dim=1, out=self.group_maxima[groups])
            if self.rounded is not None:
                self.rounded.keep(rows, similarities)
        best = self.unit.new_zeros(self.grouped.num_sets, columns)
        sets = self.grouped.group_sets[:, None].expand(-1, columns)
        return best.scatter_reduce_(0, sets, self.group_maxima, "amax").T

    def lowest_key(self, rows: Tensor, threshold: Tensor) -> Tensor:
        lowest = torch.full(rows.shape, NO_KEY, device=rows.device)
        for similarities, references in self._tiles(rows):
            hits = torch.where(similarities >= threshold, self.grouped.keys[references, None], NO_KEY)
            lowest = torch.minimum(lowest, hits.amin(0))
        return lowest

    def count_above(self, rows: Tensor, thresholds: Tensor) -> Tensor:
        counts = torch.zeros_like(rows)
        for similarities, _ in self._tiles(rows):
            counts += count(torch.gt, similarities, thresholds[:, 0], self.workspace.flags)
        return counts[:, None]

    def undecided(self, best: Tensor, k: int, references: LocalReferences) -> Tensor:
        lowest = best.masked_fill(best == 0, torch.inf).amin(1)
        groups = count(torch.gt, self.group_maxima, lowest + TIE, self.workspace.flags)
        rows = (references.sum(groups * self.grouped.group) >= k).nonzero().squeeze(1)
        if 16 * len(rows) <= len(best):
            return rows
        return super().undecided(best, k, references)  # copying some out would cost more than it saves

    def narrow(self, ranking: Ranking, k: int, references: LocalReferences) -> None:
        if self.rounded is not None:
            self.rounded.narrow(ranking, k, references)


def _part(memory: Tensor, rows: int, columns: int) -> Tensor:
    """Return the beginning of flat memory as a matrix."""
    return memory[: rows * columns].view(rows, columns)
