"""Measure what was trained: IoU, Dice and surface distances of every class, of each image and on average.

    python -m examples.evaluate runs/jsrt/rpg_plus-n3-s0-seed0/best.pt
    python -m examples.evaluate runs/jsrt/rpg_plus-n3-s0-seed0/best.pt folder --root my_radiographs --part all

The first tests as the run itself did: its IoU is that of result.json. The second tests on other data, whose labels are
found by their names; those that --fuse made in training count as well.

ASSD is the average symmetric surface distance, HD95 the larger of the 95th percentiles of the distances from either
surface to the other, in pixels of the size that is evaluated at and, where the spacing is known, in mm.

A class that is in neither the prediction nor the truth of an image has no IoU and no Dice there; one that is in only
one of them has 0 of both; neither has a distance. What there is not is "nan" in the CSV file and left out of means. The
table counts the images whose truth shows a class, of these the ones where it was missed (nothing of it predicted), and
of the others the ones where it was predicted all the same (false): distances say nothing about either.
"""

from __future__ import annotations

import sys

import torch
import tyro
from rich.console import Console

from examples.command_line import FILES_ARE_WHOLE, ending_in_words
from examples.inference.evaluation import Evaluate, measure
from examples.inference.measures import table


def main() -> None:
    torch.set_flush_denormal(True)  # as in training: tiny activations would slow a CPU down
    with ending_in_words(FILES_ARE_WHOLE):
        options = tyro.cli(Evaluate, description=__doc__, prog="python -m examples.evaluate")
        evaluation = measure(options)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"{options.part}, {len(evaluation.images)} images; {evaluation.found}", soft_wrap=True, markup=False)
    console.print(table(evaluation))
    console.print(f"every image: {evaluation.csv}", soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    main()
