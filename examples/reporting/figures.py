"""The plots and the picture grid of a section; each says whether there was anything to draw."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from examples.config import ABLATIONS
from examples.reporting.options import changes
from examples.reporting.plotting import (
    WIDTH,
    Line,
    class_title,
    dashes,
    label_lines,
    mean_curve,
    not_too_close,
    save,
    style,
)
from examples.reporting.results import Mean, Row, Run, Section, by, mean_over_classes, ordered
from examples.reporting.tables import shown

PANELS = 6  # classes drawn side by side

Value = Callable[[dict[str, Any]], float | None]  # of a point of a run's history


def draw_study(section: Section, path: Path, option: str, label: str, scale: float) -> bool:
    """Draw score, precision and weight of the pseudo-labels against an option: a point per run, a line of means."""
    studies = {}
    for method in section.methods:
        labeled, runs = section.study(method, (option,))
        if len({run.option(option) for run in runs}) > 1:
            studies[method, labeled] = runs
    if not studies:
        return False
    figure, panels = plt.subplots(3, 1, figsize=(WIDTH, 6.6), layout="constrained")
    for axes, (title, measure) in zip(panels, MEASURES.items(), strict=True):
        lines: list[Line] = []
        for (method, _), runs in studies.items():
            grouped = {
                scale * value: [y for run in members if (y := measure(run)) is not None]
                for value, members in by(runs, lambda run: run.option(option)).items()
            }
            color, marker = style(method)
            for x, values in grouped.items():
                axes.plot([x] * len(values), values, marker, color=color, alpha=0.35, markersize=4, linewidth=0)
            means = {x: statistics.fmean(values) for x, values in grouped.items() if values}
            if means:
                axes.plot(list(means), list(means.values()), color=color, linewidth=1.8)
                lines.append((method, color, list(means), list(means.values())))
        ticks = sorted({scale * run.option(option) for runs in studies.values() for run in runs})
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.set_title(title)
        not_too_close(axes)
        if not lines:
            axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes, color="#555555")
        label_lines(axes, lines)
    panels[-1].set_xlabel(label)
    counts = "; ".join(f"{method}: N_l = {labeled}" for method, labeled in studies)
    save(figure, path, f"{section.dataset}, {counts}; points: splits and seeds, line: mean")
    return True


def draw_learning(section: Section, path: Path) -> bool:
    """Draw the score over the number of labeled images, with a band of a standard deviation."""
    if len(section.labeled) < 2:
        return False
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    lines: list[Line] = []
    for row in section.rows():
        grouped = by(of(section, row), lambda run: run.labeled)
        points = {n: point for n, runs in grouped.items() if (point := Mean.of(run.score for run in runs))}
        if not points:
            continue
        means = [point.mean for point in points.values()]
        spread = [point.sd or 0 for point in points.values()]
        color, marker = style(row.method)
        axes.plot(list(points), means, color=color, marker=marker, markersize=5, linestyle=dashes(row))
        low, high = ([mean + sign * sd for mean, sd in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(list(points), low, high, color=color, alpha=0.12, linewidth=0)
        lines.append((row.name, color, list(points), means))
    axes.set(xscale="log", xlabel="labeled images N_l", ylabel="mean IoU")
    axes.set_xticks(section.labeled, [str(n) for n in section.labeled])
    axes.xaxis.set_minor_locator(NullLocator())
    label_lines(axes, lines)
    save(figure, path, f"{section.dataset}; line: mean over splits and seeds, band: ± standard deviation")
    return True


def draw_validation(section: Section, path: Path) -> bool:
    """Draw the validation score over training, at the smallest number of labeled images, if it was taken twice."""
    rows = at_fewest(section)
    if not any(len(curve) > 1 for runs in rows.values() for curve in curves(runs, validation_score)):
        return False
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
    lines: list[Line] = []
    for row, runs in rows.items():
        color, marker = style(row.method)
        line = draw_mean(axes, row.name, runs, validation_score, color, marker=marker, linewidth=1.8, style=dashes(row))
        for curve in curves(runs, validation_score) if line and len(runs) > 1 else ():
            axes.plot(*zip(*curve, strict=True) if curve else ([], []), color=color, alpha=0.25, linewidth=0.7)
        lines += line
    if not lines:
        plt.close(figure)
        return False
    axes.set(xlabel="step", ylabel="validation mIoU")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    label_lines(axes, lines)
    save(figure, path, f"{section.dataset}, N_l = {section.labeled[0]}; thin lines: single runs, thick: mean")
    return True


def curves(runs: Sequence[Run], value: Value) -> list[list[tuple[float, float]]]:
    """Return step and value over the history of every run."""
    return [[(point["step"], y) for point in run.history or () if (y := value(point)) is not None] for run in runs]


def draw_mean(
    axes: Axes, name: str, runs: Sequence[Run], value: Value, color: str, *, linewidth: float, style: str = "-",
    marker: str = "",
) -> list[Line]:  # fmt: skip
    """Draw the mean over runs of what their history holds, with a marker where it is a single point; none, no line."""
    line = mean_curve(curves(runs, value))
    if not line:
        return []
    xs, ys = zip(*line, strict=True)
    marker = marker if len(xs) == 1 else ""
    axes.plot(xs, ys, color=color, marker=marker, linewidth=linewidth, linestyle=style, label=name)
    return [(name, color, xs, ys)]


def draw_pseudo_labels(section: Section, path: Path) -> bool:
    """Draw weight and precision of the pseudo-labels over training, a row of panels per class."""
    runs_of = at_fewest(section)
    classes = list(dict.fromkeys(
        name for runs in runs_of.values() for run in runs for point in run.history or ()
        for name in point.get("pseudo_label_weight") or ()
    ))  # fmt: skip
    if not classes:
        return False
    drawn = classes if len(classes) <= PANELS else [*classes[: PANELS - 1], classes[-1]]
    figure, panels = plt.subplots(
        len(drawn), 2, figsize=(WIDTH, 1.2 * len(drawn) + 1.4), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for down, key in zip(panels.T, ("pseudo_label_weight", "pseudo_label_precision"), strict=True):
        for axes, name in zip(down, drawn, strict=True):
            for row, runs in runs_of.items():
                value = partial(of_class, key=key, name=name)
                draw_mean(axes, row.name, runs, value, style(row.method)[0], linewidth=1.4, style=dashes(row))
            axes.set_ylim(-0.02, 1.02)
            axes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    for axes, name in zip(panels[:, 0], drawn, strict=True):
        axes.set_ylabel(class_title(name))
    for axes, title in zip(panels[0], ("mean weight", "precision"), strict=True):
        axes.set_title(title)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
    figure.legend(lines.values(), lines, loc="outside upper center", ncols=3, frameon=False)
    left_out = f"; {len(classes) - len(drawn)} of {len(classes)} classes not drawn" if len(classes) > len(drawn) else ""
    save(figure, path, f"{section.dataset}, N_l = {section.labeled[0]}; mean over splits and seeds{left_out}")
    return True


def of_class(point: dict[str, Any], key: str, name: str) -> float | None:
    return (point.get(key) or {}).get(name)


def draw_options_over_training(section: Section, path: Path, options: Sequence[str]) -> bool:
    """Draw weight, precision of rpg's pseudo-labels and validation score over training, a line per value."""
    found = [
        change
        for change in changes(section)
        if (change.method, change.labeled) == ("rpg", section.labeled[0])
        and change.option in options
        and not change.others
    ]
    if not found:
        return False
    runs_of = {"usual": found[0].before[1]}
    for change in found:
        runs_of[f"{change.option} {shown(change.option, change.after[0])}"] = change.after[1]
    figure, panels = plt.subplots(3, 1, figsize=(WIDTH, 6.6), layout="constrained")
    for axes, (title, value) in zip(panels, OVER_TRAINING.items(), strict=True):
        lines: list[Line] = []
        for number, (name, runs) in enumerate(runs_of.items()):
            color, width = ("#000000", 2) if name == "usual" else (f"C{number - 1}", 1.2)
            lines += draw_mean(axes, name, runs, value, color, linewidth=width)
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        label_lines(axes, lines, size=8)
    panels[-1].set_xlabel("step")
    what = f"usual: k {shown('k', found[0].before[0])}" if options == ("k",) else "usual but for one option"
    save(figure, path, f"{section.dataset}, rpg, N_l = {section.labeled[0]}; {what}; mean over splits and seeds")
    return True


