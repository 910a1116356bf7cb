"""What pseudo-labels are worth: a trained network's, under many options, beside its own predictions.

    python -m benchmarks.label_study runs/jsrt/rpg-n3-s0-seed0 --out labels.json

Nothing is trained. The network stays as it is, pools and unlabeled images are drawn and augmented as in training, and
pseudo-labels and predictions are compared with the labels held back, on the same pixels. So the options differ in
nothing but themselves, where whole runs differ by chance as well. A pseudo-label can teach what the network does not
know yet only where the two differ, and should be right there more often than the prediction.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor

from examples.config import Config
from examples.data import Dataset, load
from examples.data.loaders import PoolBatches, UnlabeledBatches
from examples.engine.metrics import class_masks, known_pixels, predicted_masks, with_background
from examples.inference.trained import read_trained
from examples.logging.environment import environment
from examples.logging.run_folder import write_json
from examples.models.base import Network
from rpg_loss import RPGLoss
from rpg_loss.maps import subsample

SHARES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
SIDES = (16, 32, 64)


@dataclass(frozen=True)
class LabelStudy:
    """Compare pseudo-labels of a trained network under many options with its own predictions."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a finished run, or its best.pt."""

    out: Path | None = None
    """JSON file for the figures, with those of every class; none if not given."""

    batches: int = 30
    """Draws of a pool and of unlabeled images that are compared."""

    root: Path | None = None
    """Folder the data set is read from, if it is not where the run had it."""

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ValueError(f"batches: got {self.batches}, expected 1 or more")


@dataclass(frozen=True)
class Variant:
    """A way to make pseudo-labels.

    Attributes:
        k: Share of the references.
        side: Of the map.
        pool_size: Labeled images.
    """

    k: float
    side: int
    pool_size: int


def variants(config: Config) -> dict[str, Variant]:
    """Return the variants by what they change of a run's own setting."""
    share = config.k / (config.pool_size * config.side**2) if isinstance(config.k, int) else config.k
    own = Variant(share, config.side, config.pool_size)
    return {
        "as trained": own,
        **{f"k = {share:.0%}": replace(own, k=share) for share in SHARES},
        **{f"pool of {size}": replace(own, pool_size=size) for size in range(1, config.pool_size)},
        **{f"map of {side}": replace(own, side=side) for side in SIDES if config.side != side <= config.image_size},
    }


