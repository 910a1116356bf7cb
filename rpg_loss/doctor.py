"""Examine this machine: the first thing to run on a new one.

    python -m rpg_loss.doctor [--device cuda:0] [--json]

Says what is installed, compares every implementation of the matching with the definition on every device, and times
them.  It takes less than a minute, and as long again where Triton has to compile, and ends with a summary to paste into
a bug report.  The exit status is 1 if anything disagrees or fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .matching import IMPLEMENTATIONS, fused, match, self_check, unavailable_reason
from .matching.references import LocalReferences
from .pseudo_labels import rpg_pseudo_labels

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FEATURES = (1, 3, 16, 64, 70, 256, 1024)
_FAILED = "FAILED: "


def main(arguments: list[str] | None = None) -> None:
    """Print the report; exit with status 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m rpg_loss.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", help="examine this one alone (default: all that torch finds)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON and nothing else")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"installed": installed()}
    for device in [options.device] if options.device else devices():
        if not options.json:
            print(f"examining {device} ...", flush=True)
        report[device] = attempt(examine, device)
    lines = list(in_lines(report))
    wrong = [line for line in lines if _FAILED in line]
    verdict = "\n".join(["wrong:", *wrong]) if wrong else "nothing wrong was found"
    if options.json:
        print(json.dumps(report | {"wrong": wrong}, indent=1))
    else:
        print("\n".join(["\nTo paste into a bug report:\n\n```", "python -m rpg_loss.doctor", *lines, verdict, "```"]))
    if wrong:
        raise SystemExit(1)


def in_lines(report: Any, name: str = "") -> list[str]:
    """Return one line for every entry of the report."""
    if isinstance(report, dict):
        return [line for key, part in report.items() for line in in_lines(part, f"{name}{key}: ")]
    return [f"{name}{report}"]


def devices() -> list[str]:
    """Return the CPU, and the accelerators that torch finds."""
    others = [kind for kind, of in (("mps", torch.backends.mps), ("xpu", torch.xpu)) if of.is_available()]
    return ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count())), *others]


def attempt(what: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return what a function returns, or its exception as one line."""
    try:
        return what(*args, **options)
    except Exception as error:
        return f"{_FAILED}{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def installed() -> dict[str, Any]:
    """Return versions, and what Triton compiles with: a C compiler, Python's headers, a folder that it can write."""
    cache = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton" / "cache"))
    return {
        "rpg_loss": __version__,
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, {torch.get_num_threads()} threads",
        "triton": fused.triton_version() if importlib.util.find_spec("triton") else "none",
        "C compiler": os.environ.get("CC") or next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), "none"),
        "Python.h": "found" if Path(sysconfig.get_path("include"), "Python.h").exists() else "none",
        "Triton's cache": "writable" if writable(cache) else "not writable",
    }


def writable(folder: Path) -> bool:
    """Return whether a file can be written into a folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def examine(name: str) -> dict[str, Any]:
    """Return what every implementation does on a device."""
    device, report = torch.device(name), dict[str, Any]()
    if device.type == "cuda":  # pragma: no cover  # needs a GPU
        report["card"] = attempt(card, device)
    for impl in IMPLEMENTATIONS:
        report[impl] = attempt(agreement, impl, device)
    report["torch.compile"] = attempt(compiled, device, backend="aot_eager")
    report["times"] = attempt(times, device, 4096, 12288)
    if device.type == "cuda":  # pragma: no cover  # needs a GPU
        with torch.cuda.stream(torch.cuda.Stream(device)):
            report["on a side stream"] = attempt(agreement, "auto", device, (64,))
        report["reduce-overhead"] = attempt(compiled, device, mode="reduce-overhead")
        report["more times"] = attempt(times, device, 16384, 49152)
        report["kernels"] = attempt(kernels, device)
    return report


def agreement(impl: str, device: torch.device, features: tuple[int, ...] = ()) -> str:
    """Return that an implementation agrees with the definition, why it cannot run, or where it is wrong."""
    if impl == "triton" and not fused.is_preferred(device):
        return "not here: " + (unavailable_reason(impl, device) or "Triton would interpret its kernels")
    left_out = {dtype: unavailable_reason(impl, device, dtype) for dtype in _DTYPES}
    if all(left_out.values()):
        return f"not here: {left_out[_DTYPES[0]]}"
    start = time.perf_counter()
    for dtype in (dtype for dtype in _DTYPES if not left_out[dtype]):
        for d in features or _FEATURES:
            for short in (False, True):
                wrong = disagreement(impl, device, d, dtype, short)
                if wrong:
                    return f"{_FAILED}{wrong}, with {d} features of {dtype}"
    seconds = f" ({time.perf_counter() - start:.1f} s, compiling included)"
    return "agrees" + seconds + "".join(f"; {reason}" for reason in left_out.values() if reason)


def disagreement(impl: str, device: torch.device, d: int, dtype: torch.dtype, short: bool) -> str | None:
    """Return what is wrong with the matches of a hard problem, or None."""
    u, r, set_ids = self_check.hard_problem(d, dtype, short)
    cosines, sets, n = self_check.similarities(u, r), int(set_ids.max()) + 1, len(r)
    queries, references = u.to(device), LocalReferences(r.to(device), set_ids.to(device), sets)
    for k in (1, n // 2, n - 1, n):
        one, again = (match(queries, references, k, impl) for _ in range(2))
        if not all(map(torch.equal, one, again)):
            return "results differ from one run to the next"
        wrong = self_check.disagreement(one, cosines, set_ids, sets, k)
        if wrong:
            return wrong
    return None


def problem(device: torch.device, m: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of queries and references as after a ReLU, and labels."""
    generator = torch.Generator().manual_seed(0)
    u, r = (torch.randn(size, 64, generator=generator).relu().to(device) for size in (m, n))
    return u, r, (torch.arange(n) % 9).to(device)