def validation_score(point: dict[str, Any]) -> float | None:
    return point.get("miou")


OVER_TRAINING: dict[str, Value] = {
    "mean weight": lambda point: mean_over_classes(point.get("pseudo_label_weight")),
    "pseudo-label precision": lambda point: mean_over_classes(point.get("pseudo_label_precision")),
    "validation mIoU": validation_score,
}


def draw_pictures(section: Section, path: Path) -> bool:
    """Draw rows of test images; columns: the image, a prediction of each method, the truth."""
    chosen = {}
    for method in ordered({run.method for run in section.main}):
        runs = [run for run in section.main if run.method == method and pictures(run)]
        if runs:
            chosen[method] = min(runs, key=lambda run: (run.labeled, run.split, run.seed, -(run.row.threshold or 0)))
    shared = [name for name in next(iter(map(pictures, chosen.values())), {})
              if all(name in pictures(run) for run in chosen.values())]  # fmt: skip
    if not shared:
        return False
    first = next(iter(chosen.values()))
    titles = ["image", *(f"{run.row.name}\n{run.score:.3f}" for run in chosen.values()), "truth"]
    size = (1.35 * len(titles), 1.35 * len(shared) + 0.8)
    figure, panels = plt.subplots(len(shared), len(titles), figsize=size, squeeze=False, layout="constrained")
    for across, name in zip(panels, shared, strict=True):
        files = [pictures(first)[name]["image"], *(pictures(run)[name]["prediction"] for run in chosen.values())]
        for axes, file in zip(across, [*files, pictures(first)[name]["truth"]], strict=True):
            axes.imshow(plt.imread(file))
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set_visible(False)
        across[0].set_ylabel(name, fontsize=8)
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=8)
    of_which = sorted({f"N_l = {run.labeled}, split {run.split}, seed {run.seed}" for run in chosen.values()})
    save(figure, path, f"{section.dataset}; {'; '.join(of_which)}; below a name: its test mIoU")
    return True


