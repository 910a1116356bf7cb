"""What the plots of reports have in common: colors, lines with their names, files."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.reporting.results import Row

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# Okabe and Ito's colors (the yellow darkened, to be read on white); markers tell lines apart without any color.
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
    "transfer": ("#5B2A86", "p"),
}
OTHER_STYLE = ("#000000", ".")
WIDTH, DPI = 4.8, 250  # inches: text of 9 points is still 9 pixels high where a phone shows it 358 wide
LEAST_SPAN = 0.05  # of an axis of IoU, precision or weight
LOOK: dict[RcKeyType, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}

Line = tuple[str, str, Sequence[float], Sequence[float]]  # name, color, x and y


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the mean at every step that all curves have; those without points do not count."""
    curves = [curve for curve in curves if curve]
    points: dict[float, list[float]] = {}
    for curve in curves:
        for x, y in curve:
            points.setdefault(x, []).append(y)
    return [(x, statistics.fmean(ys)) for x, ys in sorted(points.items()) if len(ys) == len(curves)]


def label_lines(axes: Axes, lines: Sequence[Line], size: float = 9) -> None:
    """Name lines at the right of the axes, level with their ends as far as names do not overlap."""
    axes.margins(x=0.04)
    low, high = not_too_close(axes)
    height = axes.get_window_extent().height / axes.figure.dpi  # in inches
    gap = 1.25 * size / 72 / height
    ends = [((ys[-1] - low) / (high - low), name, color, xs[-1], ys[-1]) for name, color, xs, ys in lines]
    ends.sort(key=lambda end: end[0])
    places = spread([end[0] for end in ends], gap)
    for place, (_, name, color, x, y) in zip(places, ends, strict=True):
        axes.annotate(
            name, (x, y), (1.06, place), xycoords="data", textcoords="axes fraction", va="center", fontsize=size,
            color=color, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "linestyle": (0, (1, 2)),
                        "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip


def not_too_close(axes: Axes) -> tuple[float, float]:
    """Keep differences of thousandths from filling the axes, and return their limits."""
    low, high = axes.get_ylim()
    lacking = max(0.0, LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - lacking, high + lacking)
    return axes.get_ylim()


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move rising places in [0, 1] apart, each at least a gap above the one before."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    ceiling = max(1.0, gap * (len(moved) - 1))
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return moved


def save(figure: Figure, path: Path, caption: str) -> None:
    figure.supxlabel(textwrap.fill(caption, 68), fontsize=8, color="#555555")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def style(method: str) -> tuple[str, str]:
    return STYLES.get(method, OTHER_STYLE)


def dashes(row: Row) -> str:
    """Return a line style: a method has one color, and its lower threshold and unusual lengths are broken lines."""
    if not row.usual_length:
        return ":"
    return "--" if row.threshold is not None and row.threshold < 0.9 else "-"


def class_title(name: str) -> str:
    """Return a class's name as Matplotlib shows it, which takes a dollar for the start of a formula."""
    return name.replace("_", " ").replace("$", r"\$")