class Tally:
    """Sums over pixels that the measures are ratios of."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = (*names, "background")
        self.sums: dict[str, Tensor] = {}

    def add(self, given: Tensor, own: Tensor, true: Tensor, weights: Tensor, known: Tensor) -> None:
        """Add masks (B, 1 + C, h, w) bool, background last, weights (B, h, w) and which pixels (B, h, w) count."""
        weights = weights.double() * known
        right, own_right = (((masks == true).all(1) & known) for masks in (given, own))
        differ = (given != own).any(1) & known
        each = known[:, None]
        over_pixels = {
            "known": known, "weight": weights, "right": right, "own_right": own_right, "differ": differ,
            "weight_right": weights * right, "weight_own_right": weights * own_right,
            "differ_right": differ & right, "differ_own_right": differ & own_right,
        }  # fmt: skip
        over_classes = {
            "class_true": true & each, "class_weight": weights[:, None] * true,
            "class_both": given & true & each, "class_any": (given | true) & each,
        }  # fmt: skip
        parts = {name: part.sum().double() for name, part in over_pixels.items()}
        parts |= {name: part.sum((0, 2, 3)).double() for name, part in over_classes.items()}
        for name, part in parts.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + part.cpu()

    def measures(self) -> dict[str, Any]:
        """Return shares in [0, 1]; NaN where there is nothing to share out.

        * ``weight``: mean weight;
        * ``right``, ``own_right``: share of pixels where pseudo-label, or prediction, is right (in every label);
        * ``weighted_right``, ``weighted_own_right``: the same with every pixel counting as much as it weighs;
        * ``differ``: share of pixels where the two differ, ``differ_right``, ``differ_own_right``: who is right there;
        * ``weight_per_class``: mean weight of the pixels that are of a class; ``iou_per_class``: of the pseudo-labels.
        """
        s = self.sums

        def by_name(over: str, under: str) -> dict[str, float]:
            return dict(zip(self.names, (s[over] / s[under]).tolist(), strict=True))

        ratios = {
            "weight": ("weight", "known"), "right": ("right", "known"), "own_right": ("own_right", "known"),
            "weighted_right": ("weight_right", "weight"), "weighted_own_right": ("weight_own_right", "weight"),
            "differ": ("differ", "known"), "differ_right": ("differ_right", "differ"),
            "differ_own_right": ("differ_own_right", "differ"),
        }  # fmt: skip
        return {
            **{name: float(s[over] / s[under]) for name, (over, under) in ratios.items()},
            "weight_per_class": by_name("class_weight", "class_true"),
            "iou_per_class": by_name("class_both", "class_any"),
        }


@torch.no_grad()
def study(net: Network, data: Dataset, config: Config, batches: int) -> dict[str, dict[str, Any]]:
    """Return the measures (see ``Tally``) of every variant that the data allows, by name."""
    net.train()  # views have their own batch statistics, as in training
    unlabeled = UnlabeledBatches(data, config.unlabeled_batch or 1, Generator().manual_seed(config.seed))
    pools = {size: pool for size in range(1, config.pool_size + 1) if (pool := pools_of(size, data, config))}
    wanted = {name: variant for name, variant in variants(config).items() if variant.pool_size in pools}
    tallies = {name: Tally(data.class_names) for name in wanted}
    for _ in range(batches):
        views = {size: next(pool) for size, pool in pools.items()}
        feat_ref = {size: net(view.images)[1] for size, view in views.items()}
        view = next(unlabeled)
        logits, feat_u = net(view.images)
        predicted = with_background(predicted_masks(logits, multilabel=data.multilabel))
        true = with_background(class_masks(view.labels, len(data.class_names)))
        known = known_pixels(view.labels) & view.valid
        for name, variant in wanted.items():
            size = variant.pool_size
            criterion = RPGLoss(variant.k, map_size=variant.side, check_values=False)
            labels, weights = criterion.pseudo_labels(feat_u, feat_ref[size], views[size].labels, valid_u=view.valid)
            given = with_background(class_masks(labels, len(data.class_names)))
            grid = tuple(weights.shape[1:])
            own, truth, count = (subsample(maps, grid) for maps in (predicted, true, known))
            tallies[name].add(given, own, truth, weights, count)
    return {name: {"options": asdict(wanted[name]), **tally.measures()} for name, tally in tallies.items()}


def pools_of(size: int, data: Dataset, config: Config) -> PoolBatches | None:
    """Return pools of a size, or None where so few images cannot hold every class."""
    try:
        next(PoolBatches(data, size, Generator().manual_seed(config.seed)))
    except ValueError:
        if size == config.pool_size:
            raise
        return None
    return PoolBatches(data, size, Generator().manual_seed(config.seed))


def table(results: dict[str, dict[str, Any]]) -> Table:
    title = "Pseudo-labels (p) and own predictions (o), % of pixels"
    caption = "right; right where weighed by W; where the two differ, and which is right there"
    shown = Table(title=title, caption=caption, box=SIMPLE, padding=(0, 0, 0, 1))
    shown.add_column("option", no_wrap=True)
    for heading in ("W", "p", "o", "W·p", "W·o", "differ", "p", "o"):
        shown.add_column(heading, justify="right", no_wrap=True)
    keys = ("weight", "right", "own_right", "weighted_right", "weighted_own_right", "differ", "differ_right",
            "differ_own_right")  # fmt: skip
    for name, measures in results.items():
        shown.add_row(name, *(f"{100 * measures[key]:.1f}" for key in keys))
    return shown


def main() -> None:
    torch.set_flush_denormal(True)
    try:
        options = tyro.cli(LabelStudy, prog="python -m benchmarks.label_study", description=__doc__)
        trained = read_trained(options.run)
        config = trained.config if options.root is None else replace(trained.config, root=options.root)
        data = load(config)
        results = study(trained.net(), data, config, options.batches)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            content = {"run": config.plain(), "batches": options.batches, "variants": results}
            write_json(options.out, content | {"environment": environment(config.device)})
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    Console().print(table(results))


if __name__ == "__main__":
    main()
