"""Time and memory of the matching, against the routes that one would write without this package.

    python -m benchmarks.matching                    # the paper's size, all routes, 9 and 100 label sets
    python -m benchmarks.matching --quick            # a smaller problem, for a smoke test; goes with every mode
    python -m benchmarks.matching --sweep            # one size varied at a time
    python -m benchmarks.matching --grid             # Table 3 of the paper: images in the pool x k; who fits in 11 GiB
    python -m benchmarks.matching --full-resolution  # every pixel, ours only

Routes run one after the other in every round of one process, so that each ratio compares what ran side by side.  The
first round warms up and checks that every route finds the same matches.  Peak extra memory is the high-water mark above
what the inputs take: on a CPU that of the resident set of a fresh process per route, on a GPU that of PyTorch's
allocator.  A route that cannot run is a row that says why.  The exit status is 1 if a route disagrees or fails.
"""

from __future__ import annotations

import argparse
import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.measure import (
    GIB,
    Case,
    conditions,
    environment,
    measure_peaks,
    parse,
    parser_of,
    quartiles,
    time_side_by_side,
    write_json,
)
from benchmarks.routes import MAP_PIXELS, OTHERS, OURS, ROUTES, Problem

MANY_SETS = 100
QUERY_IMAGES_OF_A_BATCH = 5
PATIENCE = 3.0  # seconds; in long modes a route that is slower than this runs once
PAPERS_CARD = 11 * GIB  # of memory
MIB = 2**20


def main() -> None:
    options = options_of_command()
    device = torch.device(options.device)
    mode, measure = next(
        (name, function) for name, function in MODES.items() if getattr(options, name.replace("-", "_"), True)
    )
    record = environment(device, "benchmarks.matching")
    print(f"{conditions(record)}\n")
    cases, extra = measure(options, device)
    rows = [case.record() for case in cases]
    write_json(options.json, {"benchmark": "matching", "mode": mode, "environment": record, **extra, "rows": rows})
    failed = [f"{case.caption} ({case.problem}): {case.note or case.peak_note}" for case in cases if case.failed]
    if failed:
        raise SystemExit("\n".join(failed))


def options_of_command() -> argparse.Namespace:
    parser = parser_of("benchmarks.matching", __doc__)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--sweep", action="store_true", help="vary N, M, D, k and the label sets around the paper's size"
    )
    modes.add_argument("--grid", action="store_true", help="1 to 5 images in the pool x k of 25, 50, 75 and 100 %%")
    modes.add_argument(
        "--full-resolution", action="store_true", help="M 65,536 x N 196,608 (cuda: M 262,144 x N 786,432), ours only"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the features, on a GPU"
    )
    parser.add_argument(
        "--routes", nargs="+", choices=OURS + OTHERS, metavar="ROUTE", help=f"only these: {', '.join(OURS + OTHERS)}"
    )
    options = parse(parser)
    if options.device == "cpu" and options.dtype != "float32":
        parser.error(f"--dtype {options.dtype}: on the CPU only float32 is measured; add --device cuda")
    return options


def headline(options: argparse.Namespace, device: torch.device) -> tuple[list[Case], dict[str, Any]]:
    """All routes at the paper's size, and ours with many label sets in the same rounds."""
    problem = paper_size(options, images=5 if device.type == "cuda" else 1)
    many = replace(problem, sets=MANY_SETS)
    # The definition takes many times the matrix in float64: only where that is little.
    definition = ["reference"] if options.quick and device.type == "cpu" and not options.routes else []
    few_sets = [Case(name, problem) for name in [*chosen(options, OURS + OTHERS), *definition]]
    many_sets = [Case(name, many) for name in chosen(options, [*OURS, "mm"])]
    cases = few_sets + many_sets
    time_side_by_side(cases, device, rounds(options, 9))
    measure_peaks(cases, device)
    print_routes(few_sets)
    print_routes(many_sets)
    print(f"| {MANY_SETS} sets / {problem.sets} sets, the same round | median | quartiles |\n|---|---|---|")
    growth = {}
    for case in many_sets:
        before = next(other for other in few_sets if other.route == case.route)
        if case.seconds and before.seconds:
            growth[case.route] = low, middle, high = quartiles(
                [a / b for a, b in zip(case.seconds, before.seconds, strict=True)]
            )
            print(f"| {case.caption} | {middle:.2f} | {low:.2f}-{high:.2f} |")
    return cases, {"problem": asdict(problem), "many_sets": MANY_SETS, "growth_quartiles": growth}


def sweep(options: argparse.Namespace, device: torch.device) -> tuple[list[Case], dict[str, Any]]:
    """One size varied at a time around the paper's; ours, torch.topk and the bare product."""
    base = paper_size(options, images=1)
    share = base.k / base.n  # k is a share of the references throughout
    ns, ms = ((512, 1024), (128, 1024)) if options.quick else ((3072, 49152, 196608), (1024, 16384))
    ds, sets = ((16,), (2, 30)) if options.quick else ((16, 256, 1024), (2, 30, 100, 300))
    varied = {
        "n": [replace(base, n=n, k=round(share * n)) for n in ns],
        "m": [replace(base, m=m) for m in ms],
        "d": [replace(base, d=d) for d in ds],
        "k": [replace(base, k=round(k * base.n)) for k in (0.01, 0.10, 0.25, 1.0)],
        "sets": [replace(base, sets=count) for count in sets],
    }
    names = chosen(options, [*OURS, "topk", "mm"])
    budget = (60 if device.type == "cuda" else 8) * GIB
    measured: dict[Problem, list[Case]] = {}
    for parameter, others in varied.items():
        varied[parameter] = problems = sorted([*others, base], key=operator.attrgetter(parameter))
        for problem in problems:
            if problem not in measured:
                measured[problem] = [Case(name, problem) for name in names]
                time_side_by_side(measured[problem], device, rounds(options, 3), budget=budget, patience=PATIENCE)
        print_sweep(parameter, [measured[problem] for problem in problems])
    cases = [case for group in measured.values() for case in group]
    record = {parameter: [asdict(problem) for problem in problems] for parameter, problems in varied.items()}
    return cases, {"problem": asdict(base), "varied": record}


