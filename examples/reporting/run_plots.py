"""The curves of a single run, as SVG that is light or dark as the page it stands in."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from examples.logging.pictures import COLORS
from examples.reporting.plotting import LOOK, WIDTH, class_title

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

Series = dict[str, dict[str, list[tuple[int, float]]]]  # kind -> name -> (step, value), steps rising

# Stand-ins that are replaced by variables of the style sheet; no other color is like them.
INK, PAPER = "#123457", "#fedcb9"
SCHEME = (
    "<style>:root{--ink:#222;--paper:#fff}@media(prefers-color-scheme:dark){:root{--ink:#ddd;--paper:#16181d}}</style>"
)
RUN_LOOK: dict[RcKeyType, Any] = {
    **LOOK,
    "svg.fonttype": "none",
    "svg.hashsalt": "rpg_loss",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "grid.color": INK,
    "grid.alpha": 0.15,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}
DARKENED = {"#F0E442": "#B5A300"}  # yellow lines, to be read on white
BACKGROUND = "#888888"
WINDOWS = 20  # of a run that a smoothed curve is averaged over

Points = Sequence[tuple[int, float]]


def class_colors(names: Sequence[str]) -> dict[str, str]:
    """Return the colors that classes have in overlays."""
    return {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}


def draw_losses(series: Series, names: Sequence[str], iterations: int | None) -> str | None:
    """Draw a panel for each term of the loss; None where nothing was logged."""
    terms = series.get("loss", {})
    if not terms:
        return None
    with matplotlib.rc_context(RUN_LOOK):
        figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
        panels = figure.subplots(1, len(terms), squeeze=False)[0]
        for axes, (name, points) in zip(panels, terms.items(), strict=True):
            axes.plot(*arrays(points), color=COLORS[0], alpha=0.35, linewidth=0.8)
            axes.plot(*smooth(points), color=COLORS[0], linewidth=1.6)
            axes.set_title(name.replace("_", " "), fontsize=9)
            steps(axes, iterations)
        return svg(figure)


def draw_validation(series: Series, names: Sequence[str], iterations: int | None) -> str | None:
    """Draw IoU by class and their mean; None before the first validation."""
    scores = series.get("validation", {})
    if not scores:
        return None
    with matplotlib.rc_context(RUN_LOOK):
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        axes = figure.subplots()
        draw_classes(axes, {name: arrays(scores[name]) for name in names if name in scores}, class_colors(names))
        axes.plot(*arrays(scores["miou"]), color=INK, marker="o", markersize=3, linewidth=2, label="mean")
        axes.set(ylabel="IoU", ylim=(-0.02, 1.02))
        steps(axes, iterations)
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        return svg(figure)


def draw_pseudo_labels(series: Series, names: Sequence[str], iterations: int | None) -> str | None:
    """Draw precision and weight by class, smoothed; None for methods without pseudo-labels."""
    if not names:
        return None
    colors = {**class_colors(names[:-1]), "background": BACKGROUND}
    with matplotlib.rc_context(RUN_LOOK):
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, measure in zip(panels, ("precision", "weight"), strict=True):
            found = series.get(f"pseudo_label_{measure}", {})
            draw_classes(axes, {name: smooth(found[name]) for name in names if name in found}, colors)
            axes.set_title({"precision": "precision", "weight": "mean weight"}[measure], fontsize=9)
            axes.set_ylim(-0.02, 1.02)
            steps(axes, iterations)
        named = [named for axes in panels for named in zip(*axes.get_legend_handles_labels(), strict=True)]
        handles = {label: handle for handle, label in named}
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8)
        return svg(figure)


def draw_classes(axes: Axes, lines: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], colors: Mapping[str, str]) -> None:
    """Draw a line for each class; the span of those that are more than there are colors."""
    alone = [name for name in lines if name == "background" or len(colors) <= len(COLORS) + 1]
    together = [name for name in lines if name not in alone]
    if together:
        at = np.unique(np.concatenate([lines[name][0] for name in together]))
        values = np.stack([np.interp(at, *lines[name], left=np.nan, right=np.nan) for name in together])
        axes.fill_between(at, np.nanmin(values, 0), np.nanmax(values, 0), color=COLORS[0], alpha=0.2, linewidth=0,
                          label=f"all {len(together)} classes")  # fmt: skip
        axes.plot(at, np.nanmedian(values, 0), color=COLORS[0], linewidth=1.4, label="their median")
    for name in alone:
        color = DARKENED.get(colors[name], colors[name])
        marker = "." if len(lines[name][0]) == 1 else ""  # a single point is no line
        dashes = "--" if name == "background" else "-"
        axes.plot(*lines[name], dashes, marker=marker, color=color, linewidth=1.3, label=class_title(name))


def steps(axes: Axes, iterations: int | None) -> None:
    axes.set_xlim(0, iterations and 1.02 * iterations)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))


def arrays(points: Points) -> tuple[NDArray[Any], NDArray[Any]]:
    x, y = np.array(points, float).T
    return x, y


def smooth(points: Points) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return means over a share of the run, each at the middle of what it is the mean of."""
    x, y = arrays(points)
    window = max(1, len(points) // WINDOWS)
    kernel = np.full(window, 1 / window)
    return np.convolve(x, kernel, "valid"), np.convolve(y, kernel, "valid")


def svg(figure: Figure) -> str:
    """Return the figure as an SVG element by itself, which follows the browser's choice of light and dark."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "var(--ink)").replace(PAPER, "var(--paper)")
    return text.replace("<defs>", f"<defs>{SCHEME}", 1)