def compiled(device: torch.device, **options: Any) -> str:
    """Return whether a compiled call gives what a call gives."""
    args = (*problem(device, 50, 90), 0.5)
    expected, got = rpg_pseudo_labels(*args), torch.compile(rpg_pseudo_labels, fullgraph=True, **options)(*args)
    return "agrees" if all(map(torch.equal, expected, got)) else f"{_FAILED}results differ from those without"


def times(device: torch.device, m: int, n: int) -> dict[str, str]:
    """Return median times, and on a GPU peaks of memory, of the matching and of what is written without it."""
    u, r, set_ids = problem(device, m, n)
    references, k = LocalReferences(r, set_ids, 9), 4 * n // 7
    routes: dict[str, Callable[[], object]] = {
        "auto": lambda: match(u, references, k),
        "chunked": lambda: match(u, references, k, "chunked"),
        "mm": lambda: u @ r.T,
        "mm + topk": lambda: (u @ r.T).topk(k, dim=1),
    }
    return {f"{name}, {m} x {n}": attempt(measure, route, device) for name, route in routes.items()}


def measure(route: Callable[[], object], device: torch.device) -> str:
    """Return the median of three calls after the first, and the peak of memory above what was there."""
    seconds, memory = [], ""
    for _ in range(4):
        start = time.perf_counter()
        route()
        if device.type == "cuda":  # pragma: no cover  # needs a GPU
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    if device.type == "cuda":  # pragma: no cover  # needs a GPU
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        route()
        memory = f", {(torch.cuda.max_memory_allocated(device) - before) / 2**20:.1f} MiB"
    return f"{1000 * statistics.median(seconds[1:]):.2f} ms (first {1000 * seconds[0]:.0f} ms){memory}"


def card(device: torch.device) -> str:  # pragma: no cover  # needs a GPU
    """Return name, capability, shared memory and driver."""
    of = torch.cuda.get_device_properties(device)
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = attempt(subprocess.check_output, ask, text=True)
    shared = getattr(of, "shared_memory_per_block_optin", "unknown")
    return f"{of.name}, capability {of.major}.{of.minor}, {shared} bytes of shared memory, driver {driver.strip()}"


def kernels(device: torch.device) -> dict[str, str]:  # pragma: no cover  # needs a GPU
    """Return registers, spilled bytes and shared memory of every kernel."""
    report = {}
    for dtype in (dtype for dtype in _DTYPES if not unavailable_reason("triton", device, dtype)):
        for d in (64, 1024):
            u, r, set_ids = (tensor.to(device) for tensor in self_check.hard_problem(d, dtype, short=False))
            engine = fused.sweeps(u.dtype, LocalReferences(r, set_ids, int(set_ids.max()) + 1))(u)
            rows, thresholds = torch.arange(len(u), device=device), torch.ones(len(u), 8, device=device)
            engine.set_maxima(), engine.count_above(rows, thresholds), engine.lowest_key(rows, thresholds[:, 0])
            for name, of in engine.compiled.items():
                figures = f"{of.n_regs} registers, {4 * of.n_spills} bytes spilled, {of.metadata.shared} bytes shared"
                report[f"{name}, D {d}, {dtype}"] = figures
    return report


if __name__ == "__main__":
    main()
