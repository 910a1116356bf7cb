"""The matching in plain PyTorch: a few queries at a time, and no list of nearest neighbours at all.

Two facts make k nearest neighbours unnecessary.  A class proximity is the best similarity m_S of a label
set over the *whole* reference set, or 0; and m_S is among the k nearest exactly if fewer than k
references are more similar than m_S.  With the references sorted by label set, the first is a segmented
maximum over the rows of a matrix product and the second a count over the same rows, so a block of
similarities lives only as long as its few queries are worked on.

Counts are rarely needed.  With a query's sets in order of m_S, a set is surely inside while the sets before
it hold fewer than k references together; membership is monotone in that order, so a binary search
over what remains finds the boundary with about log2 |S| counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .contract import EPS, TIE, Matches
from .precision import full_float32_matmul

# Similarities (float32) in one block.  8 MiB stay in the shared cache of current CPUs; a block has at least
# _MIN_QUERIES rows, below which a matrix product runs at the speed of memory.
_BLOCK_ELEMENTS = 2**21
_MIN_QUERIES = 16

# Below this product of norms Eq. 3's epsilon is visible at float32 accuracy: 1e-8 / 0.1 = 1e-7.
_EPS_MATTERS = 0.1


def match_chunked(
    queries: Tensor,
    references: Tensor,
    set_ids: Tensor,
    num_sets: int,
    k: int,
    chunk_size: int | None = None,
) -> Matches:
    """Match ``chunk_size`` queries at a time (see :func:`match`).

    Extra memory: two blocks of ``chunk_size`` x N float32, and unit-length copies of queries and
    references, O((M + N) D).  ``chunk_size=None`` chooses blocks of about 8 MiB, at least 16 queries.
    """
    m, n = len(queries), len(references)
    chunk_size = chunk_size or max(_MIN_QUERIES, _BLOCK_ELEMENTS // n)
    order = torch.argsort(set_ids, stable=True)
    sizes = torch.bincount(set_ids, minlength=num_sets)
    bounds = [0, *sizes.cumsum(0).tolist()]

    u, u_norm = _unit(queries)
    r, r_norm = _unit(references)
    r, r_norm = r[order], r_norm[order]
    eps_matters = bool(u_norm.amin() * r_norm.amin() < _EPS_MATTERS)

    nearest_sets = torch.empty(m, dtype=torch.int64, device=u.device)
    proximities = torch.empty(m, num_sets, dtype=torch.float32, device=u.device)
    block = torch.empty(min(chunk_size, m), n, dtype=torch.float32, device=u.device)
    with full_float32_matmul():
        for start in range(0, m, chunk_size):
            chunk = slice(start, min(start + chunk_size, m))
            cosine = torch.mm(u[chunk], r.T, out=block[: chunk.stop - start])
            if eps_matters:
                cosine /= 1 + (EPS / u_norm[chunk, None]) / r_norm
            best = proximities[chunk]
            for s in range(num_sets):
                torch.amax(cosine[:, bounds[s] : bounds[s + 1]], dim=1, out=best[:, s])
            best.clamp_(max=1).masked_fill_(best <= TIE, 0)
            nearest_sets[chunk] = _nearest_sets(cosine, best, order, bounds)
            if k < n:
                _drop_sets_beyond_k(cosine, best, sizes, k)
    return Matches(nearest_sets, proximities)


def _unit(features: Tensor) -> tuple[Tensor, Tensor]:
    """Unit-length float32 copies and the lengths; a zero vector stays zero and is given length 1.

    Scaling by the largest entry first keeps the squares of very large and very small features finite.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    largest = features.abs().amax(1, keepdim=True)
    largest.masked_fill_(largest == 0, 1)
    scaled = features / largest
    norm = scaled.norm(dim=1, keepdim=True)
    norm.masked_fill_(norm == 0, 1)
    limits = torch.finfo(torch.float32)
    length = (norm.double() * largest.double()).clamp(limits.tiny, limits.max)
    return (scaled / norm).float(), length.squeeze(1).float()


def _nearest_sets(cosine: Tensor, best: Tensor, order: Tensor, bounds: list[int]) -> Tensor:
    """Label set of the nearest reference; ties between sets go to the lowest reference index."""
    top, nearest = best.max(1)
    threshold = top - TIE
    contenders = best >= threshold[:, None]
    tied = (contenders.sum(1) > 1).nonzero().squeeze(1)
    if len(tied) == 0:
        return nearest
    # Where the best proximity is 0, every reference is equally near, whatever its negative cosine.
    threshold = torch.where(top == 0, -2.0, threshold)[tied, None]
    first = torch.full((len(tied), best.shape[1]), len(order), device=order.device)
    for s in range(best.shape[1]):
        rows = contenders[tied, s].nonzero().squeeze(1)
        if len(rows):
            # Within a set the references keep their order, so its first hit has its lowest index.
            hits = cosine[tied[rows], bounds[s] : bounds[s + 1]] >= threshold[rows]
            first[rows, s] = order[bounds[s] + hits.byte().argmax(1)]
    nearest[tied] = first.argmin(1)
    return nearest


def _drop_sets_beyond_k(cosine: Tensor, best: Tensor, sizes: Tensor, k: int) -> None:
    """Set to 0 what is not among the k nearest: sets whose best has k or more references above it."""
    ranked, by_rank = best.sort(dim=1, descending=True, stable=True)
    sizes_by_rank = sizes[by_rank]
    ahead = sizes_by_rank.cumsum(1) - sizes_by_rank
    # Ranks below `inside` are inside, ranks from `outside` on are not, or are 0 in any case.
    inside = (ahead < k).sum(1)
    outside = torch.maximum((ranked > 0).sum(1), inside)
    while True:
        open_rows = (inside < outside).nonzero().squeeze(1)
        if len(open_rows) == 0:
            break
        middle = (inside[open_rows] + outside[open_rows]) // 2
        threshold = ranked[open_rows, middle][:, None] + TIE
        # Copying rows out costs more than comparing all of them, unless few are left.
        if 2 * len(open_rows) < len(cosine):
            counts = _count_above(cosine.index_select(0, open_rows), threshold)
        else:
            everywhere = cosine.new_full((len(cosine), 1), torch.inf)
            everywhere[open_rows] = threshold
            counts = _count_above(cosine, everywhere)[open_rows]
        within = counts < k
        inside[open_rows] = torch.where(within, middle + 1, inside[open_rows])
        outside[open_rows] = torch.where(within, outside[open_rows], middle)
    ranks = torch.arange(best.shape[1], device=best.device)
    ranked.masked_fill_(ranks >= inside[:, None], 0)
    best.scatter_(1, by_rank, ranked)


def _count_above(values: Tensor, threshold: Tensor) -> Tensor:
    """Row counts of ``values > threshold``, exact."""
    # Sums of float32 ones are several times faster than sums of bool, and exact up to 2^24.
    dtype = torch.float32 if values.shape[1] <= 2**24 else torch.float64
    above = torch.empty(values.shape, dtype=dtype, device=values.device)
    return torch.gt(values, threshold, out=above).sum(1)
