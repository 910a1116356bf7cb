"""How much of a training step the loss takes.

    python -m benchmarks.training_step --device cuda  # the paper's step: 512 px, 5 unlabeled, pool of 3, UNet of 64
    python -m benchmarks.training_step                # a smaller one, 128 px and UNet of 16, for a CPU
    python -m benchmarks.training_step --quick        # 64 px and UNet of 8, for a smoke test

A step is: both batches through the UNet of the examples, loss, backward, an update by SGD; with bfloat16 autocast on a
GPU.  The step to compare with has the same images, the same two passes, and cross-entropy with given labels on both,
so that what differs is the loss alone.  Its share is (step with RPG - step with given labels) / step with RPG, within a
round: all variants take turns in every round.

``torch.topk`` is no implementation of this package: it tells what the step would cost with the list of neighbors.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from benchmarks.measure import (
    conditions,
    environment,
    out_of_memory,
    parse,
    parser_of,
    quartiles,
    release,
    synchronize,
    write_json,
)
from benchmarks.routes import OURS, Problem, topk
from examples.models.unet import UNet
from rpg_loss import RPGLoss, segmentation_cross_entropy
from rpg_loss.matching import IMPLEMENTATIONS, Impl, unavailable_reason
from rpg_loss.matching.definition import Matches
from rpg_loss.matching.references import LocalReferences

UNLABELED, POOL, CLASSES = 5, 3, 6
K = 0.5


@dataclass
class Variant:
    """A step with one loss.

    Attributes:
        name: the loss, as tables call it.
        criterion: None for the step with given labels.
        step: seconds of each round.
        note: why there are no times.
    """

    name: str
    criterion: RPGLoss | None
    step: list[float] = field(default_factory=list)
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

    def step(self, criterion: RPGLoss | None) -> float:
        """Return the seconds that a step takes."""
        synchronize(self.device)
        start = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits, features = self.net(self.pool)
            logits_u, features_u = self.net(self.unlabeled)
        if criterion is None:
            loss = segmentation_cross_entropy(logits, self.labels) + segmentation_cross_entropy(logits_u, self.labels_u)
        else:
            loss = criterion(logits_u, features_u, features, self.labels, logits)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        synchronize(self.device)
        return time.perf_counter() - start


def main() -> None:
    options = parse(parser_of("benchmarks.training_step", __doc__))
    device = torch.device(options.device)
    image, channels, map_size, rounds = (512, 64, 64, 20) if options.device == "cuda" else (128, 16, 64, 9)
    if options.quick:
        image, channels, map_size, rounds = 64, 8, 16, 3
    record = environment(device, "benchmarks.training_step")
    IMPLEMENTATIONS["topk"] = topk_matching  # so that RPGLoss can be asked for it, in this process alone
    given = Variant("given labels", None)
    variants = [given]
    for impl in [*OURS, "topk"]:
        variant = Variant(f"RPG, torch.{impl}" if impl == "topk" else f"RPG, {impl}", None)
        variant.note = "" if impl == "topk" else unavailable_reason(impl, device) or ""
        if not variant.note:
            variant.criterion = RPGLoss(K, map_size=map_size, impl=cast(Impl, impl), check_values=False)
        variants.append(variant)
    training = Training(image, channels, device)
    for round_ in range(rounds + 1):
        for variant in variants:
            take_turn(training, variant)
            if round_ == 0:  # warms up
                variant.step = []

    problem = {"size": image, "base_channels": channels, "map_size": map_size, "k": K, "rounds": rounds}
    problem |= {"unlabeled": UNLABELED, "pool": POOL, "classes": CLASSES}
    print(conditions(record))
    print(f"{', '.join(f'{name} {value}' for name, value in problem.items())}; medians (quartiles)\n")
    print("| step with | ms | share of the step that the loss takes |\n|---|---|---|")
    rows = []
    for variant in variants:
        complete = variant.criterion is not None and not variant.note
        pairs = zip(variant.step, given.step, strict=True) if complete else []
        shares = [(step - without) / step for step, without in pairs]
        print(
            f"| {variant.name} | {variant.note or spread(variant.step, '{:.1f}', 1e3)} | {spread(shares, '{:.1%}')} |"
        )
        rows.append({"name": variant.name, "step": variant.step, "share": shares, "note": variant.note})
    write_json(options.json, {"benchmark": "training_step", "environment": record, "problem": problem, "rows": rows})


def topk_matching(queries: Tensor, references: LocalReferences, k: int) -> Matches:
    problem = Problem(len(queries), references.total, queries.shape[1], k, references.num_sets)
    return topk(queries, references.features, references.set_ids, problem)


def take_turn(training: Training, variant: Variant) -> None:
    """One round of a variant, unless it cannot run; too little memory becomes its note, so that the others go on."""
    if variant.note:
        return
    try:
        variant.step.append(training.step(variant.criterion))
    except Exception as error:
        if not out_of_memory(error):
            raise
        variant.note = "out of memory"
    if variant.note:  # behind the except, which holds what was to be computed
        release(training.device)


def spread(values: list[float], form: str, factor: float = 1.0) -> str:
    if not values:
        return ""
    low, middle, high = (form.format(value * factor) for value in quartiles(values))
    return f"{middle} ({low}-{high})"


if __name__ == "__main__":
    main()
