"""The fused kernels against the definition, before they are trusted: every card, driver and Triton has its own."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from . import fused
from .definition import EPS, TIE, Matches
from .references import LocalReferences
from .selection import NO_KEY

# By how much a proximity may be off.
_ERROR = 2e-6
# Sets within a tile, one of them a single reference, and sets across tiles.
_SIZES = (1, 3, 5, 7, 20, 40, 64, 90, 110, 160, 200)
_SETS = len(_SIZES)
_QUERIES = 130

_verdicts: dict[tuple[torch.device, torch.dtype, int], str | None] = {}
_lock = threading.Lock()


def failure(device: torch.device, dtype: torch.dtype, d: int) -> str | None:
    """Return what the fused kernels do wrong with ``d`` features of a dtype, as a clause; None if nothing.

    They are run once per process, device and variant.

    Raises:
        torch.OutOfMemoryError: they could not be run; the next call tries again.
    """
    variant = device, dtype, d
    with _lock:
        if variant not in _verdicts:
            try:
                faults = (_fault(*hard_problem(d, dtype, short), device) for short in (False, True))
                _verdicts[variant] = next((fault for fault in faults if fault), None)
            except (torch.cuda.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:  # whatever it is, another implementation is there
                _verdicts[variant] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return _verdicts[variant]


def hard_problem(d: int, dtype: torch.dtype, short: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, references and their label sets: copies, zero and opposite vectors, ``short`` ones for EPS."""
    generator = torch.Generator("cpu").manual_seed(d)
    u, r = (
        torch.randn(n, d, generator=generator, dtype=torch.float32, device="cpu") + 0.5 for n in (_QUERIES, sum(_SIZES))
    )
    half = len(r) // 2
    r[half:] = r[:half] * torch.tensor([0.5, 1, 4], device="cpu").repeat(half)[:half, None]
    r[::50] = 0
    u[::3] = 2 * r[: len(u[::3])]
    u[1], u[4] = 0, -1
    if short:
        u, r = u * 1e-4, r * torch.logspace(-4, 0, len(r), dtype=torch.float32, device="cpu")[:, None]
    set_ids = torch.arange(_SETS, device="cpu").repeat_interleave(torch.tensor(_SIZES, device="cpu"))
    return u.to(dtype), r.to(dtype), set_ids[torch.randperm(len(r), generator=generator, device="cpu")]


def similarities(u: Tensor, r: Tensor) -> Tensor:
    """Return the clipped cosines of Eq. 3 in float64, ``(M, N)``."""
    u, r = u.cpu().double(), r.cpu().double()
    return (u @ r.T / (torch.outer(u.norm(dim=1), r.norm(dim=1)) + EPS)).clamp(0, 1)


def disagreement(got: Matches, cosines: Tensor, set_ids: Tensor, num_sets: int, k: int) -> str | None:
    """Return where matches differ from the definition by more than rounding can make them, as a clause, or None."""
    best = _best(cosines, set_ids, num_sets)
    ascending = cosines.sort(dim=1).values
    # Between these two numbers are the references that are nearer than the best of a set.
    fewest, most = (
        cosines.shape[1] - torch.searchsorted(ascending, best + slack * TIE, right=True) for slack in (2.5, -0.5)
    )
    proximities = got.proximities.cpu().double()
    right = ((proximities - best).abs() <= _ERROR) & ((fewest < k) | (best <= _ERROR))
    if not bool((right | ((proximities == 0) & (most >= k))).all()):
        return f"class proximities are wrong for k = {k}"
    top = best.amax(1, keepdim=True)
    first = ((cosines >= top - TIE / 4) | (top <= TIE / 4)).int().argmax(1)[:, None]
    perhaps = (cosines >= top - 2 * TIE) & (torch.arange(cosines.shape[1], device="cpu") <= first)
    allowed = _best(perhaps.double(), set_ids, num_sets) > 0
    doubtful = (top > TIE / 4) & (top < 2 * TIE)
    if not bool((allowed | doubtful).gather(1, got.nearest_sets.cpu()[:, None]).all()):
        return f"nearest label sets are wrong for k = {k}"
    return None


def _best(values: Tensor, set_ids: Tensor, num_sets: int) -> Tensor:
    return values.new_zeros(len(values), num_sets).scatter_reduce_(1, set_ids.expand_as(values), values, "amax")


def _fault(u: Tensor, r: Tensor, set_ids: Tensor, device: torch.device) -> str | None:
    cosines, n = similarities(u, r), len(r)
    queries, references = u.to(device), LocalReferences(r.to(device), set_ids.to(device), _SETS)
    engine = fused.sweeps(u.dtype, references)(queries)
    engine.splits = 2  # programs that take several tiles, as with many references
    rows = torch.arange(len(u) - 1, -1, -2, device="cpu")
    descending = cosines[rows].sort(dim=1, descending=True).values
    # Between neighbors, so that rounding does not matter.
    ranks = torch.tensor([1, 2, 5, 60, n // 4, n // 3, n // 2, n - 1], device="cpu")
    thresholds = ((descending[:, ranks - 1] + descending[:, ranks]) / 2).clamp(min=1e-3).float()
    single = thresholds.gather(1, (rows % 8)[:, None])[:, 0].masked_fill(rows % 8 == 1, 2)

    def answers() -> tuple[Tensor, ...]:
        answered = (
            engine.set_maxima(),
            engine.count_above(rows.to(device), thresholds.to(device)),
            engine.lowest_key(rows.to(device), single.to(device)),
            *fused.match_triton(queries, references, n // 2),
        )
        return tuple(answer.cpu() for answer in answered)

    maxima, counts, lowest, *matches = first = answers()
    if not bool(((maxima.double() - _best(cosines, set_ids, _SETS)).abs() <= _ERROR).all()):
        return "maxima of label sets are wrong"
    low, high = ((cosines[rows, None] > thresholds[..., None] + error).sum(2) for error in (_ERROR, -_ERROR))
    if not bool(((low <= counts) & (counts <= high)).all()):
        return "counts of nearer references are wrong"
    keys = torch.arange(n, device="cpu") * _SETS + set_ids
    last, earliest = (
        torch.where(cosines[rows] >= single[:, None] + error, keys, NO_KEY).amin(1) for error in (_ERROR, -_ERROR)
    )
    if not bool(((earliest <= lowest) & (lowest <= last)).all()):
        return "the first of equally near references is wrong"
    fault = disagreement(Matches(*matches), cosines, set_ids, _SETS, n // 2)
    if fault is None and not all(map(torch.equal, first, answers())):
        return "results differ from one run to the next"
    return fault
