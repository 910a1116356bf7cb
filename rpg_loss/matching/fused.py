"""The matching on a GPU with fused Triton kernels: no similarity is ever written to memory.

As recomputing a tile costs less than to write it, every question of :mod:`.selection` is a sweep of its own over the
tiles: the maxima of all label sets; the lowest index, for the few queries whose nearest references are tied; and counts
against eight thresholds at a time, for the queries that the sizes of the sets leave undecided.  Eight thresholds cut
what is undecided into nine: one sweep settles up to 8 label sets, two up to 80.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .definition import EPS, EPS_MATTERS, Matches
from .normalize import rescaled, unit_length
from .references import LocalReferences
from .selection import NO_KEY, Engine, match_in_blocks

# Queries that are worked on at a time, and similarities to label sets that are then kept of them.
_QUERIES, _MAXIMA = 2**15, 2**22
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


def interpreted() -> bool:
    """Return whether Triton runs its kernels in Python, on any device: for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def is_preferred(device: torch.device) -> bool:
    """Return whether the fused kernels are meant for a device: they are no faster in Triton's interpreter."""
    return device.type == "cuda" and not interpreted()


def matched_dtype(queries: torch.dtype, references: torch.dtype) -> torch.dtype:
    """Return the dtype that the kernels multiply in: that of the features if both are of one half precision."""
    return queries if queries == references and queries in (torch.float16, torch.bfloat16) else torch.float32


def unavailable_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the fused kernels cannot run on ``device`` with features of ``dtype``; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if interpreted():
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return f"it needs an NVIDIA GPU, and the features are on {device}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it needs compute capability 8.0 (Ampere) or newer, and {device} has {major}.{minor}"
    version = triton_version()
    # Before, the three products of TF32 went into one accumulator: off by up to 1.6e-5.
    if dtype == torch.float32 and tuple(map(int, version.split(".")[:2])) < (3, 2):
        return f"it needs Triton 3.2 or newer for float32 features, and {version} is installed"
    return None


def triton_version() -> str:
    """Return the version of Triton; imports it."""
    version: str = importlib.import_module("triton").__version__
    return version


@functools.cache
def _kernels() -> ModuleType:
    from . import kernels  # Triton takes long to import, and need not be there

    return kernels


