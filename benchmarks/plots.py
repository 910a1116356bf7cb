"""Pictures from the figures that the benchmarks wrote as JSON.

    python -m benchmarks.plots benchmarks/results --out benchmarks/results/plots

One PNG per file, of the same name: bars of time and memory for the headline, lines of time for a sweep, lines of memory
for the grid.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.measure import GIB, conditions

# Okabe and Ito's colors, told apart also by the color-blind; the markers tell lines apart without any color.
STYLES = {
    "triton": ("#D55E00", "D"),
    "chunked": ("#0072B2", "o"),
    "topk": ("#E69F00", "s"),
    "numpy": ("#009E73", "^"),
    "faiss": ("#CC79A7", "v"),
    "sklearn": ("#56B4E9", "P"),
    "mm": ("#777777", "X"),
    "reference": ("#000000", "*"),
}
MIB = 2**20
WIDTH = 4.8  # inches: text of 9 points is still 9 pixels high where a phone shows it 358 wide
AXES = {
    "n": "references N",
    "m": "queries M",
    "d": "features D",
    "k": "k, % of the references",
    "sets": "label sets |S|",
}

NUMBERS = FuncFormatter(lambda value, _: number(value))

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder of JSON files; folders in it are not looked at")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures; made if it is not there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    for path in sorted(options.results.glob("*.json")):
        figures = json.loads(path.read_text())
        draw = DRAWN.get(figures.get("mode", ""))
        if draw is None:
            print(f"{path.name}: no picture for this kind of file")
            continue
        figure = draw(figures)
        figure.supxlabel(textwrap.fill(conditions(figures["environment"]), 68), fontsize=8, color="#555555")
        figure.savefig(options.out / f"{path.stem}.png", dpi=250)
        plt.close(figure)
        print(f"{path.name}: {path.stem}.png")


def draw_headline(figures: Figures) -> Figure:
    """Draw bars of median time, with the quartiles, and of peak extra memory."""
    problem = figures["problem"]
    rows = [row for row in figures["rows"] if row["problem"] == problem]
    figure, (time, memory) = plt.subplots(
        2, 1, figsize=(WIDTH, 1.6 + 0.6 * len(rows)), sharey=True, layout="constrained"
    )
    colors = [STYLES[row["route"]][0] for row in rows]
    positions = range(len(rows))
    for axes, values, notes, heading in (
        (time, [milliseconds(row) for row in rows], "note", "median time, ms"),
        (memory, [mebibytes(row) for row in rows], "peak_note", "peak extra memory, MiB"),
    ):
        present = [value for value in values if value]
        axes.set(xscale="log", title=heading)
        if present:
            # Room to the right, for the numbers.
            low, high = min(present) / 3, max(present) * 2
            axes.set_xlim(low, high * (high / low) ** 0.12)
        left = axes.get_xlim()[0]
        axes.barh(positions, [value or 0 for value in values], color=colors)
        for position, row, value in zip(positions, rows, values, strict=True):
            axes.text(
                (value or left) * 1.12,
                position,
                number(value) if value else short(row[notes]),
                va="center",
                color="black" if value else "#555555",
                style="normal" if value else "italic",
            )
        axes.xaxis.set_major_formatter(NUMBERS)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    time.set_yticks(positions, [row["caption"] for row in rows])
    time.invert_yaxis()
    title(figure, sizes(problem))
    return figure


def draw_sweep(figures: Figures) -> Figure:
    """Draw a panel per size that was varied: median time against it."""
    figure, panels = plt.subplots(3, 2, figsize=(WIDTH, 6.4), sharey=True, layout="constrained")
    for axes, (parameter, problems) in zip(panels.flat, figures["varied"].items(), strict=False):
        for route in routes(figures):
            points = [
                (along(parameter, row["problem"]), milliseconds(row))
                for problem in problems
                for row in figures["rows"]
                if row["route"] == route and row["problem"] == problem and row["seconds"]
            ]
            plot(axes, points, route)
        measured = [along(parameter, problem) for problem in problems]
        axes.set(xscale="log", yscale="log", xlabel=AXES[parameter])
        axes.set_xticks(measured, [number(value) for value in measured])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(NUMBERS)
        axes.grid(alpha=0.3)
        # The size that all other panels have.
        axes.axvline(along(parameter, figures["problem"]), color="black", alpha=0.25, linewidth=4, zorder=0)
    for axes in panels[:, 0]:
        axes.set_ylabel("median time, ms")
    panels.flat[-1].axis("off")
    panels.flat[-1].legend(handles=legend_handles(figures), loc="center", frameon=False)
    title(figure, f"One size varied at a time around the gray line: {sizes(figures['problem'])}")
    return figure


def draw_grid(figures: Figures) -> Figure:
    """Draw peak extra memory against the images in the pool: a row for one image's queries, one for a batch's."""
    pixels, budget = figures["pixels"], figures["budget_bytes"]
    queries = [figures["problem"]["m"], figures["batch"]]
    shares = sorted({row["problem"]["k"] / row["problem"]["n"] for row in figures["rows"]})
    figure, panels = plt.subplots(
        len(shares), 2, figsize=(WIDTH, 1.5 * len(shares) + 1.8), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for down, m in zip(panels.T, queries, strict=True):
        for axes, share in zip(down, shares, strict=True):
            for route in routes(figures):
                rows = [
                    row
                    for row in figures["rows"]
                    if row["route"] == route
                    and row["problem"]["m"] == m
                    and row["problem"]["k"] == round(share * row["problem"]["n"])
                ]
                plot(axes, [(row["problem"]["n"] / pixels, mebibytes(row)) for row in rows if mebibytes(row)], route)
                # No figure for want of memory: a hollow marker at the upper edge.
                missing = [row["problem"]["n"] / pixels for row in rows if re.search("memory|needs", row["peak_note"])]
                color, marker = STYLES[route]
                edge = axes.get_xaxis_transform()
                axes.plot(missing, [0.96] * len(missing), marker, color=color, fillstyle="none", transform=edge)
            axes.axhline(budget / MIB, color="black", linestyle="--", linewidth=1)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(NUMBERS)
            axes.grid(alpha=0.3)
            axes.set_title(f"k = {share:.0%}, {m:,} queries", fontsize=9)
    figure.supylabel("peak extra memory, MiB", fontsize=9)
    images = sorted({row["problem"]["n"] // pixels for row in figures["rows"]})
    for axes in panels[-1]:
        axes.set_xticks(images)
        axes.set_xlabel("images in the pool")
    handles = legend_handles(figures)
    handles.append(Line2D([], [], color="black", linestyle="--", label=f"{budget / GIB:g} GiB"))
    if any(re.search("memory|needs", row["peak_note"]) for row in figures["rows"]):
        handles.append(
            Line2D([], [], color="black", marker="o", fillstyle="none", linestyle="", label="too little memory here")
        )
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


DRAWN: dict[str, Callable[[Figures], Figure]] = {"headline": draw_headline, "sweep": draw_sweep, "grid": draw_grid}


def title(figure: Figure, text: str) -> None:
    figure.suptitle(textwrap.fill(text, 56), fontsize=9)


def routes(figures: Figures) -> list[str]:
    """Return those with any figure, in the order of the table."""
    return list(dict.fromkeys(row["route"] for row in figures["rows"] if row["seconds"] or row["peak_extra_bytes"]))


def along(parameter: str, problem: dict[str, Any]) -> float:
    return float(round(100 * problem["k"] / problem["n"]) if parameter == "k" else problem[parameter])


def plot(axes: Axes, points: list[tuple[float, float | None]], route: str) -> None:
    color, marker = STYLES[route]
    axes.plot(
        *zip(*points, strict=True) if points else ([], []), color=color, marker=marker, markersize=5, linewidth=1.5
    )


def legend_handles(figures: Figures) -> list[Line2D]:
    captions = {row["route"]: row["caption"] for row in figures["rows"]}
    return [
        Line2D([], [], color=STYLES[name][0], marker=STYLES[name][1], markersize=5, label=captions[name])
        for name in routes(figures)
    ]


def milliseconds(row: dict[str, Any]) -> float | None:
    return row["quartiles"][1] * 1e3 if row["seconds"] else None


def mebibytes(row: dict[str, Any]) -> float | None:
    return row["peak_extra_bytes"] / MIB if row["peak_extra_bytes"] else None


def number(value: float) -> str:
    """Three digits, no exponents."""
    if value >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def short(note: str) -> str:
    return note if len(note) <= 30 else f"{note[:28]}…"


def sizes(problem: dict[str, Any]) -> str:
    return (
        f"M {problem['m']:,}, N {problem['n']:,}, D {problem['d']}, k {problem['k']:,}, {problem['sets']} label sets, "
        f"{problem['dtype']}"
    )


if __name__ == "__main__":
    main()
