"""The routes that are compared, and the check that all of them compute the same thing.

A route takes the features of queries and references and gives :class:`Matches`.  Those that are not ours are written as
one would write them with the library in question, with its usual advice followed: vectors of unit length beforehand,
nothing copied that need not be.  Half-precision features are converted to float32 first, as ours are; in half precision
a cosine has three digits at best.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rpg_loss.matching import IMPLEMENTATIONS, Impl, match, unavailable_reason
from rpg_loss.matching.definition import Matches
from rpg_loss.matching.references import LocalReferences

MAP_PIXELS = 64 * 64
FAISS_GPU_MAX_K = 2048
MOST_LABELS_DIFFERING = 1e-3
MOST_DIFFERENCE = 1e-4
KTH_TIE = 1e-5


@dataclass(frozen=True)
class Problem:
    """Sizes of one matching problem: M queries, N references of D features, the k nearest, |S| label sets."""

    m: int = MAP_PIXELS
    n: int = 3 * MAP_PIXELS
    d: int = 64
    k: int = 7000
    sets: int = 9
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"M {self.m}, N {self.n}, D {self.d}, k {self.k}, {self.sets} label sets, {self.dtype} features"

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Features after a ReLU, with a direction per label set so that neighbors mean something; uneven sets."""
        generator = torch.Generator().manual_seed(0)
        shares = 0.5 ** torch.arange(self.sets).clamp(max=6)
        set_ids = torch.multinomial(shares, self.n, replacement=True, generator=generator)
        set_ids[: self.sets] = torch.arange(self.sets)
        of_queries = torch.multinomial(shares, self.m, replacement=True, generator=generator)
        centres = torch.randn(self.sets, self.d, generator=generator)
        queries, references = (
            (centres[ids] + torch.randn(len(ids), self.d, generator=generator)).relu() for ids in (of_queries, set_ids)
        )
        dtype = getattr(torch, self.dtype)
        return queries.to(device, dtype), references.to(device, dtype), set_ids.to(device)


def cpu_only(problem: Problem, device: torch.device) -> str | None:
    return None if device.type == "cpu" else "runs on the CPU only"


@dataclass(frozen=True)
class Route:
    """One way to do the matching.

    Attributes:
        caption: how tables and pictures call it.
        run: queries, references, set_ids and the problem to matches, or to the product of those that do no more.
        refuses: why it cannot run, or None.
        needs: bytes that it takes at least, from the shapes alone; 0 for those that are bounded.
        ours: an implementation of this package.
    """

    caption: str
    run: Callable[[Tensor, Tensor, Tensor, Problem], Matches | Tensor]
    refuses: Callable[[Problem, torch.device], str | None] = lambda problem, device: None
    needs: Callable[[Problem], int] = lambda problem: 0
    ours: bool = False


def ours(impl: Impl, needs: Callable[[Problem], int] = lambda problem: 0) -> Route:
    def run(queries: Tensor, references: Tensor, set_ids: Tensor, problem: Problem) -> Matches:
        return match(queries, LocalReferences(references, set_ids, problem.sets), problem.k, impl)

    return Route(f"ours, {impl}", run, lambda problem, device: unavailable_reason(impl, device), needs, ours=True)


def topk(queries: Tensor, references: Tensor, set_ids: Tensor, problem: Problem) -> Matches:
    """The matrix, the k nearest listed, the best of each label set among them."""
    similarity = (F.normalize(queries.float()) @ F.normalize(references.float()).T).clamp_(min=0)
    nearest, index = similarity.topk(problem.k, dim=1)
    del similarity
    return best_of_each_set(nearest, set_ids[index], problem)


def best_of_each_set(similarity: Tensor, sets: Tensor, problem: Problem) -> Matches:
    """Matches from the k nearest references in descending order: their similarities and their label sets, (M, k)."""
    proximities = similarity.new_zeros(len(similarity), problem.sets)
    return Matches(sets[:, 0], proximities.scatter_reduce_(1, sets, similarity, "amax"))


def argpartition(queries: Tensor, references: Tensor, set_ids: Tensor, problem: Problem) -> Matches:
    """The k nearest without their order, which is what NumPy offers to save the sort."""
    similarity = np.maximum(F.normalize(queries).numpy() @ F.normalize(references).numpy().T, 0)
    index = np.argpartition(similarity, problem.n - problem.k, axis=1)[:, problem.n - problem.k :]
    nearest = np.take_along_axis(similarity, index, axis=1)
    del similarity
    sets = set_ids.numpy()[index]
    best = [np.max(nearest, axis=1, where=sets == s, initial=0) for s in range(problem.sets)]
    nearest_sets = sets[np.arange(len(sets)), nearest.argmax(axis=1)]
    return Matches(torch.from_numpy(nearest_sets), torch.from_numpy(np.stack(best, axis=1)))