def match_triton(
    queries: Tensor, references: LocalReferences, k: int, *, tiles: Tiles | None = None, slab: int | None = None
) -> Matches:
    """Match ``slab`` queries at a time, in tiles (see :func:`match`).  None takes what fits.

    Extra memory: the references sorted by label set, O(N D), and for ``slab`` queries their unit-length copies and
    a few numbers per label set.  float32 features are matched at float32 accuracy (three TF32 products), half-precision
    features as they are, with float32 sums.
    """
    engine = sweeps(queries.dtype, references, tiles)
    slab = slab or min(_QUERIES, max(_MAXIMA // references.num_sets, 1))
    return match_in_blocks(lambda some: engine(queries[some]), len(queries), slab, k, references)


def sweeps(dtype: torch.dtype, references: LocalReferences, tiles: Tiles | None = None) -> Callable[[Tensor], _Sweep]:
    """Sort and normalize the references; return what makes an engine of queries of ``dtype``."""
    features, num_sets = references.features, references.num_sets
    half = matched_dtype(dtype, features.dtype) != torch.float32
    order = torch.argsort(references.set_ids, stable=True)
    sets = references.set_ids[order]
    keys = (references.first_index + order) * num_sets + sets
    r, sets = _Features(features, half, order), sets.int()
    tiles = tiles or _choose_tiles(features.device, r.values)
    return lambda queries: _Sweep(_Features(queries, half), r, sets, keys, num_sets, tiles)


def padded(d: int) -> int:
    """Return how many features a row takes: rows that begin anywhere would take more registers than there are."""
    return -(-d // 16) * 16


def _choose_tiles(device: torch.device, features: Tensor) -> Tiles:
    """Return tiles by what the compiled kernels take (benchmarks/compile_kernels.py), not tuned by time.

    Hardly a register is spilled with Triton 3.6, 3.8 and 3.9, and no more shared memory taken than the card has.
    """
    if interpreted():
        return Tiles(128, 128, 64, 1, 1)
    capability = torch.cuda.get_device_capability(device)
    d, half = features.shape[1], features.element_size() == 2
    large = capability[0] in (9, 10)
    most = 64 if half or (large and d <= 64) else 32
    stages = 3 if half or large or capability == (8, 0) else 2
    return Tiles(128, 64, min(most, 1 << (d - 1).bit_length()), 8, stages)


def _multiprocessors(device: torch.device) -> int:  # pragma: no cover (needs a GPU)
    return torch.cuda.get_device_properties(device).multi_processor_count


class _Features:
    """Features as the kernels take them: float32 of unit length, or half precision with a factor to unit length.

    Filled up with zeros, see :func:`padded`.
    """

    def __init__(self, features: Tensor, half: bool, order: Tensor | None = None) -> None:
        n, d = features.shape
        self.half = half
        dtype = features.dtype if half and not interpreted() else torch.float32  # it cannot multiply bfloat16
        self.values = features.new_zeros(n, padded(d), dtype=dtype)
        self.scale = features.new_empty(n, dtype=torch.float32)
        self.norm = torch.empty_like(self.scale)
        copied = max(_COPIED // d, 1)
        for start in range(0, n, copied):
            some = slice(start, start + copied)
            part = features[some] if order is None else features[order[some]]
            if half:
                self.values[some, :d], self.scale[some], self.norm[some] = rescaled(part)
            else:
                self.values[some, :d], self.norm[some] = unit_length(part)
        self.smallest_norm = self.norm.amin() if n else self.norm.new_tensor(torch.inf)


class _Sweep(Engine):
    """Sweeps over all tiles of similarities of some queries.

    Attributes:
        splits: in how many programs the references are taken; 0: as many as keep the GPU busy.
    """

    splits = 0

    def __init__(
        self, queries: _Features, references: _Features, sets: Tensor, keys: Tensor, num_sets: int, tiles: Tiles
    ) -> None:
        self.sets, self.keys, self.num_sets, self.tiles = sets, keys, num_sets, tiles
        self.thresholds = _kernels().THRESHOLDS
        self.m, self.n = len(queries.values), len(references.values)
        self.d = queries.values.shape[1]
        self.device = sets.device
        self.compiled: dict[str, Any] = {}  # what was launched last, by kernel
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
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
            "enable_fp_fusion": True,  # as it was the default before Triton 3.10
        }

    def _launch(self, name: str, m: int, *arguments: Tensor, sets: tuple[int, ...] = ()) -> None:
        if m == 0 or self.n == 0:
            return
        rows = -(-m // self.tiles.queries)
        columns = -(-self.n // self.tiles.references)
        # Enough programs for several on every multiprocessor, so that none waits long for the last one.
        wanted = 2 if interpreted() else 8 * _multiprocessors(self.device) // rows
        fewest = -(-self.n // (_kernels().MAX_SPAN - self.tiles.references))
        splits = min(max(self.splits or wanted, 1, fewest), columns)
        span = -(-columns // splits) * self.tiles.references
        sizes = (m, self.n, self.d, span, *sets)
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            kernel = getattr(_kernels(), name)[rows, -(-self.n // span)]
            self.compiled[name] = kernel(*self.features, *arguments, *sizes, **self.options)

    def set_maxima(self) -> Tensor:
        best = torch.zeros(self.m, self.num_sets, dtype=torch.int32, device=self.device)
        self._launch("set_maxima", self.m, self.sets, best, sets=(self.num_sets,))
        return best.view(torch.float32)

    def lowest_key(self, rows: Tensor, threshold: Tensor) -> Tensor:
        lowest = torch.full(rows.shape, NO_KEY, device=self.device)
        self._launch("lowest_key", len(rows), self.keys, rows, threshold, lowest)
        return lowest

    def count_above(self, rows: Tensor, thresholds: Tensor) -> Tensor:
        counts = torch.zeros(thresholds.shape, dtype=torch.int32, device=self.device)
        self._launch("count_above", len(rows), rows, thresholds, counts)
        return counts
