"""Tables of what ``benchmarks.label_study`` found, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.json_files import read_json
from examples.reporting.results import from_here
from examples.reporting.tables import MISSING, as_code, as_text, markdown

COLUMNS = {
    "W": "weight", "right": "right", "own": "own_right", "by W": "weighted_right", "own by W": "weighted_own_right",
    "differ": "differ", "right there": "differ_right", "own there": "differ_own_right",
}  # fmt: skip
CAPTION = (
    "Pseudo-labels of the network that a run has trained, under other options, beside its own predictions (own), on "
    "the held-back labels of the images that it learned from; percent of pixels. **W**: mean weight. **By W**: each "
    "pixel counts as much as it weighs. **Differ**: where pseudo-label and prediction differ, and how often each is "
    "right there."
)


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
        [as_text(name), *(percentage(measures[key]) for key in COLUMNS.values())] for name, measures in variants.items()
    ]
    caption = f"N_l = {int(run['labeled'])}, split {int(run['split'])}, {int(content['batches'])} batches"
    return f"**{as_code(run['method'])}, {caption}**\n\n{markdown(['option', *COLUMNS], rows)}"


def percentage(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"