def pictures(run: Run) -> dict[str, dict[str, Path]]:
    """Return the pictures of a run that are all there, by image."""
    files = {
        name: {kind: run.path.parent / file for kind, file in kinds.items()}
        for name, kinds in (run.pictures or {}).items()
    }
    return {
        name: kinds
        for name, kinds in files.items()
        if kinds.keys() >= {"image", "truth", "prediction"} and all(file.is_file() for file in kinds.values())
    }


FIGURES: dict[str, tuple[str, Callable[[Section, Path], bool]]] = {
    "learning": ("Score over the number of labeled images", draw_learning),
    "validation": ("Validation mIoU over training", draw_validation),
    "pool-size": ("Pool-size study", partial(draw_study, option="pool_size", label="pool size p", scale=1)),
    "k": ("Study of k", partial(draw_study, option="k", label="k, % of the references", scale=100)),
    "pseudo-labels": ("Weight and precision of pseudo-labels over training", draw_pseudo_labels),
    "k-over-training": (
        "Pseudo-labels of rpg over training, by k",
        partial(draw_options_over_training, options=("k",)),
    ),
    "options-over-training": (
        "Pseudo-labels of rpg over training, by other options",
        partial(draw_options_over_training, options=[name for name in ABLATIONS if name != "k"]),
    ),
    "pictures": ("Test images (the paper's figures 3 to 5)", draw_pictures),
}
MEASURES: dict[str, Callable[[Run], float | None]] = {
    "test mIoU": lambda run: run.score,
    "pseudo-label precision": lambda run: run.mean_over_classes("pseudo_label_precision"),
    "mean weight": lambda run: run.mean_over_classes("pseudo_label_weight"),
}


def of(section: Section, row: Row) -> list[Run]:
    return [run for run in section.main if run.row == row]


def at_fewest(section: Section) -> dict[Row, list[Run]]:
    """Return the runs of every row at the smallest number of labeled images, where methods differ most.

    Those of unusual length only where there are no others: longer ones would squeeze the lines of all others.
    """
    found = {row: [run for run in of(section, row) if run.labeled == section.labeled[0]] for row in section.rows()}
    return {
        row: runs
        for row, runs in found.items()
        if runs and (row.usual_length or not found.get(Row(row.method, row.threshold)))
    }
