"""What ``benchmarks.label_study`` found: tables as Markdown, and how the weight goes with being right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from examples.json_files import read_json
from examples.reporting.plotting import DPI, WIDTH
from examples.reporting.results import from_here
from examples.reporting.tables import MISSING, as_code, as_text, markdown

COLUMNS = {
    "W": "weight", "right": "right", "own": "own_right", "by W": "weighted_right", "own by W": "weighted_own_right",
    "differ": "differ", "right there": "differ_right", "own there": "differ_own_right",
    "assigned: W": "assigned_weight", "assigned: right": "assigned_right", "assigned: by W": "assigned_weighted_right",
}  # fmt: skip
CAPTION = (
    "Pseudo-labels of the network that a run has trained, under other options, beside its own predictions (own), on "
    "the held-back labels of the images that it learned from; percent of pixels. **W**: mean weight. **By W**: each "
    "pixel counts as much as it weighs. **Differ**: where pseudo-label and prediction differ, and how often each is "
    "right there. **Assigned**: pixels that are given a class other than background."
)
RELIABILITY = (
    "Is the weight honest? Of the pixels that are given a class other than background, the share of right ones in each "
    "tenth of the weight; the larger a point, the more of them. Where weights are honest, lines rise; on the gray line "
    "the weight is the chance of being right"
)
LEAST_SHARE = 0.01  # of the pixels that are given a class: a tenth with fewer is not drawn
DRAWN = {"k = 1%": ("#0072B2", "o"), "k = 5%": ("#E69F00", "s"), "k = 50%": ("#D55E00", "^")}


def read_label_studies(folders: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Read what ``benchmarks.label_study`` has written below the folders; leave other and broken files out."""
    paths = {path.resolve() for folder in folders for path in (folder.rglob("*.json") if folder.is_dir() else [folder])}
    studies = []
    for path in map(from_here, sorted(paths)):
        try:
            content = read_json(path)
        except (OSError, ValueError):
            continue  # named where results are read
        if isinstance(content, dict) and {"run", "variants"} <= content.keys():
            studies.append((path, content))
    return studies


def label_study_table(content: dict[str, Any]) -> str:
    run, variants = content["run"], content["variants"]
    rows = [
        [as_text(name), *(percentage(measures.get(key)) for key in COLUMNS.values())]
        for name, measures in variants.items()
    ]
    caption = f"N_l = {int(run['labeled'])}, split {int(run['split'])}, {int(content['batches'])} batches"
    return f"**{as_code(run['method'])}, {caption}**\n\n{markdown(['option', *COLUMNS], rows)}"


def draw_reliability(studies: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw a panel per study; return whether there was anything to draw."""
    drawn = [study for study in studies if any("by_weight" in study["variants"].get(name, {}) for name in DRAWN)]
    if not drawn:
        return False
    columns = min(2, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(WIDTH, 0.9 + 2.2 * rows), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axes in panels.flat[len(drawn) :]:
        axes.set_axis_off()
    for axes, study in zip(panels.flat, drawn, strict=False):
        axes.plot([0, 1], [0, 1], color="#bbbbbb", zorder=0)
        for name, (color, marker) in DRAWN.items():
            tenths = study["variants"].get(name, {}).get("by_weight")
            if tenths is None:
                continue
            points = [
                ((i + 0.5) / len(tenths["assigned"]), right, share)
                for i, (share, right) in enumerate(zip(tenths["assigned"], tenths["assigned_right"], strict=True))
                if right is not None and share > LEAST_SHARE * sum(tenths["assigned"])
            ]
            xs, ys, shares = zip(*points, strict=True) if points else ((), (), ())
            sizes = [15 + 150 * share / sum(tenths["assigned"]) for share in shares]
            axes.plot(xs, ys, color=color, linewidth=1)
            axes.scatter(xs, ys, s=sizes, color=color, marker=marker, alpha=0.8, label=name)
        run = study["run"]
        axes.set(title=f"{run['method']}, split {run['split']}", xlim=(0, 1), ylim=(0, 1))
    for axes in panels.flat[len(drawn) - columns : len(drawn)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel("weight W", fontsize=9)
    figure.supylabel("share of right ones", fontsize=9)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return True


def percentage(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"
