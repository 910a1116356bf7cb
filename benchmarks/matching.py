"""Time and memory of the matching, against the routes that one would write without this library.

    python -m benchmarks.matching            # the paper's size: M 4096, N 12288, D 64, k 7000, 9 label sets
    python -m benchmarks.matching --quick    # a smaller problem, for a smoke test
    python -m benchmarks.matching --json F   # also write the figures, with the machine and the versions

Routes run one after the other in every round of one process, so that each ratio compares runs that were made side by
side; the table gives median and quartiles.  Peak extra memory is measured in a fresh process per route:
the high-water mark of its resident set (on a GPU: of the allocator) above what the inputs take.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor

try:
    from sklearn.neighbors import NearestNeighbors
except ImportError:  # the route is left out without the extra "bench"
    NearestNeighbors = None

from rpg_loss.matching import IMPLEMENTATIONS, Matches
from rpg_loss.matching.contract import EPS


@dataclass(frozen=True)
class Problem:
    """Sizes of one matching problem: M queries, N references of D features, the k nearest, |S| label sets."""

    m: int = 4096
    n: int = 12288
    d: int = 64
    k: int = 7000
    sets: int = 9

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Features after a ReLU, with a direction per label set so that neighbours mean something; uneven sets."""
        generator = torch.Generator().manual_seed(0)
        shares = 0.5 ** torch.arange(self.sets).clamp(max=6)
        set_ids = torch.multinomial(shares, self.n, replacement=True, generator=generator)
        set_ids[: self.sets] = torch.arange(self.sets)
        of_queries = torch.multinomial(shares, self.m, replacement=True, generator=generator)
        centres = torch.randn(self.sets, self.d, generator=generator)
        queries, references = (
            (centres[ids] + torch.randn(len(ids), self.d, generator=generator)).relu() for ids in (of_queries, set_ids)
        )
        return queries.to(device), references.to(device), set_ids.to(device)


Route = Callable[[Tensor, Tensor, Tensor, Problem], object]


def topk_route(queries: Tensor, references: Tensor, set_ids: Tensor, problem: Problem) -> Matches:
    """Eq. 3-5 as one would write them: the matrix, the k nearest listed, the best of each label set among them."""
    norms = queries.norm(dim=1)[:, None] * references.norm(dim=1)
    similarity = (queries @ references.T).div_(norms.add_(EPS)).clamp_(min=0)
    nearest, index = similarity.topk(min(problem.k, problem.n), dim=1)
    del similarity, norms
    sets = set_ids[index]
    proximities = torch.zeros(len(queries), problem.sets, device=queries.device)
    return Matches(sets[:, 0], proximities.scatter_reduce_(1, sets, nearest, "amax"))


def bare_product(queries: Tensor, references: Tensor, set_ids: Tensor, problem: Problem) -> Tensor:
    """Only the matrix product, written to memory: the floor of every route that has the matrix."""
    return queries @ references.T


def sklearn_route(queries: Tensor, references: Tensor, set_ids: Tensor, problem: Problem) -> Matches:
    """The same with scikit-learn's brute-force neighbours, on the CPU."""
    search = NearestNeighbors(n_neighbors=min(problem.k, problem.n), algorithm="brute", metric="cosine")
    distance, index = map(torch.from_numpy, search.fit(references.numpy()).kneighbors(queries.numpy()))
    sets = set_ids[index]
    proximities = torch.zeros(len(queries), problem.sets, dtype=distance.dtype)
    return Matches(sets[:, 0], proximities.scatter_reduce_(1, sets, 1 - distance, "amax"))


def ours(name: str) -> Route:
    return lambda queries, references, set_ids, problem: IMPLEMENTATIONS[name](
        queries, references, set_ids, problem.sets, min(problem.k, problem.n)
    )


ROUTES: dict[str, Route] = {"chunked": ours("chunked"), "topk": topk_route, "mm": bare_product}
if NearestNeighbors is not None:
    ROUTES["sklearn"] = sklearn_route
CAPTIONS = {
    "chunked": 'rpg_loss, impl="chunked"',
    "topk": "torch.topk, then the best of each set",
    "mm": "bare torch.mm (the product alone)",
    "sklearn": "scikit-learn, brute force",
}


@torch.no_grad()
def seconds(problem: Problem, device: str, rounds: int) -> dict[str, list[float]]:
    tensors = problem.tensors(device)
    routes = {name: route for name, route in ROUTES.items() if device == "cpu" or name != "sklearn"}
    times: dict[str, list[float]] = {name: [] for name in routes}
    for round_ in range(rounds + 1):
        for name, route in routes.items():
            synchronise(device)
            start = time.perf_counter()
            route(*tensors, problem)
            synchronise(device)
            if round_:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return times


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def peak_extra_bytes(route: str, problem: Problem, device: str) -> int:
    """Peak memory of one call above what was there before; meant for a fresh process."""
    tensors = problem.tensors(device)
    small = Problem(m=8, n=problem.sets + 8, d=problem.d, k=8, sets=problem.sets)
    ROUTES[route](*small.tensors(device), small)  # libraries load their code and buffers
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ROUTES[route](*tensors, problem)
        return torch.cuda.max_memory_allocated() - before
    # Writing 5 sets the high-water mark of the resident set back to its present size (Linux).
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_mark()
    ROUTES[route](*tensors, problem)
    return high_water_mark() - before


def high_water_mark() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def peak_in_fresh_process(route: str, problem: Problem, device: str) -> int | None:
    """None where the system does not tell (not Linux)."""
    call = f"from benchmarks.matching import *; print(peak_extra_bytes({route!r}, {problem!r}, {device!r}))"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else None


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def processor() -> str:
    if not Path("/proc/cpuinfo").exists():
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a problem of M 512, N 2048, k 1000, in 3 rounds")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: %(default)s)")
    parser.add_argument("--sets", type=int, default=9, help="label sets (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    problem = Problem(m=512, n=2048, k=1000, sets=options.sets) if options.quick else Problem(sets=options.sets)
    times = seconds(problem, options.device, 3 if options.quick else options.rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    machine = torch.cuda.get_device_name() if options.device == "cuda" else processor()

    print(f"M {problem.m}, N {problem.n}, D {problem.d}, k {problem.k}, {problem.sets} label sets")
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, commit {commit()}\n")
    print("| route | ms, median | quartiles | time / ours | peak extra MiB |\n|---|---|---|---|---|")
    rows = []
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        peak = peak_in_fresh_process(name, problem, options.device)
        rows.append({"route": name, "seconds": values, "median": medians[name], "peak_extra_bytes": peak})
        ratio = medians[name] / medians["chunked"]
        memory = "not measured" if peak is None else f"{peak / 2**20:.1f}"
        quartiles = f"{low * 1e3:.1f}-{high * 1e3:.1f}"
        print(f"| {CAPTIONS[name]} | {medians[name] * 1e3:.1f} | {quartiles} | {ratio:.2f} | {memory} |")
    if options.json:
        figures = {
            "problem": asdict(problem),
            "device": machine,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "commit": commit(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "routes": rows,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