def grid(options: argparse.Namespace, device: torch.device) -> tuple[list[Case], dict[str, Any]]:
    """Table 3 of the paper: time for one image; peak memory for one and for a batch of images at once."""
    pixels = 256 if options.quick else MAP_PIXELS
    base = replace(paper_size(options, images=1), m=pixels)
    batch = pixels * QUERY_IMAGES_OF_A_BATCH
    names = chosen(options, OURS + OTHERS)
    # The other CPU routes would make it a matter of hours.
    of_batch = chosen(options, [*OURS, "topk", "mm"]) if device.type == "cpu" else names
    cases = []
    print(f"{base.m} queries (time and memory), then a batch of {batch} at once (memory)\n")
    print("| images in the pool | k | route | ms, median | peak extra MiB | of a batch | fits 11 GiB |")
    print("|---|---|---|---|---|---|---|")
    for images in (1,) if options.quick else range(1, 6):
        for share in (0.5,) if options.quick else (0.25, 0.5, 0.75, 1.0):
            n = images * pixels
            problem = replace(base, n=n, k=round(share * n))
            singles = [Case(name, problem) for name in names]
            batches = [Case(name, replace(problem, m=batch)) for name in of_batch]
            time_side_by_side(singles, device, rounds(options, 3 if device.type == "cuda" else 1))
            measure_peaks(singles + batches, device)
            cases += singles + batches
            for case in singles:
                large = next((other for other in batches if other.route == case.route), None)
                print(
                    f"| {images} | {share:.0%} | {case.caption} | {milliseconds(case)} | {mebibytes(case)} | "
                    f"{mebibytes(large) if large else 'not measured'} | {fits(large) if large else ''} |",
                    flush=True,
                )
    return cases, {"problem": asdict(base), "batch": batch, "budget_bytes": PAPERS_CARD, "pixels": pixels}


def full_resolution(options: argparse.Namespace, device: torch.device) -> tuple[list[Case], dict[str, Any]]:
    """Every pixel of an image against every pixel of three, as far as time allows; ours only."""
    side = 32 if options.quick else 512 if device.type == "cuda" else 256
    n = 3 * side**2
    problem = Problem(side**2, n, k=n // 2, dtype=options.dtype)
    cases = [Case(name, problem) for name in [*chosen(options, OURS), "mm_blocks"]]
    time_side_by_side(cases, device, rounds(options, 5), patience=PATIENCE)
    measure_peaks(cases, device)
    print_routes(cases)
    return cases, {"problem": asdict(problem)}


# The first whose option is set; the headline has none.
MODES = {"sweep": sweep, "grid": grid, "full-resolution": full_resolution, "headline": headline}


def paper_size(options: argparse.Namespace, images: int) -> Problem:
    """Three images of references, and some of queries, with maps of 64 x 64."""
    if options.quick:
        return Problem(m=512 * images, n=2048, k=1000, dtype=options.dtype)
    return Problem(m=MAP_PIXELS * images, dtype=options.dtype)


def chosen(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    return [name for name in names if not options.routes or name in options.routes]


def rounds(options: argparse.Namespace, default: int) -> int:
    return 3 if options.quick else default


def print_routes(cases: Sequence[Case]) -> None:
    if not cases:
        return
    print(f"{cases[0].problem}; ours is the fastest of ours, ratios are of medians\n")
    print("| route | ms, median | quartiles | time / ours | time / mm | peak extra MiB |\n|---|---|---|---|---|---|")
    best = min((case.median for case in cases if ROUTES[case.route].ours and case.seconds), default=math.nan)
    product = next((case.median for case in cases if case.route in ("mm", "mm_blocks")), math.nan)
    for case in cases:
        spread = "-".join(f"{quartiles(case.seconds)[i] * 1e3:.1f}" for i in (0, 2)) if case.seconds else ""
        ratios = [f"{case.median / other:.2f}" if case.seconds and other > 0 else "" for other in (best, product)]
        print(f"| {case.caption} | {milliseconds(case)} | {spread} | {' | '.join(ratios)} | {mebibytes(case)} |")
    print(flush=True)


def print_sweep(parameter: str, groups: Sequence[Sequence[Case]]) -> None:
    print(f"| {parameter.upper()} | " + " | ".join(f"{case.caption}, ms" for case in groups[0]) + " |")
    print("|---" * (len(groups[0]) + 1) + "|")
    for cases in groups:
        value = getattr(cases[0].problem, parameter)
        print(f"| {value} | " + " | ".join(milliseconds(case) for case in cases) + " |")
    print(flush=True)


def milliseconds(case: Case) -> str:
    return f"{case.median * 1e3:.1f}" if case.seconds else case.note


def mebibytes(case: Case) -> str:
    if case.peak_extra_bytes is None:
        return "" if case.peak_note == case.note else case.peak_note
    return f"{case.peak_extra_bytes / MIB:.1f}"


def fits(case: Case) -> str:
    if case.peak_extra_bytes is not None:
        return "yes" if case.peak_extra_bytes <= PAPERS_CARD else "no"
    return "no" if ROUTES[case.route].needs(case.problem) > PAPERS_CARD else "not known"


if __name__ == "__main__":
    main()
