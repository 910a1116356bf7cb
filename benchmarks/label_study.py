"""What pseudo-labels are worth: a trained network's, under many options, beside its own predictions.

    python -m benchmarks.label_study runs/jsrt/rpg-n3-s0-seed0 --out labels.json

Nothing is trained. The network stays as it is, pools and unlabeled images are drawn and augmented as in training, and
pseudo-labels and predictions are compared with the labels held back, on the same pixels. So the options differ in
nothing but themselves, where whole runs differ by chance as well. A pseudo-label can teach what the network does not
know yet only where the two differ, and should be right there more often than the prediction.

With --encoder pixels are matched in features of the pretrained encoder, too, which the network has no part in.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from examples.config import Config
from examples.data import Dataset, load
from examples.data.loaders import PoolBatches, UnlabeledBatches
from examples.engine.metrics import class_masks, known_pixels, predicted_masks, with_background
from examples.inference.trained import read_trained
from examples.logging.environment import environment
from examples.logging.run_folder import write_json
from examples.methods.rpg import beside
from examples.models.base import Network
from examples.models.encoders import LITE0_LAYERS, lite0
from rpg_loss import FrozenFeatures, RPGLoss
from rpg_loss.maps import subsample

SHARES = (0.0025, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
SMALL = (0.0025, 0.01, 0.05)  # shares that features of the encoder are tried with
SIDES = (16, 32, 64)
POSITIONS = (0.5, 1.0, 2.0)
WEIGHT_BINS = 10  # of equal width, from 0 to 1, in which shares of right labels are counted


@dataclass(frozen=True)
class LabelStudy:
    """Compare pseudo-labels of a trained network under many options with its own predictions."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a finished run, or its best.pt."""

    out: Path | None = None
    """JSON file for the figures, with those of every class; none if not given."""

    batches: int = 30
    """Draws of a pool and of unlabeled images that are compared."""

    encoder: bool = False
    """Match in features of the pretrained EfficientNet-lite0 as well, of several layers and with places."""

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
        layers: Of the pretrained encoder, in which pixels are matched; none: in the network's own features.
        positions: As in :class:`rpg_loss.FrozenFeatures`.
        own: Whether the network's own features stand before them.
    """

    k: float
    side: int
    pool_size: int
    layers: tuple[str, ...] = ()
    positions: float = 0.0
    own: bool = False


def variants(config: Config, *, encoder: bool = False) -> dict[str, Variant]:
    """Return the variants by what they change of a run's own setting."""
    share = config.k / (config.pool_size * config.side**2) if isinstance(config.k, int) else config.k
    own = Variant(share, config.side, config.pool_size)
    frozen = replace(own, layers=LITE0_LAYERS)
    trained = {"network": own, "frozen": frozen, "both": replace(frozen, own=True)}[config.features]
    of_encoder = {
        "encoder": frozen,
        **{f"encoder, k = {100 * share:g}%": replace(frozen, k=share) for share in SMALL},
        **{f"encoder, {layer}": replace(frozen, layers=(layer,)) for layer in LITE0_LAYERS},
        **{f"encoder, positions {length}": replace(frozen, positions=length) for length in POSITIONS},
        "network and encoder": replace(frozen, own=True),
    }
    return {
        "as trained": trained,
        **{f"k = {100 * share:g}%": replace(own, k=share) for share in SHARES},
        **{f"pool of {size}": replace(own, pool_size=size) for size in range(1, config.pool_size)},
        **{f"map of {side}": replace(own, side=side) for side in SIDES if config.side != side <= config.image_size},
        **(of_encoder if encoder else {}),
    }


