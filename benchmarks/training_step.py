"""How much of a training step the loss takes.

    python -m benchmarks.training_step --device cuda  # the paper's step: 512 px, 5 unlabeled, pool of 3, UNet of 64
    python -m benchmarks.training_step                # a smaller one, 128 px and UNet of 16, for a CPU
    python -m benchmarks.training_step --quick        # a smoke test

A step is: both batches through the UNet of the examples, loss, backward, an update by SGD; with bfloat16 autocast on a
GPU.  The step to compare with has the same images, the same two passes, and cross-entropy with given labels on both,
so that what differs is the loss alone.  Two shares of the step with RPG are given: by difference, (step with RPG - step
with given labels) / step with RPG; and directly, the time of the loss on finished logits and features, waited for
before and after.  All variants take turns in every round; shares are taken within a round.

``torch.topk`` is no implementation of this package: it tells what the step would cost with the list of neighbors.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.measure import conditions, environment, out_of_memory, quartiles, release, synchronize, write_json
from benchmarks.routes import OURS, Problem, topk
from examples.models.unet import UNet
from rpg_loss import RPGLoss, segmentation_cross_entropy
from rpg_loss.matching import IMPLEMENTATIONS, Impl, unavailable_reason
from rpg_loss.matching.definition import Matches
from rpg_loss.matching.references import LocalReferences

UNLABELED, POOL, CLASSES = 5, 3, 6
GIVEN_LABELS = "given labels"


@dataclass
class Variant:
    """A step with one loss, and what was measured of it, in seconds, one entry per round.

    Attributes:
        name: the loss, as tables call it.
        criterion: None for the step with given labels.
        step: the whole step.
        loss: the loss on finished logits and features, forward, without the supervised term.
        pseudo_labels: the part of it that finds labels and weights.
        note: why there are no times.
    """

    name: str
    criterion: RPGLoss | None
    step: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    pseudo_labels: list[float] = field(default_factory=list)
    note: str = ""


class Training:
    """Net, images and labels of the steps."""

    def __init__(self, size: int, base_channels: int, device: torch.device):
        torch.manual_seed(0)
        self.device = device
        self.net = UNet(1, CLASSES, base_channels).to(device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9)
        self.pool, self.unlabeled = (torch.randn(count, 1, size, size, device=device) for count in (POOL, UNLABELED))
        # Bands of classes: every one is among the references, as in a pool that ReferencePool draws.
        bands = (torch.arange(size, device=device) * CLASSES // size).expand(size, size)
        self.labels, self.labels_u = (bands.expand(count, size, size).contiguous() for count in (POOL, UNLABELED))

    def forward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits and features of the pool, then those of the unlabeled images."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return *self.net(self.pool), *self.net(self.unlabeled)

    def step(self, criterion: RPGLoss | None) -> None:
        logits, features, logits_u, features_u = self.forward()
        if criterion is None:
            loss = segmentation_cross_entropy(logits, self.labels) + segmentation_cross_entropy(logits_u, self.labels_u)
        else:
            loss = criterion(logits_u, features_u, features, self.labels, logits)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def measure(self, variant: Variant) -> None:
        """One round of a variant."""
        criterion = variant.criterion
        variant.step.append(self.seconds(lambda: self.step(criterion)))
        if criterion is not None:
            _, features, logits_u, features_u = self.forward()
            variant.loss.append(self.seconds(lambda: criterion(logits_u, features_u, features, self.labels)))
            variant.pseudo_labels.append(
                self.seconds(lambda: criterion.pseudo_labels(features_u, features, self.labels))
            )

    def seconds(self, call: Callable[[], object]) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        call()
        synchronize(self.device)
        return time.perf_counter() - start


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    record = environment(device, "benchmarks.training_step")
    IMPLEMENTATIONS["topk"] = topk_matching  # so that RPGLoss can be asked for it, in this process alone
    variants = [Variant(GIVEN_LABELS, None)]
    for impl in [*OURS, "topk"]:
        variant = Variant(f"RPG, torch.{impl}" if impl == "topk" else f"RPG, {impl}", None)
        variant.note = "" if impl == "topk" else unavailable_reason(impl, device) or ""
        if not variant.note:
            variant.criterion = RPGLoss(options.k, map_size=options.map_size, impl=cast(Impl, impl), check_values=False)
        variants.append(variant)
    training = Training(options.size, options.base_channels, device)
    for round_ in range(options.rounds + 1):
        for variant in variants:
            take_turn(training, variant)
            if round_ == 0:  # warms up
                variant.step, variant.loss, variant.pseudo_labels = [], [], []

    size = {name: getattr(options, name) for name in ("size", "base_channels", "map_size", "k", "rounds")}
    size |= {"unlabeled": UNLABELED, "pool": POOL, "classes": CLASSES}
    print(
        f"{conditions(record)}\n{', '.join(f'{name} {value}' for name, value in size.items())}; medians (quartiles)\n"
    )
    print(
        "| step with | step, ms | share, by difference | loss alone, ms | share, directly | pseudo-labels alone, ms |"
    )
    print("|---|---|---|---|---|---|")
    rows = [summary(variant, variants[0]) for variant in variants]
    for row in rows:
        times = [spread(row[name], "{:.1f}", 1e3) for name in ("step", "loss", "pseudo_labels")]
        shares = [spread(row[name], "{:.1%}") for name in ("share_by_difference", "share_directly")]
        print(f"| {row['name']} | {row['note'] or times[0]} | {shares[0]} | {times[1]} | {shares[1]} | {times[2]} |")
    write_json(options.json, {"benchmark": "training_step", "environment": record, "problem": size, "rows": rows})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="64 px, UNet of 8, map of 16, 3 rounds unless given")
    parser.add_argument("--size", type=int, metavar="PX", help="side of the images (default: 128; cuda: 512)")
    parser.add_argument("--base-channels", type=int, metavar="C", help="width of the UNet (default: 16; cuda: 64)")
    parser.add_argument("--map-size", type=int, metavar="PX", help="side of the map (default: 64)")
    parser.add_argument(
        "--k", type=float, default=0.5, metavar="SHARE", help="of the references (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, metavar="R", help="timed rounds (default: 9; cuda: 20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is there, or this PyTorch is built without CUDA")
    size, channels, rounds, map_size = (512, 64, 20, 64) if options.device == "cuda" else (128, 16, 9, 64)
    if options.quick:
        size, channels, rounds, map_size = 64, 8, 3, 16
    options.size = options.size or size
    options.base_channels = options.base_channels or channels
    options.map_size = options.map_size or map_size
    options.rounds = options.rounds or rounds
    return options


def topk_matching(queries: Tensor, references: LocalReferences, k: int) -> Matches:
    problem = Problem(len(queries), references.total, queries.shape[1], k, references.num_sets)
    return topk(queries, references.features, references.set_ids, problem)


def take_turn(training: Training, variant: Variant) -> None:
    """One round of a variant, unless it cannot run; too little memory becomes its note, so that the others go on."""
    if variant.note:
        return
    try:
        training.measure(variant)
    except Exception as error:
        if not out_of_memory(error):
            raise
        variant.note = "out of memory"
    if variant.note:
        release(training.device)


def summary(variant: Variant, given: Variant) -> dict[str, Any]:
    """The record of a variant; shares are of its step, round by round."""
    record: dict[str, Any] = {
        name: getattr(variant, name) for name in ("name", "step", "loss", "pseudo_labels", "note")
    }
    complete = variant.criterion is not None and not variant.note
    rounds = list(zip(variant.step, variant.loss, given.step, strict=True)) if complete else []
    record["share_by_difference"] = [(step - without) / step for step, _, without in rounds]
    record["share_directly"] = [loss / step for step, loss, _ in rounds]
    return record


def spread(values: list[float], form: str, factor: float = 1.0) -> str:
    if not values:
        return ""
    low, middle, high = (form.format(value * factor) for value in quartiles(values))
    return f"{middle} ({low}-{high})"


if __name__ == "__main__":
    main()
