"""report.md: runs beside each other, in tables, plots and pictures; a section compares those of one setting."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from examples.config import defaults
from examples.engine.checkpoint import make_folder
from examples.reporting import figures, label_studies, options, plotting, tables
from examples.reporting.results import Run, Section, read_results, sections


def write_report(folders: Sequence[Path], out: Path) -> list[Path]:
    """Write report.md and its pictures, and return the files, that first."""
    runs, warnings = read_results(folders)
    make_folder(out)
    text = [
        "# Results",
        f"{len(runs)} run{'s' * (len(runs) != 1)}, by `python -m examples.report`. A section compares runs on one data "
        "set in one setting.",
        tables.LEGEND,
        *(f"- **{kind}**: {rest}" for kind, _, rest in (line.partition(": ") for line in warnings)),
    ]
    files = []
    for number, section in enumerate(sections(runs), start=1):
        body, pictures = section_text(section, f"{number}-{section.dataset}", out)
        text += [f"## {heading(section)}", *body]
        files += pictures
    if studies := label_studies.read_label_studies(folders):
        text += ["## Pseudo-labels beside predictions", label_studies.CAPTION]
        text += [label_studies.label_study_table(content) for _, content in studies]
        picture = out / "reliability.png"
        picture.unlink(missing_ok=True)  # an earlier report may have had a reason to draw it
        with plt.rc_context(plotting.LOOK):
            if label_studies.draw_reliability([content for _, content in studies], picture):
                text.append(f"![{label_studies.RELIABILITY}]({picture.name})\n\n*{label_studies.RELIABILITY}.*")
                files.append(picture)
    text += ["## All runs", tables.runs_table(runs)]
    # A list is one block: no empty lines between its items.
    (out / "report.md").write_text(re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", "\n\n".join(text)) + "\n")
    for warning in warnings:
        print(warning, file=sys.stderr)
    return [out / "report.md", *files]


def section_text(section: Section, name: str, out: Path) -> tuple[list[str], list[Path]]:
    """Return the blocks of a section, of what there is to show, and the pictures drawn for it."""
    made = (
        tables.methods_table(section),
        tables.pool_size_table(section),
        tables.neighbors_table(section),
        tables.classes_table(section),
        options.studies_table(section),
        options.pseudo_labels_table(section),
        options.images_table(section),
    )
    text = [*cautions(section), tables.usual_options(section), *filter(None, made)]
    files = []
    for kind, (caption, draw) in figures.FIGURES.items():
        path = out / f"{name}-{kind}.png"
        path.unlink(missing_ok=True)  # an earlier report may have had a reason to draw it
        with plt.rc_context(plotting.LOOK):
            drawn = draw(section, path)
        if drawn:
            text.append(f"![{caption}]({path.name})\n\n*{caption}.*")
            files.append(path)
    return text, files


def heading(section: Section) -> str:
    size, channels = section.setting["image_size"], section.setting["base_channels"]
    network = section.setting["network"]
    named = "" if network == defaults(section.dataset)["network"] else f"{tables.as_text(str(network))}, "
    setting = f"{section.dataset}: {named}{size} px, {channels} base channels, {section.length} iterations"
    usual = defaults(section.dataset)
    return ", ".join(
        [setting]
        + [
            f"{name} {tables.as_text(str(value))}"
            for name, value in section.setting.items()
            if name not in ("image_size", "base_channels", "network", "group_pattern", "data")
            and value != usual.get(name)
        ]
    )


def cautions(section: Section) -> list[str]:
    """Say what a reader has to know before comparing the runs of a section."""
    # Long, and the same for all runs on a data set: a line below the heading, which names all other options.
    pattern = section.setting["group_pattern"]
    lines = [tables.as_text(f"{section.setting['data']}.")] if "data" in section.setting else []
    lines += [f"Images are divided by group_pattern {tables.as_code(str(pattern))}."] if pattern else []
    dirty = [run for run in section.runs if str(run.commit).endswith("-dirty")]
    if dirty:
        lines.append(
            f"- **warning**: {several(dirty)} of uncommitted code (commit ends in -dirty): {names(dirty)}; "
            "it cannot be checked out again"
        )
    data = sorted({run.found for run in section.runs})
    if len(data) > 1:
        lines.append(f"- **warning**: the runs compared are not of the same data: {tables.as_text('; '.join(data))}")
    elif other := otherwise_divided(section.runs):
        lines.append(
            "- **warning**: the runs compared are not of the same data: of equal labeled and split, but not of the same"
            f" images and masks as the first, {'is' if len(other) == 1 else 'are'} {names(other)}"
        )
    if longer := [run for run in section.runs if run.other_length]:
        lines.append(
            f"- note: {several(longer)} of another length, which the tables name: {names(longer)}; compare with care"
        )
    commits = {tables.short_commit(run.commit) for run in section.runs}
    if len(commits) > 1:
        lines.append(f"- note: the runs are of {len(commits)} commits: {', '.join(sorted(commits))}")
    return lines


def otherwise_divided(runs: Sequence[Run]) -> list[Run]:
    """Return the runs whose images or masks are not those of the first with as many labeled images and that split."""
    first: dict[tuple[int, int], dict[str, str]] = {}
    known = [(run, run.digests) for run in runs if run.digests]
    return [run for run, digests in known if first.setdefault((run.labeled, run.split), digests) != digests]


def several(runs: Sequence[Run]) -> str:
    return "1 run is" if len(runs) == 1 else f"{len(runs)} runs are"


def names(runs: Sequence[Run], most: int = 5) -> str:
    return ", ".join(tables.as_code(str(run.path)) for run in runs[:most]) + (", …" if len(runs) > most else "")
