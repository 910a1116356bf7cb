"""Write the report of single runs anew: one file that holds all there is to see, to open in a browser.

    python -m examples.run_report runs/phantom/rpg_plus-n3-s0-seed0

A run writes its report.html itself, at every validation and at the end. This command makes it again from the files of
the run: after it was moved or died, or with newer code. Runs are compared by python -m examples.report.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from examples.reporting.run_page import write_page


@dataclass(frozen=True)
class RunReport:
    """Write report.html into the folder of each run."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUNS")]
    """Folders of runs, finished or not."""


def main() -> None:
    try:
        for folder in tyro.cli(RunReport, prog="python -m examples.run_report", description=__doc__).runs:
            print(write_page(folder))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
