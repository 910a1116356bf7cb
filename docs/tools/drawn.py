"""Draw the picture of How it works, of what rpg_loss says of the example on that page:

PYTHONPATH=. python docs/tools/drawn.py docs/pictures/how-it-works.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Wedge
from torch import Tensor

from rpg_loss import rpg_pseudo_labels

REFERENCES = {"background": (5, 9, 12, 16, 20), "lung": (40, 44, 48), "heart": (70, 74)}  # degrees
QUERIES = {"A": 46, "B": 31}
K = 3
NAMED_AT = {"background": 9.0, "lung": 40.0, "heart": 74.0}  # degrees at which the name stands
COLORS, MARKERS = ("#777777", "#0072B2", "#D55E00"), ("o", "s", "^")


def at(degrees: Tensor) -> Tensor:
    return torch.stack([torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()], dim=1)


def how_it_works(path: Path) -> None:
    """Draw features of references and queries in the plane, and the proximities and weights of the queries."""
    degrees = torch.tensor([float(angle) for angles in REFERENCES.values() for angle in angles])
    labels = torch.tensor([c for c, angles in enumerate(REFERENCES.values()) for _ in angles])
    queries = torch.tensor([float(angle) for angle in QUERIES.values()])
    names, weights = list(REFERENCES), rpg_pseudo_labels(at(queries), at(degrees), labels, k=K).weights
    with plt.rc_context({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False}):
        figure = plt.figure(figsize=(6.4, 8.4), layout="constrained")
        plane, *bars = figure.subplot_mosaic(
            [["plane", "plane"], ["A", "B"]], height_ratios=[5, 3]
        ).values()  # fmt: skip
        draw_plane(plane, degrees, labels, queries)
        for axes, (query, angle), weight in zip(bars, QUERIES.items(), weights, strict=True):
            cosines = torch.deg2rad(degrees - angle).cos()
            within = cosines >= cosines.topk(K).values[-1]
            best = [float((cosines * within)[labels == c].max()) for c in range(len(names))]
            axes.bar(names, best, color=COLORS)
            axes.set(
                ylim=(0, 1.05),
                yticks=(0, 0.5, 1),
                title=f"{query}: {names[int(labels[cosines.argmax()])]}, W = {weight:.2f}",
            )
            axes.tick_params(axis="x", rotation=25)
        bars[0].set_ylabel("proximity")
        figure.savefig(path, dpi=120)
        plt.close(figure)


def draw_plane(axes: Axes, degrees: Tensor, labels: Tensor, queries: Tensor) -> None:
    arc = np.radians(np.linspace(0, 90, 91))
    axes.plot(np.cos(arc), np.sin(arc), color="#cccccc", zorder=0)
    for angle, length in zip(QUERIES.values(), (0.93, 0.86), strict=True):
        nearest = degrees[(degrees - angle).abs().topk(K, largest=False).indices].tolist()
        first, last = min(*nearest, angle) - 1.5, max(*nearest, angle) + 1.5
        axes.add_patch(Wedge((0, 0), length, first, last, color="#E69F00", alpha=0.25, linewidth=0))
    for c, (name, angles) in enumerate(REFERENCES.items()):
        x, y = at(torch.tensor([float(angle) for angle in angles])).T
        axes.scatter(x, y, s=110, color=COLORS[c], marker=MARKERS[c], zorder=2)
        beside = 1.06 * at(torch.tensor([NAMED_AT[name]]))[0]
        axes.text(float(beside[0]), float(beside[1]), name, color=COLORS[c], fontweight="bold")
    for (query, _), (x, y) in zip(QUERIES.items(), at(queries).tolist(), strict=True):
        axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "linewidth": 2, "color": "#000000"})
        axes.text(1.08 * x, 1.08 * y, query, ha="center", va="center", fontsize=18, fontweight="bold")
    axes.text(0.02, 0.98, f"shaded: the k = {K} nearest", va="top", transform=axes.transAxes)
    axes.set(xlim=(0, 1.42), ylim=(0, 1.16), aspect="equal", xlabel="feature 1", ylabel="feature 2")
    axes.set(xticks=(0, 1), yticks=(0, 1))


if __name__ == "__main__":
    how_it_works(Path(sys.argv[1]))