def faiss_flat(queries: Tensor, references: Tensor, set_ids: Tensor, problem: Problem) -> Matches:
    """FAISS's exact index of inner products."""
    import faiss
    import faiss.contrib.torch_utils  # lets the index take tensors, also those on a GPU

    on_gpu = queries.device.type == "cuda"
    index = faiss.GpuIndexFlatIP(faiss_resources(), problem.d) if on_gpu else faiss.IndexFlatIP(problem.d)
    index.add(F.normalize(references.float()))
    similarity, nearest = index.search(F.normalize(queries.float()), problem.k)
    return best_of_each_set(similarity.clamp_(min=0), set_ids[nearest], problem)


@functools.cache
def faiss_resources() -> Any:
    """Scratch memory of FAISS on the GPU; meant to be made once."""
    import faiss

    return faiss.StandardGpuResources()


def faiss_refuses(problem: Problem, device: torch.device) -> str | None:
    if device.type == "cuda" and problem.k > FAISS_GPU_MAX_K:
        return f"refused: k > {FAISS_GPU_MAX_K}"
    if importlib.util.find_spec("faiss") is None:
        return "not installed"
    import faiss

    if device.type == "cuda" and not hasattr(faiss, "StandardGpuResources"):
        return "not installed for GPUs"
    return None


def sklearn_brute(queries: Tensor, references: Tensor, set_ids: Tensor, problem: Problem) -> Matches:
    """scikit-learn's exact neighbors by cosine distance."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=problem.k, algorithm="brute", metric="cosine")
    distance, index = map(torch.from_numpy, search.fit(references.numpy()).kneighbors(queries.numpy()))
    return best_of_each_set((1 - distance).clamp_(min=0), set_ids[index], problem)


def sklearn_refuses(problem: Problem, device: torch.device) -> str | None:
    if importlib.util.find_spec("sklearn") is None:
        return "not installed"
    return cpu_only(problem, device)


def bare_product(queries: Tensor, references: Tensor, set_ids: Tensor, problem: Problem) -> Tensor:
    """Only the matrix product, in the features' own dtype, written to memory: the floor of all that have the matrix."""
    return queries @ references.T


def product_in_blocks(queries: Tensor, references: Tensor, set_ids: Tensor, problem: Problem) -> Tensor:
    """Only the matrix product, in blocks over one another: the floor of all that do not keep the matrix."""
    # 8 MiB stay in the shared cache of a CPU; a GPU needs more to be busy (1 GiB).
    rows = max(16, 2 ** (28 if queries.device.type == "cuda" else 21) // problem.n)
    block = queries.new_empty(rows, problem.n)
    for chunk in queries.split(rows):
        torch.mm(chunk, references.T, out=block[: len(chunk)])
    return block


def topk_bytes(problem: Problem) -> int:
    """The matrix with the listed similarities and int64 indices; then those with the label set of each."""
    return max(4 * problem.m * problem.n + 12 * problem.m * problem.k, 20 * problem.m * problem.k)


ROUTES = {
    **{impl: ours(cast(Impl, impl)) for impl in IMPLEMENTATIONS if impl != "reference"},
    "topk": Route("torch.topk", topk, needs=topk_bytes),
    "numpy": Route("NumPy argpartition", argpartition, cpu_only, lambda p: 12 * p.m * p.n + 4 * p.m * p.k),
    "faiss": Route("FAISS IndexFlatIP", faiss_flat, faiss_refuses, lambda p: 20 * p.m * p.k),
    "sklearn": Route("scikit-learn brute", sklearn_brute, sklearn_refuses, lambda p: 24 * p.m * p.k),
    "mm": Route("bare torch.mm", bare_product, needs=lambda p: getattr(torch, p.dtype).itemsize * p.m * p.n),
    "mm_blocks": Route("bare torch.mm in blocks", product_in_blocks),
    "reference": ours("reference", lambda p: 24 * p.m * p.n),
}
OURS = [name for name, route in ROUTES.items() if route.ours and name != "reference"]
OTHERS = ["topk", "numpy", "faiss", "sklearn", "mm"]


def disagreement(got: Matches, expected: Matches, problem: Problem, device: torch.device) -> str | None:
    """How the matches differ by more than rounding explains, or None.

    A set whose best reference is as near as the k-th nearest may be in for one route and out for another.
    """
    differing = (got.nearest_sets != expected.nearest_sets).double().mean().item()
    if differing > MOST_LABELS_DIFFERING:
        return f"disagrees: another label for {differing:.2%} of the queries"
    far = (got.proximities - expected.proximities).abs() > MOST_DIFFERENCE
    if not far.any():
        return None
    queries, references, _ = (tensor.double() for tensor in problem.tensors(device))
    for rows in far.any(1).nonzero().squeeze(1).split(64):
        kth = (F.normalize(queries[rows]) @ F.normalize(references).T).topk(problem.k).values[:, -1:]
        pair = torch.stack([got.proximities[rows], expected.proximities[rows]])
        tied = (pair.amin(0) == 0) & ((pair.amax(0) - kth).abs() <= KTH_TIE)
        wrong = (far[rows] & ~tied).any(1).sum().item()
        if wrong:
            return f"disagrees: other proximities for {wrong} of {len(rows)} queries looked at"
    return None
