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
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.config import DatasetName, MethodName
from examples.sweeps.jobs import ExecutorName, Outcome, run_cells
from examples.sweeps.plan import Cell, estimate, plan


@dataclass(frozen=True)
class Sweep:
    """Train every combination of the options given."""

    datasets: tuple[DatasetName, ...]
    """Data sets."""

    methods: tuple[MethodName, ...]
    """Methods."""

    labeled: tuple[int, ...] = (3,)
    """Numbers of labelled images, N_l."""

    splits: tuple[int, ...] = (0,)
    """Draws of labelled and validation images."""

    seeds: tuple[int, ...] = (0,)
    """Seeds."""

    vary: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """An option of examples.train and its values, such as --vary k 0.25 0.5; once for each option. A method that does
    not heed the option is run once."""

    out: Path = Path("runs")
    """Folder of all results; each in {out}/{dataset}/{method}-n{labeled}-s{split}-seed{seed}[-{option}={value}]."""

    executor: ExecutorName = "local"
    """This machine, or the SLURM cluster that it belongs to."""

    jobs: int = 2
    """local: runs at a time, each with one thread."""

    hours: float = 48.0
    """Time after which a run is ended."""

    partition: str | None = None
    """slurm: partition."""

    dry_run: bool = False
    """Print the plan, what of it is finished and how long the rest may take; start nothing."""

    def __post_init__(self) -> None:
        for name in ("datasets", "methods", "labeled", "splits", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name}: got none, expected at least one")
        if self.jobs < 1:
            raise ValueError(f"jobs: got {self.jobs}, expected 1 or more")
        if self.hours <= 0:
            raise ValueError(f"hours: got {self.hours}, expected more than 0")


def run(sweep: Sweep, options: Sequence[str]) -> int:
    """Runs or shows the sweep.

    Returns:
        The exit status: 1 if a cell failed.
    """
    console = Console(soft_wrap=True, highlight=False)
    cells = plan(
        sweep.out, sweep.datasets, sweep.methods, sweep.labeled, sweep.splits, sweep.seeds, sweep.vary, options
    )
    todo = [cell for cell in cells if not cell.finished]
    if sweep.dry_run:
        show_plan(console, sweep, cells)
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


def show_plan(console: Console, sweep: Sweep, cells: Sequence[Cell]) -> None:
    seconds = estimate(cells, sweep.out)
    for cell in cells:
        said = "finished" if cell.finished else duration(seconds[cell.out])
        said += ", less what is done of it" if cell.begun else ""
        console.print(f"{cell.name}: {said}", markup=False)
    todo = [seconds[cell.out] for cell in cells if not cell.finished]
    console.print(f"{len(cells)} cells, {len(todo)} to run")
    if todo:
        known = [value for value in todo if value is not None]
        unknown = len(todo) - len(known)
        at_a_time = f"{sweep.jobs} at a time" if sweep.executor == "local" else "if all run at once"
        # Cells that have no finished relative are as long as the others, for all that is known.
        longest = max(known, default=0.0)
        total = max(sum(known) / sweep.jobs, longest) if sweep.executor == "local" else longest
        if not known:
            console.print("time: unknown, no result like these below --out")
        else:
            more = f", and {unknown} cells of unknown length" if unknown else ""
            console.print(f"time: {duration(total)} {at_a_time}{more}")


def show_outcomes(console: Console, cells: Sequence[Cell], outcomes: Sequence[Outcome]) -> None:
    """A table of all cells; a log that failed is named below it, where no column cuts its path."""
    by_folder = {outcome.cell.out: outcome for outcome in outcomes}
    table = Table("cell", "mIoU", title="Sweep")
    for cell in cells:
        outcome = by_folder.get(cell.out)
        if outcome is None:
            result = "finished before"
        else:
            result = "FAILED" if outcome.score is None else f"{outcome.score:.3f}"
        table.add_row(Text(cell.name), result)
    console.print(table)
    for outcome in outcomes:
        if outcome.score is None:
            console.print(f"FAILED {outcome.cell.name}: {outcome.reason}; log: {outcome.log}", markup=False)
    console.print(f"logs: log/ in each cell's folder, such as {cells[0].out / 'log'}", markup=False)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


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
