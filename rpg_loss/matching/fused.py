"""The matching on a GPU with fused Triton kernels: no similarity is ever written to memory.

As recomputing a tile costs less than to write it, every question of :mod:`.selection` is a sweep of its own over the
tiles: the maxima of all label sets; the lowest index, for the few queries whose nearest references are tied; and counts
against eight thresholds at a time, for the queries that the sizes of the sets leave undecided.  Eight thresholds cut
what is undecided into nine: one sweep settles up to 8 label sets, two up to 80.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .definition import EPS, EPS_MATTERS, Matches
from .normalize import rescaled, unit_length
from .selection import NO_KEY, Engine, match_in_blocks
from .shards import LocalReferences

# Queries that are worked on at a time: what is kept of them stays below 16 MiB for 64 features.
_QUERIES = 2**15
# Features that are normalized at a time.
_COPIED = 2**20


@dataclass(frozen=True)
class Tiles:
    """The shape of a tile of similarities, and how it is computed."""

    queries: int
    references: int
    features: int
    warps: int
    stages: int


# For (generation, bytes of a feature, whether all features fit into one tile).  Chosen by what the compiled kernels
# take: no spilled registers, no more shared memory than the smallest card of the generation has.  Not tuned by time.
_TILES = {
    ("ampere", 2, True): Tiles(128, 64, 64, 8, 3),
    ("ampere", 2, False): Tiles(128, 64, 64, 8, 3),
    ("ampere", 4, True): Tiles(128, 64, 32, 8, 3),
    ("ampere", 4, False): Tiles(128, 64, 32, 8, 3),
    ("hopper", 2, True): Tiles(128, 128, 64, 8, 3),
    ("hopper", 2, False): Tiles(128, 64, 64, 8, 3),
    ("hopper", 4, True): Tiles(128, 64, 64, 8, 3),
    ("hopper", 4, False): Tiles(128, 64, 32, 8, 3),
}
_INTERPRETED = Tiles(64, 64, 32, 1, 1)


def interpreted() -> bool:
    """Return whether Triton runs its kernels in Python, on any device: for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable_reason(device: torch.device) -> str | None:
    """Return why the fused kernels cannot run on ``device``; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if interpreted():
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return f"it needs an NVIDIA GPU, and the features are on {device}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it needs compute capability 8.0 (Ampere) or newer, and {device} has {major}.{minor}"
    return None


@functools.cache
def _kernels() -> ModuleType:
    from . import kernels  # Triton takes long to import, and need not be there

    return kernels


def match_triton(
    queries: Tensor,
    references: Tensor,
    set_ids: Tensor,
    num_sets: int,
    k: int,
    shards: LocalReferences | None = None,
    *,
    tiles: Tiles | None = None,
    slab: int = _QUERIES,
) -> Matches:
    """Match ``slab`` queries at a time, in tiles (see :func:`match`).

    Extra memory: the references sorted by label set, O(N D), and for ``slab`` queries their unit-length copies and
    a few numbers per label set.  float32 features are matched at float32 accuracy (three TF32 products), half-precision
    features as they are, with float32 sums.
    """
    shards = shards or LocalReferences(references, set_ids, num_sets)
    half = queries.dtype == references.dtype and queries.dtype in (torch.float16, torch.bfloat16)
    order = torch.argsort(set_ids, stable=True)
    sets = set_ids[order]
    keys = (shards.first_index + order) * num_sets + sets
    r = _Features(references, half, order)
    sets = sets.int()
    tiles = tiles or _choose_tiles(queries.device, r.values)
    return match_in_blocks(
        lambda some: _Sweep(_Features(queries[some], half), r, sets, keys, num_sets, tiles),
        len(queries),
        slab,
        k,
        shards,
    )


def _choose_tiles(device: torch.device, features: Tensor) -> Tiles:
    if interpreted():
        return _INTERPRETED
    # Other generations, consumer cards among them, have no more shared memory than Ampere.
    generation = "hopper" if torch.cuda.get_device_capability(device)[0] in (9, 10) else "ampere"
    bytes_per_feature, d = features.element_size(), features.shape[1]
    tiles = _TILES[generation, bytes_per_feature, True]
    if d > tiles.features:
        return _TILES[generation, bytes_per_feature, False]
    return replace(tiles, features=max(1 << (d - 1).bit_length(), 16))


def _multiprocessors(device: torch.device) -> int:  # pragma: no cover (needs a GPU)
    return torch.cuda.get_device_properties(device).multi_processor_count


class _Features:
    """Features as the kernels take them: float32 of unit length, or half precision with a factor to unit length."""

    def __init__(self, features: Tensor, half: bool, order: Tensor | None = None) -> None:
        n, d = features.shape
        self.half = half
        self.values = features.new_empty(n, d, dtype=features.dtype if half else torch.float32)
        self.scale = features.new_empty(n, dtype=torch.float32)
        self.norm = torch.empty_like(self.scale)
        copied = max(_COPIED // d, 1)
        for start in range(0, n, copied):
            some = slice(start, start + copied)
            part = features[some] if order is None else features[order[some]]
            if half:
                self.values[some], self.scale[some], self.norm[some] = rescaled(part)
            else:
                self.values[some], self.norm[some] = unit_length(part)
        self.smallest_norm = self.norm.amin() if n else self.norm.new_tensor(torch.inf)


class _Sweep(Engine):
    """Sweeps over all tiles of similarities of some queries."""

    def __init__(
        self, queries: _Features, references: _Features, sets: Tensor, keys: Tensor, num_sets: int, tiles: Tiles
    ) -> None:
        self.sets, self.keys, self.num_sets, self.tiles = sets, keys, num_sets, tiles
        self.thresholds = _kernels().THRESHOLDS
        self.m, self.n = len(queries.values), len(references.values)
        self.d = queries.values.shape[1]
        self.device = sets.device
        self.features = (
            queries.values,
            references.values,
            queries.scale,
            references.scale,
            EPS / queries.norm,
            1 / references.norm,
        )
        self.options: dict[str, Any] = {
            "BLOCK_M": tiles.queries,
            "BLOCK_N": tiles.references,
            "BLOCK_D": tiles.features,
            "ALL_OF_D": self.d <= tiles.features,
            "PRECISION": "ieee" if queries.half else "tf32x3",
            "SCALED": queries.half,
            "EPS_MATTERS": bool(queries.smallest_norm * references.smallest_norm < EPS_MATTERS),
            "UPCAST": queries.half and interpreted(),  # the interpreter cannot multiply bfloat16
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
        }

    def _launch(self, kernel: Any, m: int, *arguments: Tensor, sets: bool) -> None:
        if m == 0 or self.n == 0:
            return
        rows = -(-m // self.tiles.queries)
        columns = -(-self.n // self.tiles.references)
        # Enough programs for several on every multiprocessor, so that none waits long for the last one.
        wanted = 2 * rows if interpreted() else 8 * _multiprocessors(self.device)
        splits = min(max(wanted // rows, 1, -(-self.n // (_kernels().MAX_SPAN - self.tiles.references))), columns)
        span = -(-columns // splits) * self.tiles.references
        sizes = (m, self.n, self.d, self.num_sets, span) if sets else (m, self.n, self.d, span)
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            kernel[rows, -(-self.n // span)](*self.features, *arguments, *sizes, **self.options)

    def set_maxima(self) -> Tensor:
        best = torch.zeros(self.m, self.num_sets, dtype=torch.int32, device=self.device)
        self._launch(_kernels().set_maxima, self.m, self.sets, best, sets=True)
        self.best = best.view(torch.float32)
        return self.best.clone()

    def lowest_key(self, rows: Tensor, threshold: Tensor) -> Tensor:
        lowest = torch.full(rows.shape, NO_KEY, device=self.device)
        self._launch(_kernels().lowest_key, len(rows), self.keys, rows, threshold, lowest, sets=False)
        return lowest

    def count_above(self, rows: Tensor, thresholds: Tensor) -> Tensor:
        counts = torch.zeros(thresholds.shape, dtype=torch.int32, device=self.device)
        self._launch(_kernels().count_above, len(rows), self.sets, self.best, rows, thresholds, counts, sets=True)
        return counts
