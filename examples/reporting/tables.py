"""The tables of a section, as Markdown, with the paper's numbers beside ours."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from examples.config import defaults
from examples.reporting import paper
from examples.reporting.results import Mean, Row, Run, Section, by, decimals

MISSING = "–"  # noqa: RUF001
LEGEND = (
    "In the tables: mean ± standard deviation over splits and seeds, in brackets the number of runs; **best**, "
    f"<ins>second</ins>; \\* trained twice as long; {MISSING} not run."
)


def methods_table(section: Section) -> str:
    """Make Tables 1 and 5: methods by number of labeled images."""
    rows, labeled = section.rows(), section.labeled
    number = 5 if any(run.pooled for run in section.runs) or section.dataset == "retouch" else 1
    published = paper.MIOU.get(section.dataset)
    figures = {(row, n): Mean.of(run.score for run in section.main if (run.row, run.labeled) == (row, n))
               for row in rows for n in labeled}  # fmt: skip
    header, columns = ["method"], [[label(row) for row in rows]]
    for n in labeled:
        header.append(f"N_l = {n}")
        columns.append(ranked([(figures[row, n], "*" if row.double else "") for row in rows]))
        if published and n in paper.LABELED:
            header.append("paper")
            place = paper.LABELED.index(n)
            columns.append(
                [beside(row, rows, published.get((row.method, row.threshold), [""] * 4)[place]) for row in rows]
            )
    score = "IoU pooled over images" if number == 5 else "IoU per image"
    caption = f"**Table {number}.** {score}, mean over classes.{paper_caption(section)}"
    if published:
        caption += f" Full access in the paper: {paper.FULL_ACCESS[section.dataset]}."
    return f"{caption}\n\n{markdown(header, list(zip(*columns, strict=True)))}"


def pool_size_table(section: Section) -> str | None:
    """Make Table 2: nearest neighbors by the number of images in the pool; None without runs that differ in it."""
    found = {n: section.varying("nearest_neighbor", ("pool_size",), n) for n in section.labeled}
    found = {n: runs for n, runs in found.items() if runs}
    compared = section.dataset == "jsrt" and 3 in found
    sizes = {run.option("pool_size") for runs in found.values() for run in runs}
    if len(sizes) < 2:
        return None
    columns = sorted(sizes | set(paper.POOL_SIZE)) if compared else sorted(sizes)
    rows = []
    for n, runs in found.items():
        if len({run.option("pool_size") for run in runs}) == 1:
            continue  # in Table 1
        grouped = by(runs, lambda run: run.option("pool_size"))
        rows.append([f"N_l = {n}", *ranked([(mean_score(grouped.get(size)), "") for size in columns])])
        if compared and n == 3:
            rows.append(["N_l = 3, paper", *(paper.POOL_SIZE.get(size, "") for size in columns)])
    caption = f"**Table 2.** `nearest_neighbor` by pool size p.{paper_caption(section) if compared else ''}"
    return f"{caption}\n\n{markdown(['', *(f'p = {size}' for size in columns)], rows)}"


def neighbors_table(section: Section) -> str | None:
    """Make Table 3: rpg by share of neighbors and pool size; None without runs that differ in them."""
    labeled, runs = section.study("rpg", ("k", "pool_size"))
    grouped = by(runs, lambda run: (run.option("pool_size"), run.option("k")))
    if len(grouped) < 2:
        return None
    compared = section.dataset == "jsrt" and labeled == 3
    shares = sorted({k for _, k in grouped} | (set(paper.NEIGHBOR_SHARES) if compared else set()))
    sizes = sorted({size for size, _ in grouped} | (set(paper.NEIGHBORS_BY_POOL) if compared else set()))
    cells = iter(ranked([(mean_score(grouped.get((size, k))), "") for size in sizes for k in shares]))
    rows = []
    for size in sizes:
        row = [f"p = {size}"]
        published = dict(zip(paper.NEIGHBOR_SHARES, paper.NEIGHBORS_BY_POOL.get(size, ()), strict=False))
        for k in shares:
            row.append(next(cells))
            if compared and k in paper.NEIGHBOR_SHARES:
                row.append(published.get(k, ""))
        rows.append(row)
    header = [""]
    for k in shares:
        header += [f"k = {percent(k)}"] + (["paper"] if compared and k in paper.NEIGHBOR_SHARES else [])
    caption = (
        f"**Table 3.** `rpg` by pool size p and share k of the references, N_l = {labeled}."
        f"{paper_caption(section) + ' OOM: more than their card held.' if compared else ''}"
    )
    return f"{caption}\n\n{markdown(header, rows)}"


def classes_table(section: Section) -> str | None:
    """Make Table 4: IoU of every class, at the smallest number of labeled images; None without classes."""
    labeled = section.labeled[0]
    runs = [run for run in section.main if run.labeled == labeled]
    classes = list(dict.fromkeys(name for run in runs for name in run.iou_per_class))
    if not classes:
        return None
    compared = section.dataset == "jsrt" and labeled == 3 and set(classes) == set(paper.CLASSES)
    rows = [row for row in section.rows() if any(run.row == row for run in runs)]
    columns = [
        ranked(
            [(Mean.of(run.iou_per_class.get(name) for run in runs if run.row == row), "*" * row.double) for row in rows]
        )
        for name in classes
    ]
    lines = []
    for row, values in zip(rows, zip(*columns, strict=True), strict=True):
        lines.append([label(row), *values])
        published = paper.IOU_PER_CLASS.get((row.method, row.threshold)) if compared else None
        if published:
            by_class = dict(zip(paper.CLASSES, published, strict=True))
            theirs = [beside(row, rows, by_class[name]) for name in classes]
            if any(theirs):
                lines.append(["paper", *theirs])
    caption = f"**Table 4.** IoU by class, N_l = {labeled}.{paper_caption(section) if compared else ''}"
    return f"{caption}\n\n{markdown(['method', *map(class_name, classes)], lines)}"


def usual_options(section: Section) -> str:
    """Say which options the tables of methods stand for, as far as they are not the trainer's defaults."""
    default = defaults(section.dataset) | {"iterations": section.length}
    default["k"] = round(default["k"], 3)  # as those of a run are
    lines = []
    for method, options in section.usual.items():
        if others := [f"{name} {shown(name, value)}" for name, value in options if value != default[name]]:
            lines.append(f"`{method}` " + ", ".join(others))
    return "Usual options: " + "; ".join(lines or ["the defaults"]) + "."


