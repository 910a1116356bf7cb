"""The plots and the picture grid of a section; each returns why there is none, or nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from examples.reporting.options import changes
from examples.reporting.results import ABLATIONS, Mean, Row, Run, Section, by, mean_over_classes, ordered
from examples.reporting.tables import shown

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# Okabe and Ito's colours (the yellow darkened, to be read on white); markers tell lines apart without any colour.
STYLES = {
    "supervised": ("#777777", "o"),
    "pseudolabel": ("#E69F00", "s"),
    "nearest_neighbor": ("#009E73", "^"),
    "fixmatch": ("#56B4E9", "v"),
    "iic": ("#A08C00", "P"),
    "mean_teacher": ("#CC79A7", "X"),
    "mlds": ("#000000", "*"),
    "rpg": ("#0072B2", "D"),
    "rpg_plus": ("#D55E00", "o"),
    "rpg_best": ("#7A2182", "d"),
}
OTHER_STYLE = ("#000000", ".")
WIDTH = 8.0  # inches
LEAST_SPAN = 0.05  # of an axis of IoU, precision or weight
PANELS = 6  # classes drawn side by side
LOOK: dict[RcKeyType, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}

Line = tuple[str, str, Sequence[float], Sequence[float]]  # name, colour, x and y


def draw_pool_size(section: Section, path: Path) -> str | None:
    return draw_study(section, path, "pool_size", "pool size p", 1)


def draw_k(section: Section, path: Path) -> str | None:
    return draw_study(section, path, "k", "k, % of the references", 100)


def draw_study(section: Section, path: Path, option: str, label: str, scale: float) -> str | None:
    """Score, precision and weight of the pseudo-labels against an option; a point per run, a line through the means."""
    studies = {}
    for method in section.methods:
        labeled, runs = section.study(method, (option,))
        if len({run.option(option) for run in runs}) > 1:
            studies[method, labeled] = runs
    if not studies:
        return f"no runs that differ in {option} alone"
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH, 2.9), layout="constrained")
    named: list[Line] = []
    for axes, (title, measure) in zip(panels, MEASURES.items(), strict=True):
        lines: list[Line] = []
        for (method, _), runs in studies.items():
            grouped = {
                scale * value: [y for run in members if (y := measure(run)) is not None]
                for value, members in by(runs, lambda run: run.option(option)).items()
            }
            colour, marker = style(method)
            for x, values in grouped.items():
                axes.plot([x] * len(values), values, marker, color=colour, alpha=0.35, markersize=4, linewidth=0)
            means = {x: statistics.fmean(values) for x, values in grouped.items() if values}
            if means:
                axes.plot(list(means), list(means.values()), color=colour, linewidth=1.8)
                lines.append((method, colour, list(means), list(means.values())))
        ticks = sorted({scale * run.option(option) for runs in studies.values() for run in runs})
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.set(title=title, xlabel=label)
        not_too_close(axes)
        if not lines:
            axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes, color="#555555")
        named = lines or named
    label_lines(panels[-1], named)
    counts = "; ".join(f"{method}: N_l = {labeled}" for method, labeled in studies)
    save(figure, path, f"{section.dataset}, {counts}; points: splits and seeds, line: mean")
    return None


def draw_learning(section: Section, path: Path) -> str | None:
    """The score over the number of labelled images, with a band of a standard deviation."""
    if len(section.labeled) < 2:
        return "one number of labelled images alone"
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    lines: list[Line] = []
    for row in section.rows():
        grouped = by(of(section, row), lambda run: run.labeled)
        points = {n: point for n, runs in grouped.items() if (point := Mean.of(run.score for run in runs))}
        if not points:
            continue
        means = [point.mean for point in points.values()]
        spread = [point.sd or 0 for point in points.values()]
        colour, marker = style(row.method)
        axes.plot(list(points), means, color=colour, marker=marker, markersize=5, linestyle=dashes(row))
        low, high = ([mean + sign * sd for mean, sd in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(list(points), low, high, color=colour, alpha=0.12, linewidth=0)
        lines.append((row.name, colour, list(points), means))
    axes.set(xscale="log", xlabel="labelled images N_l", ylabel="mean IoU")
    axes.set_xticks(section.labeled, [str(n) for n in section.labeled])
    axes.xaxis.set_minor_locator(NullLocator())
    label_lines(axes, lines)
    save(figure, path, f"{section.dataset}; line: mean over splits and seeds, band: ± standard deviation")
    return None


def draw_validation(section: Section, path: Path) -> str | None:
    """The validation score over training, at the smallest number of labelled images."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8), layout="constrained")
    lines: list[Line] = []
    for row, runs in at_fewest(section).items():
        curves = [[(point["step"], point["miou"]) for point in run.history or () if point.get("miou") is not None]
                  for run in runs]  # fmt: skip
        line = mean_curve(curves)
        if not line:
            continue
        if len(runs) > 1:
            for curve in curves:
                axes.plot(*zip(*curve, strict=True) if curve else ([], []), color=style(row.method)[0], alpha=0.25,
                          linewidth=0.7)  # fmt: skip
        xs, ys = zip(*line, strict=True)
        # One validation alone is no line.
        axes.plot(xs, ys, color=style(row.method)[0], marker="" if len(xs) > 1 else style(row.method)[1],
                  linewidth=1.8, linestyle=dashes(row))  # fmt: skip
        lines.append((row.name, style(row.method)[0], xs, ys))
    if not lines:
        plt.close(figure)
        return "no history in these results"
    axes.set(xlabel="step", ylabel="validation mIoU")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    label_lines(axes, lines)
    save(figure, path, f"{section.dataset}, N_l = {section.labeled[0]}; thin lines: single runs, thick: mean")
    return None