class Tally:
    """Measures as ratios of sums over pixels: what is summed above the line, and below it."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = (*names, "background")
        self.sums: dict[str, Tensor] = {}

    def add(self, given: Tensor, own: Tensor, true: Tensor, weights: Tensor, known: Tensor) -> None:
        """Add masks (B, 1 + C, h, w) bool, background last, weights (B, h, w) and which pixels (B, h, w) count."""
        weights = weights.double() * known
        right, own_right = (((masks == true).all(1) & known) for masks in (given, own))
        differ = (given != own).any(1) & known
        each = known[:, None]
        bins = one_hot((weights * WEIGHT_BINS).long().clamp(max=WEIGHT_BINS - 1), WEIGHT_BINS).bool().movedim(-1, 1)
        assigned = ~given[:, -1] & known
        ratios = {
            "weight": (weights, known), "right": (right, known), "own_right": (own_right, known),
            "weighted_right": (weights * right, weights), "weighted_own_right": (weights * own_right, weights),
            "differ": (differ, known), "differ_right": (differ & right, differ),
            "differ_own_right": (differ & own_right, differ), "assigned": (assigned, known),
            "assigned_weight": (assigned * weights, assigned), "assigned_right": (assigned & right, assigned),
            "assigned_weighted_right": (assigned * weights * right, assigned * weights),
            "weight_per_class": (weights[:, None] * true, true & each),
            "iou_per_class": (given & true & each, (given | true) & each),
            "by_weight share": (bins & each, each.expand_as(bins)),
            "by_weight right": (bins & right[:, None], bins & each),
            "by_weight assigned": (bins & assigned[:, None], each.expand_as(bins)),
            "by_weight assigned_right": (bins & (assigned & right)[:, None], bins & assigned[:, None]),
        }  # fmt: skip
        for name, parts in ratios.items():
            sums = torch.stack([(part.sum((0, 2, 3)) if part.ndim == 4 else part.sum()).double() for part in parts])
            self.sums[name] = self.sums.get(name, torch.zeros(())) + sums.cpu()

    def measures(self) -> dict[str, Any]:
        """Return shares in [0, 1]; NaN where there is nothing to share out.

        * ``weight``: mean weight;
        * ``right``, ``own_right``: share of pixels where pseudo-label, or prediction, is right (in every label);
        * ``weighted_right``, ``weighted_own_right``: the same with every pixel counting as much as it weighs;
        * ``differ``: share of pixels where the two differ, ``differ_right``, ``differ_own_right``: who is right there;
        * ``assigned``: share of pixels that are given another label than background, and of these ``assigned_weight``,
          ``assigned_right`` and ``assigned_weighted_right``, as above;
        * ``weight_per_class``: mean weight of the pixels that are of a class; ``iou_per_class``: of the pseudo-labels;
        * ``by_weight``: in tenths of the weight, from 0 to 1, the ``share`` of the pixels and the share of right ones
          among them, and the same of pixels that are ``assigned``.
        """
        measures: dict[str, Any] = {"by_weight": {}}
        for name, (over, under) in self.sums.items():
            values = (over / under).tolist()
            if name.startswith("by_weight "):
                measures["by_weight"][name.removeprefix("by_weight ")] = values
            else:
                per_class = name.endswith("per_class")
                measures[name] = dict(zip(self.names, values, strict=True)) if per_class else values
        return measures


@torch.no_grad()
def study(
    net: Network, data: Dataset, config: Config, batches: int, *, encoder: bool = False
) -> dict[str, dict[str, Any]]:
    """Return the measures (see ``Tally``) of every variant that the data allows, by name."""
    net.train()  # views have their own batch statistics, as in training
    unlabeled = UnlabeledBatches(data, config.unlabeled_batch or 1, Generator().manual_seed(config.seed))
    pools = {size: pool for size in range(1, config.pool_size + 1) if (pool := pools_of(size, data, config))}
    wanted = {
        name: variant for name, variant in variants(config, encoder=encoder).items() if variant.pool_size in pools
    }
    encoders = {
        (variant.layers, variant.positions): FrozenFeatures(
            lite0(), variant.layers, size=config.side, positions=variant.positions
        ).to(data.labeled.images.device)
        for variant in wanted.values()
        if variant.layers
    }
    tallies = {name: Tally(data.class_names) for name in wanted}
    for _ in range(batches):
        views = {size: next(pool) for size, pool in pools.items()}
        view = next(unlabeled)
        logits, feat_u = net(view.images)
        own = {0: feat_u} | {size: net(pool.images)[1] for size, pool in views.items()}
        images = {0: view.images} | {size: pool.images for size, pool in views.items()}
        frozen = {key: {n: make(images[n]) for n in (0, config.pool_size)} for key, make in encoders.items()}
        predicted = with_background(predicted_masks(logits, multilabel=data.multilabel))
        true = with_background(class_masks(view.labels, len(data.class_names)))
        known = known_pixels(view.labels) & view.valid
        for name, variant in wanted.items():
            criterion = RPGLoss(variant.k, map_size=variant.side, check_values=False)
            features = frozen[variant.layers, variant.positions] if variant.layers else own
            feat_u, feat_ref = (
                beside(own[n], features[n]) if variant.own else features[n] for n in (0, variant.pool_size)
            )
            y_ref = views[variant.pool_size].labels
            labels, weights = criterion.pseudo_labels(feat_u, feat_ref, y_ref, valid_u=view.valid)
            given = with_background(class_masks(labels, len(data.class_names)))
            grid = tuple(weights.shape[1:])
            said, truth, count = (subsample(maps, grid) for maps in (predicted, true, known))
            tallies[name].add(given, said, truth, weights, count)
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


def tables(results: dict[str, dict[str, Any]]) -> Iterator[Table]:
    whole = [
        ("W", "weight"), ("p", "right"), ("o", "own_right"), ("W·p", "weighted_right"), ("W·o", "weighted_own_right"),
        ("differ", "differ"), ("p", "differ_right"), ("o", "differ_own_right"),
    ]  # fmt: skip
    assigned = [("W", "assigned_weight"), ("p", "assigned_right"), ("W·p", "assigned_weighted_right")]
    caption = "right; right where weighed by W; where the two differ, and which is right there"
    for title, columns, below in (
        ("Pseudo-labels (p) and own predictions (o), % of pixels", whole, caption),
        ("Those that p gives a class, %", assigned, None),
    ):
        shown = Table(title=title, caption=below, box=SIMPLE, padding=(0, 0, 0, 1))
        shown.add_column("option", no_wrap=True)
        for heading, _ in columns:
            shown.add_column(heading, justify="right", no_wrap=True)
        for name, measures in results.items():
            shown.add_row(name, *(f"{100 * measures[key]:.1f}" for _, key in columns))
        yield shown


def main() -> None:
    torch.set_flush_denormal(True)
    try:
        options = tyro.cli(LabelStudy, prog="python -m benchmarks.label_study", description=__doc__)
        trained = read_trained(options.run)
        config = trained.config if options.root is None else replace(trained.config, root=options.root)
        data = load(config)
        results = study(trained.net(), data, config, options.batches, encoder=options.encoder)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            content = {"run": config.plain(), "batches": options.batches, "variants": results}
            write_json(options.out, content | {"environment": environment(config.device)})
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    Console().print(*tables(results))


if __name__ == "__main__":
    main()
