"""Draw the splits of jsrt.json; run once: python -m examples.data.splits.draw_jsrt > examples/data/splits/jsrt.json

The first set is the odd-numbered half of JSRT's 154 images with and 93 without a nodule, known without the files.
"""

import random

from examples.data.splits import as_json

FIRST_SET = [f"JPCLN{i:03d}" for i in range(1, 155, 2)] + [f"JPCNN{i:03d}" for i in range(1, 94, 2)]
SIZES, SPLITS, VALIDATION = (3, 6, 12, 24), 5, 5


def draw() -> dict[str, list[dict[str, list[str]]]]:
    """Draw number of labeled images -> one {"labeled": ids, "validation": ids} a split."""
    rng = random.Random(2022)
    splits: dict[str, list[dict[str, list[str]]]] = {}
    for size in SIZES:
        drawn = [rng.sample(FIRST_SET, size + VALIDATION) for _ in range(SPLITS)]
        splits[str(size)] = [{"labeled": sorted(ids[:size]), "validation": sorted(ids[size:])} for ids in drawn]
    return splits


if __name__ == "__main__":
    print(as_json(draw()))