def draw_pseudo_labels(section: Section, path: Path) -> str | None:
    """Weight and precision of the pseudo-labels over training, a panel per class."""
    runs_of = at_fewest(section)
    classes = list(dict.fromkeys(
        name for runs in runs_of.values() for run in runs for point in run.history or ()
        for name in point.get("pseudo_label_weight") or ()
    ))  # fmt: skip
    if not classes:
        return "no history of pseudo-labels in these results"
    drawn = classes if len(classes) <= PANELS else [*classes[: PANELS - 1], classes[-1]]
    figure, panels = plt.subplots(
        2, len(drawn), figsize=(max(WIDTH, 1.7 * len(drawn) + 1.2), 4.4), sharex=True, sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for across, key in zip(panels, ("pseudo_label_weight", "pseudo_label_precision"), strict=True):
        last: list[Line] = []
        for axes, name in zip(across, drawn, strict=True):
            last = []
            for row, runs in runs_of.items():
                line = mean_curve(
                    [
                        [
                            (point["step"], point[key][name])
                            for point in run.history or ()
                            if (point.get(key) or {}).get(name) is not None
                        ]
                        for run in runs
                    ]
                )
                if line:
                    xs, ys = zip(*line, strict=True)
                    axes.plot(xs, ys, color=style(row.method)[0], linewidth=1.4, linestyle=dashes(row))
                    last.append((row.name, style(row.method)[0], xs, ys))
            axes.set_ylim(-0.02, 1.02)
            axes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
        label_lines(across[-1], last, size=8)
    for axes, name in zip(panels[0], drawn, strict=True):
        axes.set_title(name.replace("_", " "), fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    panels[0, 0].set_ylabel("mean weight")
    panels[1, 0].set_ylabel("precision")
    left_out = f"; {len(classes) - len(drawn)} of {len(classes)} classes not drawn" if len(classes) > len(drawn) else ""
    save(figure, path, f"{section.dataset}, N_l = {section.labeled[0]}; mean over splits and seeds{left_out}")
    return None


def draw_k_over_training(section: Section, path: Path) -> str | None:
    return draw_options_over_training(section, path, ("k",))


def draw_others_over_training(section: Section, path: Path) -> str | None:
    return draw_options_over_training(section, path, [name for name in ABLATIONS if name != "k"])


def draw_options_over_training(section: Section, path: Path, options: Sequence[str]) -> str | None:
    """Weight and precision of rpg's pseudo-labels and the validation score over training, a line per value."""
    found = [
        change
        for change in changes(section)
        if (change.method, change.labeled) == ("rpg", section.labeled[0])
        and change.option in options
        and not change.others
    ]
    if not found:
        return "no runs of rpg that differ in one of these options alone"
    runs_of = {"usual": found[0].before[1]}
    for change in found:
        runs_of[f"{change.option} {shown(change.option, change.after[0])}"] = change.after[1]
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH + 1.5, 3.6), layout="constrained")
    named: list[Line] = []
    for axes, (title, value) in zip(panels, OVER_TRAINING.items(), strict=True):
        lines: list[Line] = []
        for number, (name, runs) in enumerate(runs_of.items()):
            line = mean_curve(
                [[(point["step"], y) for point in run.history or () if (y := value(point)) is not None] for run in runs]
            )
            if line:
                xs, ys = zip(*line, strict=True)
                colour = "#000000" if name == "usual" else f"C{number - 1}"
                axes.plot(xs, ys, color=colour, linewidth=2 if name == "usual" else 1.2)
                lines.append((name, colour, xs, ys))
        axes.set(title=title, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        named = lines or named
    label_lines(panels[-1], named, size=8)
    what = f"usual: k {shown('k', found[0].before[0])}" if options == ("k",) else "usual but for one option"
    save(figure, path, f"{section.dataset}, rpg, N_l = {section.labeled[0]}; {what}; mean over splits and seeds")
    return None


OVER_TRAINING: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "mean weight": lambda point: mean_over_classes(point.get("pseudo_label_weight")),
    "pseudo-label precision": lambda point: mean_over_classes(point.get("pseudo_label_precision")),
    "validation mIoU": lambda point: point.get("miou"),
}