def runs_table(runs: Sequence[Run]) -> str:
    """List every run, with what it ran on."""
    rows = [
        [
            as_text(run.dataset), label(run.row), str(run.labeled), str(run.split), str(run.seed),
            str(run.iterations), decimals(run.score), f"{run.seconds:.0f}" if run.seconds else "?",
            short_commit(run.commit), as_text(run.device or "?"), as_text(run.data or "?"), as_code(str(run.path)),
        ]
        for run in runs
    ]  # fmt: skip
    columns = "data set, method, N_l, split, seed, steps, mIoU, seconds, commit, device, data, file"
    return markdown(columns.split(", "), rows)


def paper_caption(section: Section) -> str:
    """Say how far the paper's setting is from ours."""
    if section.dataset not in paper.MIOU:
        return ""
    size, channels = section.setting["image_size"], section.setting["base_channels"]
    if size == paper.SIZE and channels == paper.CHANNELS:
        return " The paper's numbers are at the same image size and with the same network."
    return (
        f" The paper's numbers are at {paper.SIZE} px with its full network ({paper.CHANNELS} base channels), ours at "
        f"{size} px and {channels} base channels: compare the order, not the figures."
    )


def beside(row: Row, rows: Sequence[Row], published: str) -> str:
    """Return the paper's number where it belongs: that of a run of double length in such a row, if there is one."""
    if row.steps:
        return ""
    starred = published.endswith("*") and Row(row.method, row.threshold, double=True) in rows
    return published.replace("*", "\\*") if starred == row.double else ""


def paired(before: Sequence[Run], after: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Pair runs on the same split with the same seed (and threshold)."""
    first = {(run.split, run.seed, run.row.threshold): run for run in before}
    return [(first[key], run) for run in after if (key := (run.split, run.seed, run.row.threshold)) in first]


def label(row: Row) -> str:
    return f"`{row.method}`" + row.name.removeprefix(row.method).replace("*", "\\*")


def mean_score(runs: Sequence[Run] | None) -> Mean | None:
    return Mean.of(run.score for run in runs or ())


def ranked(figures: Sequence[tuple[Mean | None, str]]) -> list[str]:
    """Make cells with a suffix; what is best and second as printed is marked, where there is something to compare."""
    printed = sorted({round(figure.mean, 3) for figure, _ in figures if figure}, reverse=True)
    marks: Mapping[float, str] = {}
    if len(printed) > 1:
        marks = {printed[0]: "**", printed[1]: "u"}
    return [cell(figure, suffix, mark=marks.get(round(figure.mean, 3), "") if figure else "")
            for figure, suffix in figures]  # fmt: skip


def cell(figure: Mean | None, suffix: str = "", mark: str = "", sign: bool = False) -> str:
    if figure is None:
        return MISSING
    mean = round(figure.mean, 3) + 0.0  # which makes 0.0 of -0.0
    value = ("+" if sign and mean >= 0 else "") + decimals(mean) + suffix.replace("*", "\\*")
    value = {"**": f"**{value}**", "u": f"<ins>{value}</ins>", "": value}[mark]
    spread = f" ± {decimals(figure.sd)}" if figure.sd is not None else ""
    return f"{value}{spread} <small>({figure.runs})</small>"


def shown(option: str, value: Any) -> str:
    return percent(value) if option == "k" else as_text(str(value))


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def short_commit(commit: str | None) -> str:
    if not commit:
        return "?"
    name, dirty, _ = commit.partition("-dirty")
    return name[:7] + dirty


def class_name(name: str) -> str:
    return as_text(name.replace("_", " "))


def as_text(words: str) -> str:
    """Escape any text so that Markdown shows it as it is, on one line."""
    return html.escape(re.sub(r"([\\`*_\[\]])", r"\\\1", " ".join(words.split())), quote=False)


def as_code(words: str) -> str:
    """Set any text as code, in which Markdown knows nothing but its end."""
    return f"`{' '.join(words.split()).replace('`', chr(39))}`"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Make a table whose first columns hold words, set left, and the others figures, set right."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
