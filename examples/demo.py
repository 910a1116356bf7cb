"""Does it help? Trains supervised and rpg_plus on drawn phantoms, side by side, and prints both in one table.

    python -m examples.demo

Three labeled images, the same ones for both, and the same number of steps; under four minutes on two CPU cores.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from examples.config import Config, MethodName
from examples.engine.loop import train

METHODS: tuple[MethodName, ...] = ("supervised", "rpg_plus")


@dataclass(frozen=True)
class Demo:
    """Compare supervised training with RPG+ on drawn phantoms."""

    out: Path = Path("runs/demo")
    """Folder for the results; those of an earlier demo are replaced."""

    iterations: int = 900
    """Iterations (optimizer steps) of both runs."""

    labeled: int = 3
    """Number of labeled images, N_l."""

    split: int = 0
    """Which images are labeled."""

    seed: int = 0
    """Seed of everything random."""


def run(demo: Demo, method: MethodName) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    return train(
        Config(
            dataset="phantom", method=method, labeled=demo.labeled, split=demo.split, seed=demo.seed,
            out=demo.out / method, overwrite=True, iterations=demo.iterations,
            device="cpu", image_size=64, base_channels=12, map_size=16, k=0.5, learning_rate=2e-3,
        )
    )  # fmt: skip


def main() -> None:
    demo = tyro.cli(Demo, prog="python -m examples.demo", description=__doc__)
    # Each process has one thread; without this the libraries below PyTorch would start more when imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TTY_COMPATIBLE"] = "0"  # two bars would be drawn over each other: let the processes print lines
    with multiprocessing.get_context("spawn").Pool(len(METHODS)) as workers:
        results = workers.starmap(run, [(demo, method) for method in METHODS])
    del os.environ["TTY_COMPATIBLE"]

    table = Table(
        title=f"IoU after {demo.iterations} steps with {demo.labeled} labeled images ({results[0]['data']})",
        caption=f"one split, one seed: --split and --seed show the spread\nreports: {demo.out}/*/report.html",
    )
    table.add_column("method")
    for heading in ("mean", *results[0]["iou_per_class"], "minutes"):
        table.add_column(heading.replace("_", "\n"), justify="right")
    for result in results:
        values = [result["miou"], *result["iou_per_class"].values()]
        table.add_row(result["method"], *(f"{value:.3f}" for value in values), f"{result['seconds'] / 60:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
