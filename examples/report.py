"""Tables, plots and pictures from the results of any number of runs, beside the paper's numbers.

    python -m examples.report runs --out report
    python -m examples.report benchmarks/results/jsrt --out report

Reads result.json files, the pictures that they name, and the files of benchmarks.label_study; report.md comes first.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import tyro

from examples.config import defaults
from examples.reporting import figures, label_studies, options, tables
from examples.reporting.results import Run, Section, read_results, sections


@dataclass(frozen=True)
class Report:
    """Compare runs."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUNS")]
    """Folders, searched with all folders in them."""

    out: Path
    """Folder for report.md and its pictures; made if it is not there."""


def write_report(folders: Sequence[Path], out: Path) -> list[Path]:
    """Writes report.md and its pictures.

    Returns:
        The files, report.md first.

    Raises:
        FileNotFoundError: there is no result.
    """
    runs, warnings = read_results(folders)
    parts = sections(runs)
    out.mkdir(parents=True, exist_ok=True)
    text = [
        "# Results",
        f"{len(runs)} run{'s' * (len(runs) != 1)}, by `python -m examples.report`. A section compares runs on one data "
        "set in one setting.",
        tables.LEGEND,
        *(f"- **{kind}**: {rest}" for kind, _, rest in (line.partition(": ") for line in warnings)),
    ]
    if not any(run.pooled for run in runs):
        text.append("Table 5: no runs")
    files = []
    for number, section in enumerate(parts, start=1):
        name = f"{number}-{section.dataset}"
        body, pictures = section_text(section, name, out)
        text += [f"## {heading(section)}", *body]
        files += pictures
    if studies := label_studies.read_label_studies(folders):
        text += ["## Pseudo-labels beside predictions", label_studies.CAPTION]
        text += [label_studies.label_study_table(content) for _, content in studies]
    text += ["## All runs", tables.runs_table(runs)]
    # A list is one block: no empty lines between its items.
    (out / "report.md").write_text(re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", "\n\n".join(text)) + "\n")
    for warning in warnings:
        print(warning, file=sys.stderr)
    return [out / "report.md", *files]


def section_text(section: Section, name: str, out: Path) -> tuple[list[str], list[Path]]:
    """The blocks of a section, and the pictures drawn for it."""
    text = [*cautions(section), tables.usual_options(section)]
    text += [
        tables.methods_table(section),
        tables.pool_size_table(section),
        tables.neighbors_table(section),
        tables.classes_table(section),
        options.studies_table(section),
        options.pseudo_labels_table(section),
        options.images_table(section),
    ]
    files = []
    for kind, (caption, draw) in figures.FIGURES.items():
        path = out / f"{name}-{kind}.png"
        path.unlink(missing_ok=True)  # an earlier report may have had a reason to draw it
        with plt.rc_context(figures.LOOK):
            lacking = draw(section, path)
        if lacking:
            text.append(f"{caption}: {lacking}")
        else:
            text.append(f"![{caption}]({path.name})\n\n*{caption}.*")
            files.append(path)
    return text, files


def heading(section: Section) -> str:
    setting = section.setting
    channels = setting.get("base_channels")
    parts = [f"{setting['image_size']} px", f"{channels} base channels" if channels else "network not recorded"]
    parts.append(f"{setting['iterations']} iterations")
    return f"{section.dataset}: {', '.join(parts)}"


def cautions(section: Section) -> list[str]:
    """What a reader has to know before comparing the runs of a section."""
    usual = defaults(section.dataset)
    named = {"image_size", "base_channels", "iterations"}
    others = {name: value for name, value in section.setting.items() if name not in named}
    unusual = [f"{name} {value}" for name, value in others.items() if value != usual.get(name)]
    lines = [f"Other options than the defaults: {', '.join(unusual)}."] if unusual else []
    if not others:
        lines.append("- **warning**: written before results held their options; only what they hold was compared")
    dirty = [run for run in section.runs if str(run.commit).endswith("-dirty")]
    if dirty:
        lines.append(
            f"- **warning**: {several(dirty)} of uncommitted code (commit ends in -dirty): {names(dirty)}; "
            "it cannot be checked out again"
        )
    # What was found comes first; how it was divided, which a split decides, after a semicolon.
    data = sorted({str(run.data).partition(";")[0] for run in section.runs})
    if len(data) > 1:
        lines.append(f"- **warning**: the runs compared are not of the same data: {'; '.join(data)}")
    commits = {tables.short_commit(run.commit) for run in section.runs}
    if len(commits) > 1:
        lines.append(f"- note: the runs are of {len(commits)} commits: {', '.join(sorted(commits))}")
    return lines


def several(runs: Sequence[Run]) -> str:
    return "1 run is" if len(runs) == 1 else f"{len(runs)} runs are"


def names(runs: Sequence[Run], most: int = 5) -> str:
    return ", ".join(f"`{run.path}`" for run in runs[:most]) + (", …" if len(runs) > most else "")


def main() -> None:
    asked = tyro.cli(Report, prog="python -m examples.report", description=__doc__)
    try:
        files = write_report(asked.runs, asked.out)
    except OSError as error:
        sys.exit(f"error: {error}")
    print("\n".join(map(str, files)))


if __name__ == "__main__":
    main()
