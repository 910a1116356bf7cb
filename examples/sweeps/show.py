"""What a sweep prints: its plan, and what became of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.sweeps.jobs import Outcome
from examples.sweeps.plan import Cell


def show_plan(
    console: Console, cells: Sequence[Cell], seconds: Mapping[Path, float | None], out: Path, jobs: int | None
) -> None:
    """Print every cell with the time that it may take (None: no finished run is like it), and the time of all.

    So many ``jobs`` run at a time; None: as many as there are cells.
    """
    for cell in cells:
        said = "finished" if cell.finished else f"to run, {duration(seconds[cell.out])}"
        said += ", less what is done of it" if cell.begun else ""
        console.print(f"{cell.name}: {said}", markup=False)
    todo = [seconds[cell.out] for cell in cells if not cell.finished]
    console.print(f"{len(cells)} cells, {len(todo)} to run")
    known = [value for value in todo if value is not None]
    if todo and not known:
        console.print(f"time: not known before one of them is finished below {out}", markup=False)
    elif todo:
        # Cells that have no finished relative are as long as the others, for all that is known.
        longest = max(known)
        total = max(sum(known) / jobs, longest) if jobs else longest
        at_a_time = f"{jobs} at a time" if jobs else "if all run at once"
        unknown = len(todo) - len(known)
        more = f", and {unknown} cells of unknown length" if unknown else ""
        console.print(f"time: {duration(total)} {at_a_time}{more}")


def show_outcomes(console: Console, cells: Sequence[Cell], outcomes: Sequence[Outcome]) -> None:
    """Print a table of all cells; the log of one that failed is named below, where no column cuts its path."""
    by_folder = {outcome.cell.out: outcome for outcome in outcomes}
    table = Table("cell", "mIoU", title="Sweep")
    for cell in cells:
        outcome = by_folder.get(cell.out)
        result = outcome and ("FAILED" if outcome.score is None else f"{outcome.score:.3f}")
        table.add_row(Text(cell.name), result or "finished before")
    console.print(table)
    for outcome in outcomes:
        if outcome.score is None:
            console.print(f"FAILED {outcome.cell.name}: {outcome.reason}; log: {outcome.log}", markup=False)
    console.print(f"logs: log/ in each cell's folder, such as {cells[0].out / 'log'}", markup=False)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "for a time that is not known yet"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
