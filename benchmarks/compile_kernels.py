"""Compile the fused kernels for NVIDIA cards that need not be there: registers, spills and shared memory of each.

    python -m benchmarks.compile_kernels                    # every variant that the code can choose, about ten minutes
    python -m benchmarks.compile_kernels --quick            # one for each card, half a minute
    python -m benchmarks.compile_kernels --cards 8.0 9.0

Triton and its own ptxas compile what rpg_loss would launch on such a card; nothing runs.  The exit status is 1 if a
kernel does not compile, takes more shared memory than the card has, or spills more than ADMITTED_SPILLS.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.measure import commit, write_json
from rpg_loss.matching import fused
from rpg_loss.matching.references import LocalReferences

# Bytes of shared memory that a program may take, by compute capability.
CARDS = {
    (8, 0): 166_912,
    (8, 6): 101_376,
    (8, 9): 101_376,
    (9, 0): 232_448,
    (10, 0): 232_448,
    (12, 0): 101_376,
}
KERNELS = ("set_maxima", "count_above", "lowest_key")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# All of D in a tile of 16, 32 or 64, and more than one tile.
FEATURES = (16, 32, 64, 1024)
# Bytes a thread.  Where 255 registers are taken, a handful of values goes to the first-level cache, once a tile of some
# hundred thousand operations; smaller tiles, which would spare it, read the references more often.  Which costs more,
# only a GPU can tell.
ADMITTED_SPILLS = 64


@dataclass
class Compiled:
    """One kernel, as compiled for a card.

    Attributes:
        spilled: bytes a thread.
        shared: bytes a program, and ``limit`` what the card has.
        fault: why it cannot be used, or nothing.
    """

    card: str
    kernel: str
    dtype: str
    features: int
    tile: str
    epsilon: bool
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    limit: int = 0
    fault: str = ""


class Card:
    """What Triton asks a driver of."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 10 * self.capability[0] + self.capability[1], 32)

    def get_current_device(self) -> tuple[int, int]:
        return self.capability

    def get_current_stream(self, device: object) -> int:
        return 0


class Compiler:
    """Stands for a kernel: compiles instead of launching."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: Any = None

    def __getitem__(self, grid: Any) -> Any:
        def compile_it(*arguments: Any, **options: Any) -> None:
            self.compiled = self.kernel.warmup(*arguments, grid=grid, **options)

        return compile_it


def compile_variants(capability: tuple[int, int], dtype: str, d: int, epsilon: bool) -> Iterator[Compiled]:
    """Compile the three kernels as ``match`` would launch them."""
    from rpg_loss.matching import kernels

    triton.runtime.driver.set_active(Card(capability))
    compilers = {name: Compiler(getattr(kernels, name)) for name in KERNELS}
    stand_in = SimpleNamespace(THRESHOLDS=kernels.THRESHOLDS, MAX_SPAN=kernels.MAX_SPAN, **compilers)
    with (
        mock.patch.object(fused, "_kernels", return_value=stand_in),
        mock.patch.object(fused, "_multiprocessors", return_value=100),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=capability),
    ):
        u, r = ((torch.rand(n, d) * (1e-5 if epsilon else 1)).to(DTYPES[dtype]) for n in (300, 2000))
        engine = fused.sweeps(u.dtype, LocalReferences(r, torch.zeros(len(r), dtype=torch.int64), 9))(u)
        rows, tiles = torch.arange(len(u)), engine.tiles
        card = "sm_{}{}".format(*capability)
        tile = f"{tiles.queries} x {tiles.references} x {tiles.features}, {tiles.stages} stages"
        asked: dict[str, Callable[[], object]] = {
            "set_maxima": engine.set_maxima,
            "count_above": lambda: engine.count_above(rows, torch.rand(len(u), kernels.THRESHOLDS)),
            "lowest_key": lambda: engine.lowest_key(rows, torch.rand(len(u))),
        }
        for name, ask in asked.items():
            row = Compiled(card, name, dtype, d, tile, epsilon, limit=CARDS[capability])
            try:
                ask()
            except Exception as error:
                row.fault = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            else:
                row = replace(row, **usage(compilers[name].compiled))
                if row.shared > row.limit:
                    row.fault = "more shared memory than the card has"
                elif row.spilled > ADMITTED_SPILLS:
                    row.fault = "more spilled than admitted"
            yield row


def usage(compiled: Any) -> dict[str, Any]:
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        listing = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
    spilled = found["STACK"] + found["LOCAL"]
    return {"registers": found["REG"], "spilled": spilled, "shared": compiled.metadata.shared}


# The shapes of tiles and both dtypes' sizes are all among these.
QUICK = {
    (8, 0): ("float32", 1024, False),
    (8, 6): ("bfloat16", 64, False),
    (8, 9): ("float32", 64, True),
    (9, 0): ("float32", 64, False),
    (10, 0): ("bfloat16", 64, True),
    (12, 0): ("bfloat16", 1024, False),
}


def variants(capability: tuple[int, int], options: argparse.Namespace) -> list[tuple[str, int, bool]]:
    if options.quick:
        return [QUICK[capability]]
    return [(dtype, d, epsilon) for dtype in options.dtypes for d in options.features for epsilon in (False, True)]


def table(rows: list[Compiled]) -> str:
    """One line for each card, dtype and tile: the most that any of its kernels takes."""
    lines = [
        "| card | features | D | tile: queries x references x features | registers | spilled bytes | shared KiB, of |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str, bool], list[Compiled]] = {}
    for row in rows:
        groups.setdefault((row.card, row.dtype, row.tile, row.features > FEATURES[2]), []).append(row)
    for (card, dtype, tile, _), of in groups.items():
        most = {name: max(getattr(row, name) for row in of) for name in ("registers", "spilled", "shared")}
        features = ", ".join(map(str, sorted({row.features for row in of})))
        memory = f"{most['shared'] / 1024:.0f}, {of[0].limit / 1024:.0f}"
        cells = (card, dtype, features, tile, most["registers"], most["spilled"], memory)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compile_kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = {f"{major}.{minor}": (major, minor) for major, minor in CARDS}
    parser.add_argument("--cards", nargs="+", choices=known, default=list(known), help="compute capabilities")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of the features")
    parser.add_argument("--features", nargs="+", type=int, default=list(FEATURES), metavar="D", help="how many")
    parser.add_argument("--quick", action="store_true", help="one of the 24 variants for each card")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every kernel's figures")
    options = parser.parse_args(arguments)
    cards = [known[card] for card in options.cards]
    rows = [row for card in cards for of in variants(card, options) for row in compile_variants(card, *of)]
    print(f"compiled, not run: Triton {triton.__version__}, commit {commit()}\n\n{table(rows)}")
    record = {"command": " ".join(["python -m benchmarks.compile_kernels", *sys.argv[1:]]), "commit": commit()}
    write_json(options.json, {"triton": triton.__version__, **record, "rows": [asdict(row) for row in rows]})
    faults = [f"{row.card} {row.kernel} {row.dtype} D {row.features}: {row.fault}" for row in rows if row.fault]
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
