"""The definition of the matching: Eq. 3-5, written to be read.  Every faster one must agree with it."""

from __future__ import annotations

import torch
from torch import Tensor

from .bounds import balanced_limit
from .contract import EPS, TIE, Matches
from .shards import LocalReferences, ShardedReferences


def match_reference(
    queries: Tensor,
    references: Tensor,
    set_ids: Tensor,
    num_sets: int,
    k: float,
    shards: LocalReferences | None = None,
    *,
    balanced: bool = False,
) -> Matches:
    """Match by the definition, in float64, with the M x N matrix in memory (see :func:`match`)."""
    if isinstance(shards, ShardedReferences):
        raise ValueError('impl: got "reference" with a group, expected "auto", "chunked" or "triton"')
    u, r = queries.double(), references.double()

    # Eq. 3: D = 1 - max(cos, 0); proximity is 1 - D.
    norms = u.norm(dim=1)[:, None] * r.norm(dim=1)[None, :]
    proximity = (u @ r.T / (norms + EPS)).clamp(max=1)  # (M, N)
    proximity = torch.where(proximity > TIE, proximity, 0.0)

    # Eq. 4: the nearest reference, the lowest index among equals (argmax returns the first maximum).
    nearest = (proximity >= proximity.amax(1, keepdim=True) - TIE).int().argmax(1)

    if balanced:
        # The same in terms of ranks, where a reference counts one over the size of its set instead of 1.
        best = [proximity[:, set_ids == s].amax(1, keepdim=True) for s in range(num_sets)]
        counted = 1 / torch.bincount(set_ids)[set_ids].double()
        nearer = [torch.where(proximity > of_set + TIE, counted, 0.0).sum(1, keepdim=True) for of_set in best]
        inside = torch.cat(nearer, dim=1) < balanced_limit(k, num_sets)
        return Matches(set_ids[nearest], torch.where(inside, torch.cat(best, dim=1), 0.0).float())

    # The k nearest references, and all that are as near as the k-th.
    kth = proximity.topk(int(k), dim=1).values[:, -1:]
    among_k = torch.where(proximity >= kth - TIE, proximity, 0.0)

    # Eq. 5: 1 - delta of every label set.
    class_proximity = torch.stack([among_k[:, set_ids == s].amax(1) for s in range(num_sets)], dim=1)
    return Matches(set_ids[nearest], class_proximity.float())
