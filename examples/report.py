"""Tables, plots and pictures from the results of any number of runs, or the page of a single one.

    python -m examples.report runs --out report
    python -m examples.report runs/phantom/rpg_plus-n3-s0-seed0

A folder that holds runs is searched for result.json files, the pictures that they name and the files of
benchmarks.label_study: report.md compares them, beside the paper's numbers where it has any. A folder that is a run's
own gets its report.html made again, as the run writes it itself at every validation and at the end: after it was moved
or died, or with newer code. With --out single runs are compared as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from examples.command_line import ending_in_words
from examples.reporting.report import write_report
from examples.reporting.run_page import write_page


@dataclass(frozen=True)
class Report:
    """Compare runs, or make the page of a run again."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUNS")]
    """Folders of runs, finished or not, or folders that hold some, however deep."""

    out: Path | None = None
    """Folder for report.md and its pictures, made if it is not there; default: report, where there is a comparison."""


def main() -> None:
    asked = tyro.cli(Report, prog="python -m examples.report", description=__doc__)
    single = [folder for folder in asked.runs if (folder / "config.json").is_file()]
    with ending_in_words():
        files = [write_page(folder) for folder in single]
        if asked.out or not single or len(single) < len(asked.runs):
            files += write_report(asked.runs, asked.out or Path("report"))
    print("\n".join(map(str, files)))


if __name__ == "__main__":
    main()
