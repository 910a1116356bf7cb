"""Matching problems for the laws: random ones, and small grids full of ties, zero vectors and negative cosines."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rpg_loss import PseudoLabels, rpg_pseudo_labels
from rpg_loss.matching import self_check

HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON and not torch.cuda.is_available():  # Triton's interpreter runs the kernels from 3.3 on
    HAS_TRITON = tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) >= (3, 3)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed, or its interpreter is too old")

# Triton's kernels run on the GPU if there is one, else in Triton's interpreter (see conftest.py).
IMPLS = ("reference", "chunked", pytest.param("triton", marks=needs_triton))
FAST_IMPLS = IMPLS[1:]

IGNORED = -100
EPS, TIE = 1e-8, 4 * 2.0**-23


@dataclass(frozen=True)
class Problem:
    """Arguments of ``rpg_pseudo_labels``."""

    feat_u: Tensor
    feat_ref: Tensor
    y_ref: Tensor
    k: int

    def with_(self, **changes) -> Problem:
        return replace(self, **changes)

    @property
    def args(self) -> tuple[Tensor, Tensor, Tensor, int]:
        return self.feat_u, self.feat_ref, self.y_ref, self.k

    @property
    def multilabel(self) -> bool:
        return self.y_ref.ndim == self.feat_ref.ndim


def device_of(impl: str) -> torch.device:
    return torch.device("cuda" if impl == "triton" and torch.cuda.is_available() else "cpu")


def pseudo_labels(feat_u: Tensor, feat_ref: Tensor, y_ref: Tensor, k, *, impl="auto", **options) -> PseudoLabels:
    """``rpg_pseudo_labels`` on a device where ``impl`` runs."""
    device = device_of(impl)
    options = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()}
    feat_u, feat_ref, y_ref = feat_u.to(device), feat_ref.to(device), y_ref.to(device)
    labels, weights = rpg_pseudo_labels(feat_u, feat_ref, y_ref, k, impl=impl, **options)
    return PseudoLabels(labels.cpu(), weights.cpu())


def random_features(generator: torch.Generator, shape: tuple[int, ...], kind: str) -> Tensor:
    if kind == "normal":
        return torch.randn(shape, generator=generator)
    if kind == "relu":  # all cosines high, as after a network's last ReLU
        return torch.randn(shape, generator=generator).relu() + 0.1
    return torch.randint(-2, 3, shape, generator=generator).float()  # "grid": ties, zeros, opposite vectors


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    kinds: tuple[str, ...] = ("normal", "relu", "grid"),
    flat: bool | None = None,
    multilabel: bool | None = None,
    ignored: bool = True,
    max_side: int = 3,
) -> Problem:
    """A problem with 1 to 3 spatial axes or flat, as a class map or with label vectors."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(kinds))
    # On a line all vectors are parallel, and only the epsilon of Eq. 3 tells them apart, about where ties end.
    dim = draw(st.integers(1 if kind == "grid" else 2, 6))
    axes = 0 if flat or (flat is None and draw(st.booleans())) else draw(st.integers(1, 3))
    images, pool = (draw(st.integers(1, 3 if axes else 12)) for _ in range(2))
    sides_u, sides_ref = ([draw(st.integers(1, max_side)) for _ in range(axes)] for _ in range(2))
    classes = draw(st.integers(1, 4))
    if multilabel is None:
        multilabel = draw(st.booleans())
    if multilabel:
        y_ref = torch.randint(0, 2, (pool, classes, *sides_ref), generator=generator).to(
            draw(st.sampled_from([torch.int64, torch.uint8, torch.float32, torch.bool, torch.int8]))
        )
    else:
        y_ref = torch.randint(0, classes, (pool, *sides_ref), generator=generator).to(
            draw(st.sampled_from([torch.int64, torch.uint8, torch.int32, torch.int16]))
        )
    if ignored and y_ref.dtype.is_signed and draw(st.booleans()):
        where = torch.rand(pool, *sides_ref, generator=generator) < 0.3
        where.view(-1)[0] = False
        y_ref = y_ref.masked_fill(where.unsqueeze(1) if multilabel else where, IGNORED)
    n = int((y_ref != IGNORED).sum()) // (classes if multilabel else 1)
    return Problem(
        random_features(generator, (images, dim, *sides_u), kind),
        random_features(generator, (pool, dim, *sides_ref), kind),
        y_ref,
        draw(st.integers(1, n + 2)),
    )


def flat_problems(**options) -> st.SearchStrategy[Problem]:
    return problems(flat=True, **options)


def label_vectors(problem: Problem) -> list[tuple[int, ...] | None]:
    """The label of every reference as a tuple, None where ignored; flat problems only."""
    rows = problem.y_ref.long().reshape(len(problem.y_ref), -1).tolist()
    return [None if IGNORED in row else tuple(row) for row in rows]


def label_and_weight(query, references, sets, k) -> tuple[int, float]:
    """Eq. 3-7 by loops in float64: index of the nearest reference, and the weight."""
    proximity = np.array([query @ r / (np.linalg.norm(query) * np.linalg.norm(r) + EPS) for r in references])
    proximity = np.where(proximity > TIE, np.minimum(proximity, 1), 0)
    nearest = int(np.argmax(proximity >= proximity.max() - TIE))
    kth = np.sort(proximity)[-k]
    names = sorted(set(sets))
    if len(names) == 1:
        return nearest, 1.0
    near = np.where(proximity >= kth - TIE, proximity, 0)
    p = EPS + np.array([max(n for n, of in zip(near, sets, strict=True) if of == name) for name in names])
    p /= p.sum()
    return nearest, float(min(max(1 + (p * np.log(p)).sum() / math.log(len(names)), 0), 1))


def shrink_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small, as Triton's interpreter is slow, and without verdicts from before."""
    small = {"_verdicts": {}, "_SIZES": (1, 3, 5, 7, 20, 40, 70), "_SETS": 7, "_QUERIES": 40}
    for name, value in small.items():
        monkeypatch.setattr(self_check, name, value)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result
