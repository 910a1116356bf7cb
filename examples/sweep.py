"""Train many methods, splits, seeds and options: the cells of a table, several at a time, finished ones skipped.

    python -m examples.sweep --datasets jsrt --methods supervised rpg rpg_plus --labeled 3 6 --splits 0 1 2 --dry-run \\
        -- --root PATH/TO/JSRT --image-size 128 --base-channels 16 --map-size 32 --k 0.5 --iterations 1500

    python -m examples.sweep --datasets jsrt --methods rpg --splits 0 1 --vary k 0.25 0.5 --vary pool_size 1 3 \\
        -- --root PATH/TO/JSRT --image-size 128 --base-channels 16 --map-size 32 --iterations 1500

Everything after -- are options of examples.train, the same for all cells. Afterwards:

    python -m examples.report runs --out report
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

import tyro
from rich.console import Console

from examples.sweeps.jobs import run_cells
from examples.sweeps.plan import Sweep, estimate, plan
from examples.sweeps.show import show_outcomes, show_plan


def run(sweep: Sweep, options: Sequence[str]) -> int:
    """Run or show the sweep, and return the exit status: 1 if a cell failed."""
    console = Console(soft_wrap=True, highlight=False)
    cells = plan(sweep, options)
    todo = [cell for cell in cells if not cell.finished]
    if sweep.dry_run:
        jobs = sweep.jobs if sweep.executor == "local" else None
        show_plan(console, cells, estimate(cells, sweep.out), sweep.out, jobs)
        return 0
    console.print(f"{len(cells)} cells, {len(cells) - len(todo)} of them finished")
    if todo and importlib.util.find_spec("submitit") is None:
        raise ModuleNotFoundError("sweeps need submitit; install it with: pip install 'rpg-loss[examples]'")
    try:
        outcomes = run_cells(
            todo, sweep.executor, sweep.jobs, sweep.hours, sweep.partition,
            say=lambda line: console.print(line, markup=False),
        )  # fmt: skip
    except KeyboardInterrupt:
        again = "the same command" + " without --overwrite" * ("--overwrite" in options)
        console.print(f"stopped; {again} skips finished cells and goes on with the others from their last checkpoint")
        return 130
    show_outcomes(console, cells, outcomes)
    return 1 if any(outcome.score is None for outcome in outcomes) else 0


def main() -> None:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    sweep = tyro.cli(Sweep, args=words[:cut], description=__doc__, prog="python -m examples.sweep")
    try:
        sys.exit(run(sweep, words[cut + 1 :]))
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:  # the message says what to do
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