def draw_pictures(section: Section, path: Path) -> str | None:
    """Rows of test images; columns: the image, a prediction of each method, the truth."""
    chosen = {}
    for method in ordered({run.method for run in section.main}):
        runs = [run for run in section.main if run.method == method and pictures(run)]
        if runs:
            chosen[method] = min(runs, key=lambda run: (run.labeled, run.split, run.seed, -(run.row.threshold or 0)))
    shared = [name for name in next(iter(map(pictures, chosen.values())), {})
              if all(name in pictures(run) for run in chosen.values())]  # fmt: skip
    if not shared:
        return "no pictures that all methods have" if chosen else "no pictures beside these results"
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
    return None


def pictures(run: Run) -> dict[str, dict[str, Path]]:
    """The pictures of a run that are all there, by image."""
    files = {
        name: {kind: run.path.parent / file for kind, file in kinds.items()}
        for name, kinds in (run.pictures or {}).items()
    }
    return {
        name: kinds
        for name, kinds in files.items()
        if kinds.keys() >= {"image", "truth", "prediction"} and all(file.is_file() for file in kinds.values())
    }


FIGURES: dict[str, tuple[str, Callable[[Section, Path], str | None]]] = {
    "learning": ("Score over the number of labelled images", draw_learning),
    "pool-size": ("Pool-size study", draw_pool_size),
    "k": ("Study of k", draw_k),
    "validation": ("Validation mIoU over training", draw_validation),
    "pseudo-labels": ("Weight and precision of pseudo-labels over training", draw_pseudo_labels),
    "k-over-training": ("Pseudo-labels of rpg over training, by k", draw_k_over_training),
    "options-over-training": ("Pseudo-labels of rpg over training, by other options", draw_others_over_training),
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
    """The runs of every row at the smallest number of labelled images, where methods differ most.

    Those of double length only where there are no others: they would squeeze all lines into half the plot.
    """
    found = {row: [run for run in of(section, row) if run.labeled == section.labeled[0]] for row in section.rows()}
    return {
        row: runs
        for row, runs in found.items()
        if runs and not (row.double and found.get(Row(row.method, row.threshold)))
    }


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean at every step that all curves have; those without points do not count."""
    curves = [curve for curve in curves if curve]
    points: dict[float, list[float]] = {}
    for curve in curves:
        for x, y in curve:
            points.setdefault(x, []).append(y)
    return [(x, statistics.fmean(ys)) for x, ys in sorted(points.items()) if len(ys) == len(curves)]


def label_lines(axes: Axes, lines: Sequence[Line], size: float = 9) -> None:
    """Names lines at the right of the axes, level with their ends as far as names do not overlap."""
    axes.margins(x=0.04)
    low, high = not_too_close(axes)
    height = axes.get_window_extent().height / axes.figure.dpi  # in inches
    gap = 1.25 * size / 72 / height
    ends = [((ys[-1] - low) / (high - low), name, colour, xs[-1], ys[-1]) for name, colour, xs, ys in lines]
    ends.sort(key=lambda end: end[0])
    places = spread([end[0] for end in ends], gap)
    for place, (_, name, colour, x, y) in zip(places, ends, strict=True):
        axes.annotate(
            name, (x, y), (1.06, place), xycoords="data", textcoords="axes fraction", va="center", fontsize=size,
            color=colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "linestyle": (0, (1, 2)),
                        "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip


def not_too_close(axes: Axes) -> tuple[float, float]:
    """Keeps differences of thousandths from filling the axes, and returns their limits."""
    low, high = axes.get_ylim()
    lacking = max(0.0, LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - lacking, high + lacking)
    return axes.get_ylim()


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Moves rising places in [0, 1] apart, each at least a gap above the one before."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    ceiling = max(1.0, gap * (len(moved) - 1))
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return moved


def save(figure: Figure, path: Path, caption: str) -> None:
    figure.supxlabel(caption, fontsize=8, color="#555555")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def style(method: str) -> tuple[str, str]:
    return STYLES.get(method, OTHER_STYLE)


def dashes(row: Row) -> str:
    """Rows of one method have one colour; the less strict threshold and the double length are broken lines."""
    if row.double:
        return ":"
    return "--" if row.threshold is not None and row.threshold < 0.9 else "-"
