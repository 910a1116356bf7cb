"""Timing side by side, peak memory, and the record of what both were measured on."""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import math
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.routes import ROUTES, Problem, disagreement
from examples.logging.environment import installed_version
from rpg_loss.matching.definition import Matches

GIB = 2**30


@dataclass
class Case:
    """A route on a problem, and what was measured of it.

    Attributes:
        seconds: of each timed call.
        peak_extra_bytes: most memory during one call above what was taken before; None where it is not known.
        note: why there are no times.
        peak_note: why there is no memory.
        failed: the route gave wrong matches or ended with an error other than too little memory.
    """

    route: str
    problem: Problem
    seconds: list[float] = field(default_factory=list)
    peak_extra_bytes: int | None = None
    note: str = ""
    peak_note: str = ""
    failed: bool = False

    @property
    def caption(self) -> str:
        return ROUTES[self.route].caption

    @property
    def median(self) -> float:
        """Median time in seconds, NaN if there is none."""
        return statistics.median(self.seconds) if self.seconds else math.nan

    def record(self) -> dict[str, Any]:
        summary = quartiles(self.seconds) if self.seconds else None
        return {**asdict(self), "caption": self.caption, "quartiles": summary}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def time_side_by_side(
    cases: Sequence[Case],
    device: torch.device,
    rounds: int,
    *,
    budget: float = math.inf,
    patience: float = math.inf,
) -> None:
    """Run all cases one after the other in every round, so that ratios compare what ran side by side.

    The first round warms up and checks the matches against ``chunked``; it is not among the ``rounds`` that count.  A
    case that needs more than ``budget`` bytes does not run.  Of one whose first call takes more than ``patience``
    seconds that call is the only one, and counts.
    """
    expected = functools.cache(lambda problem: attempt(Case("chunked", problem), device)[1])
    for case in cases:
        case.note = cannot_run(case, device, budget)
        if case.note:
            continue
        seconds, matches = attempt(case, device)
        if isinstance(matches, Matches) and case.route != "chunked":
            right = expected(case.problem)
            if isinstance(right, Matches):
                case.note = disagreement(matches, right, case.problem, device) or ""
            else:
                case.note = "not checked: chunked gave no matches to compare with"
            case.failed = bool(case.note)
        del matches
        if seconds > patience and not case.note:
            case.seconds.append(seconds)
    timed = [case for case in cases if not case.seconds]
    for _ in range(rounds):
        for case in timed:
            if not case.note:
                seconds = attempt(case, device)[0]
                if not case.note:
                    case.seconds.append(seconds)


def cannot_run(case: Case, device: torch.device, budget: float = math.inf) -> str:
    """Why the case is better not started, or nothing."""
    route = ROUTES[case.route]
    reason = route.refuses(case.problem, device)
    if reason:
        return reason
    needed, free = route.needs(case.problem), free_bytes(device)
    if needed > budget:
        return f"not run: needs about {needed / GIB:.1f} GiB, more than the budget of {budget / GIB:g}"
    if needed > free:
        return f"not run: needs about {needed / GIB:.1f} GiB, {free / GIB:.1f} are free"
    return ""


def free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return math.inf
    return float(re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())[1]) * 1024  # type: ignore[index]


def attempt(case: Case, device: torch.device) -> tuple[float, object]:
    """Time and result of one call; an error becomes the case's note, so that the others go on."""
    try:
        tensors = inputs(case.problem, device)
        synchronize(device)
        start = time.perf_counter()
        result = ROUTES[case.route].run(*tensors, case.problem)
        synchronize(device)
        return time.perf_counter() - start, result
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        case.note = "out of memory" if out_of_memory(error) else f"failed: {type(error).__name__}: {first_line}"
        case.failed = not out_of_memory(error)
        case.seconds.clear()
    release(device)
    return 0.0, None


def out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(re.search("out of memory|can't allocate memory", str(error)))


# Two problems are measured side by side at most.
inputs = functools.lru_cache(maxsize=2)(Problem.tensors)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def release(device: torch.device) -> None:
    """Give memory that is free but held back to the system or the GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif hasattr(ctypes.CDLL(None), "malloc_trim"):  # glibc
        ctypes.CDLL(None).malloc_trim(0)


def measure_peaks(cases: Sequence[Case], device: torch.device) -> None:
    """Peak memory of one call of every case that can run, above what was taken before."""
    measure = peak_on_gpu if device.type == "cuda" else peak_in_fresh_process
    for case in cases:
        release(device)
        case.peak_note = case.note or cannot_run(case, device)
        if not case.peak_note:
            measure(case)


def peak_on_gpu(case: Case) -> None:
    """PyTorch's allocator knows; what others allocate it does not see."""
    if case.route == "faiss":
        case.peak_note = "not measured: not PyTorch's memory"
        return
    device = torch.device("cuda")
    inputs(case.problem, device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    probe = Case(case.route, case.problem)
    attempt(probe, device)
    case.peak_note = probe.note
    if not probe.note:
        case.peak_extra_bytes = torch.cuda.max_memory_allocated() - before


def peak_in_fresh_process(case: Case) -> None:
    """In this one, memory that earlier calls have left behind would hide what the call takes."""
    call = f"from benchmarks.measure import *; print(peak_extra_bytes({case.route!r}, {case.problem!r}))"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    if done.returncode == 0:
        case.peak_extra_bytes = int(done.stdout.splitlines()[-1])
        return
    error = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    killed_or_short = done.returncode == -signal.SIGKILL or "memory" in error.lower()
    case.peak_note = "out of memory" if killed_or_short else f"not measured: {error}"
    case.failed = not killed_or_short and "/proc" not in error  # other systems than Linux have no /proc


def peak_extra_bytes(route: str, problem: Problem) -> int:
    """Growth of the high-water mark of the resident set in one call on the CPU (Linux)."""
    device = torch.device("cpu")
    tensors = problem.tensors(device)
    # Libraries load their code and buffers.  Small, and what it leaves behind is given back, lest that hides anything.
    small = Problem(8, problem.sets + 8, problem.d, 8, problem.sets, problem.dtype)
    ROUTES[route].run(*small.tensors(device), small)
    release(device)
    # Writing 5 sets the mark back to the present size.
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_mark()
    ROUTES[route].run(*tensors, problem)
    return high_water_mark() - before


def high_water_mark() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, for a smoke test")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is there, or this PyTorch is built without CUDA")
    return options


def environment(device: torch.device, module: str) -> dict[str, Any]:
    """What a figure depends on, for the record."""
    arguments = [re.sub(r"^(--\w+=)?/.*/", r"\1", argument) for argument in sys.argv[1:]]  # no folders of this machine
    return {
        "command": shlex.join(["python", "-m", module, *arguments]),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{
            name.replace("-", "_"): installed_version(name)
            for name in ("triton", "numpy", "faiss-cpu", "faiss-gpu", "scikit-learn")
        },
    }


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def processor() -> str:
    if not Path("/proc/cpuinfo").exists():
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def conditions(environment: dict[str, Any]) -> str:
    """The record in one line."""
    count = environment["threads"]
    threads = f", {count} thread{'s' if count > 1 else ''}" if environment["device"] == "cpu" else ""
    triton = f", triton {environment['triton']}" if environment["device"] == "cuda" and environment["triton"] else ""
    made = f"commit {environment['commit']}, {environment['date'][:10]}"
    return f"{environment['machine']}{threads}, torch {environment['torch']}{triton}, {made}"


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
