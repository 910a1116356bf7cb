"""Divide the volumes of RETOUCH for cross-validation.

Run once for the training set: python -m examples.data.splits.draw_retouch > examples/data/splits/retouch.json
"""

import random
from collections.abc import Iterable

from examples.config import Vendor
from examples.data.splits import as_json

FOLDS = 10
TRAINING_IDS: dict[Vendor, range] = {"cirrus": range(1, 25), "spectralis": range(25, 49), "topcon": range(49, 71)}


def deal(ids: Iterable[str]) -> list[list[str]]:
    """Deal ids out in random order into ten parts, or one each if there are fewer; the same for the same ids."""
    order = sorted(ids)
    random.Random(2022).shuffle(order)
    parts = min(FOLDS, len(order))
    return [sorted(order[part::parts]) for part in range(parts)]


def draw() -> dict[str, list[list[str]]]:
    """Draw vendor -> the ids of every part."""
    return {vendor: deal(f"TRAIN{number:03d}" for number in numbers) for vendor, numbers in TRAINING_IDS.items()}


if __name__ == "__main__":
    print(as_json(draw()))
