"""The configuration of one training run, which is also its command line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

MethodName = Literal[
    "supervised",
    "pseudolabel",
    "nearest_neighbor",
    "fixmatch",
    "iic",
    "mean_teacher",
    "mlds",
    "rpg",
    "rpg_plus",
    "rpg_best",
]
DatasetName = Literal["phantom", "phantom_exclusive", "phantom_fine", "oct_phantom", "jsrt", "retouch", "folder"]
Vendor = Literal["spectralis", "cirrus", "topcon"]
RetinaView = Literal["whole", "crop", "flatten"]

# The paper's epochs and unlabelled images a step.
LENGTH = {"epochs": 100, "unlabeled_batch": 2}
LENGTHS = {dataset: {"epochs": 50, "unlabeled_batch": 5} for dataset in ("retouch", "oct_phantom")}
# Options that a method brings with it, whatever is asked for.
OWN: dict[str, dict[str, Any]] = {"rpg_best": {"k": 0.1, "warm_up": 0.4, "average": True}}
# Where a run takes place, and how often it is saved, does not make it another one.
RUN_ENV_FIELDS = ("root", "out", "overwrite", "device", "cache_mib", "checkpoint_every")

# Not a docstring: tyro keeps the line breaks of those.
DATASET_HELP = (
    "jsrt: chest radiographs, read from --root. retouch: retinal OCT volumes, read from --root. folder: your own"
    " images/ and masks/ below --root. phantom: chest-like images drawn on the fly, with overlapping labels;"
    " phantom_exclusive: with classes that exclude each other; phantom_fine: with --fine-labels overlapping labels."
    " oct_phantom: drawn B-scans of retinal OCT with fluid, of which half are healthy."
)


@dataclass(frozen=True)
class Config:
    """Train a UNet with few labelled and many unlabelled images; the defaults are the paper's."""

    dataset: Annotated[tyro.conf.Positional[DatasetName], tyro.conf.arg(help=DATASET_HELP)]

    method: MethodName = "rpg_plus"
    """What the unlabelled images are used for; one file each in examples/methods/. rpg*: all that begin so."""

    labeled: int = 3
    """Number of labelled images, N_l (paper: 3, 6, 12, 24)."""

    split: int = 0
    """Which draw of labelled and validation images; jsrt: 0 to 4, retouch: the fold, 0 to 9 (both are committed)."""

    seed: int = 0
    """Seed of everything random: weights, draws, augmentation."""

    root: Path | None = None
    """Folder the data set is read from; the drawn ones need none."""

    group_pattern: str | None = None
    """folder: regular expression; images whose names agree in its first group (a patient) are never divided."""

    vendor: Vendor = "spectralis"
    """retouch: whose volumes are used (paper: spectralis)."""

    retina: RetinaView = "whole"
    """retouch: whole B-scans; cropped to the rows around the retina; or its lowest bright layer made level first."""

    fuse: Path | None = None
    """JSON file {"label": ["fine label", ...], ...}: evaluate these unions of the labels that are trained."""

    skip_unreadable: bool = False
    """jsrt, folder: leave out images that cannot be decoded, or one of whose masks cannot, and count them."""

    fine_labels: int = 72
    """phantom_fine: number of labels, each a part of one of the five structures, overlapping (paper: 72)."""

    out: Path | None = None
    """Folder for results; default runs/{dataset}/{method}-n{labeled}-s{split}-seed{seed}."""

    overwrite: bool = False
    """Start again where the folder holds an earlier run, finished or not, and replace it."""

    checkpoint_every: int = 500
    """Steps from one checkpoint, for a run that is cut short to go on from, to the next; validations save one, too."""

    image_size: int = 512
    """Side of the square images, in pixels; a multiple of 16 (paper: 512)."""

    base_channels: int = 64
    """Width of the UNet's first level; each deeper level doubles it (paper: 64, up to 1024)."""

    epochs: int | None = None
    """Passes over the unlabelled images; None: as in the paper, 50 for retouch and oct_phantom, 100 for the others."""

    iterations: int | None = None
    """Optimiser steps, instead of --epochs."""

    double_length: bool = False
    """Train twice as long, as for the starred results of the paper's tables."""

    eval_every: int = 10
    """Epochs from one validation to the next; there is always one at the end (paper: 10)."""

    pool_size: int = 3
    """Labelled images in each step: the reference pool, p (paper: 3)."""

    balanced_crops: float = 0.0
    """Share of the pool's images that are cropped closely around a pixel of a class, each class alike (paper: 0)."""

    unlabeled_batch: int | None = None
    """Unlabelled images in each step; None: as in the paper, 5 for retouch and oct_phantom, 2 for the others."""

    map_size: int | None = 64
    """Side s of the sub-sampled maps on which pixels are matched (paper: 64); None: every pixel."""

    k: int | float = 7000 / (3 * 64 * 64)
    """Nearest references that count: a number, or a share of all in (0, 1] (paper: 7000 of 3 * 64 * 64)."""

    balanced_k: bool = False
    """rpg*: all label sets have the same say in where the k nearest end; wants --k below 1 / their number."""

    entropy_over: Literal["sets", "labels"] = "sets"
    """rpg*: weigh by the entropy over the label sets that occur (paper), or over single labels and "none"."""

    temperature: float = 1.0
    """rpg*: below 1 weights rise, above 1 they fall: proximities are taken to the power 1 / T (paper: 1)."""

    weighted: bool = True
    """rpg*: weigh pseudo-labels by the entropy of their proximities; if not, all alike (W = 1)."""

    resolution: Literal["map", "full"] = "map"
    """rpg*: take the loss on the map of --map-size, or on every pixel with labels enlarged to it."""

    normalize_by: Literal["entries", "weights"] = "entries"
    """rpg*: divide the weighted loss by the number of pixels (paper) or by the sum of their weights."""

    bank_mib: float = 0.0
    """nearest_neighbor, rpg*: MiB of references of past pools to match against as well; 0: none (paper)."""

    bank_age: int = 10
    """Steps that references of past pools are kept for, with --bank-mib."""

    coordinates: float = 0.0
    """nearest_neighbor, rpg*: length of a pixel's place, behind features of length 1 in matching; 0: none (paper)."""

    matched_levels: int = 1
    """nearest_neighbor, rpg*: number of the UNet's last levels that are matched, each of length 1 (paper: 1)."""

    average_features: bool = False
    """nearest_neighbor, rpg*: match the features of the moving average of --average (paper: not)."""

    agreement: bool = False
    """nearest_neighbor, rpg*: weight 0 where the network itself predicts another label (paper: not)."""

    threshold: float = 0.95
    """Confidence above which pseudolabel, fixmatch and rpg_plus keep a prediction, tau (paper: 0.8 and 0.95)."""

    cutout: Literal["background", "ignore"] = "background"
    """fixmatch, rpg_plus: what the strong view's CutOut square is taught (paper: background)."""

    cutmix: bool = False
    """fixmatch, rpg_plus: half of each strong view is a box of another one's, targets too (paper: not)."""

    strong_labels: bool = False
    """rpg_plus: teach the reference-guided pseudo-labels to the strong view as well (paper: not)."""

    batch_norm: Literal["separate", "shared"] = "separate"
    """Forward pool, weak and strong views each with its own batch statistics, or all in one batch."""

    sync_batch_norm: bool = True
    """With several processes (torchrun): batch statistics of all of them, not of each one's few images."""

    lambda_u: float = 1.0
    """Weight of the loss on unlabelled images (paper: 1)."""

    warm_up: float = 0.0
    """Share of the run before unlabelled images are learned from (paper: 0)."""

    average: bool = False
    """Keep and evaluate a moving average of the weights, as mean_teacher and mlds do anyway (paper: not)."""

    learning_rate: float = 5e-4
    """Learning rate of Adam (paper: 5e-4)."""

    weight_decay: float = 5e-4
    """Weight decay of Adam (paper: 5e-4)."""

    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, ..."""

    cache_mib: int = 4096
    """retouch: MiB of decoded images to keep in memory; what does not fit is read again every time."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """What the network computes in; bf16: faster on GPUs from Ampere on and some CPUs; the rest is float32."""

    compile: bool = False
    """Compile the network with torch.compile; takes minutes at the start and on the CPU we tried did not pay."""

    def __post_init__(self) -> None:
        """Fill in what depends on the data set, and refuse what could only fail later, naming the argument."""
        for name, value in paper_length(self.dataset).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # the class is frozen
        for name, value in OWN.get(self.method, {}).items():
            object.__setattr__(self, name, value)
        for name in ("labeled", "image_size", "base_channels", "epochs", "eval_every", "pool_size",
                     "unlabeled_batch", "checkpoint_every", "side", "fine_labels", "bank_age"):  # fmt: skip
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.split >= 0, "split", self.split, "0 or more")
        require(self.iterations is None or self.iterations >= 1, "iterations", self.iterations, "1 or more")
        require(self.image_size % 16 == 0, "image_size", self.image_size, "a multiple of 16, for the UNet")
        require(self.side <= self.image_size, "map_size", self.side, f"at most --image-size {self.image_size}")
        require(0 <= self.balanced_crops <= 1, "balanced_crops", self.balanced_crops, "a share in [0, 1]")
        require(self.cache_mib >= 0, "cache_mib", self.cache_mib, "0 or more")
        require(0 <= self.bank_mib < math.inf, "bank_mib", self.bank_mib, "0 or more, and finite")
        require(0.5 <= self.threshold < 1, "threshold", self.threshold, "in [0.5, 1)")
        require(0 <= self.lambda_u < math.inf, "lambda_u", self.lambda_u, "0 or more, and finite")
        require(0 <= self.warm_up < 1, "warm_up", self.warm_up, "a share in [0, 1)")
        require(1 <= self.matched_levels <= 5, "matched_levels", self.matched_levels, "1 to 5, the UNet's levels")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "more than 0, and finite")
        require(0 <= self.coordinates < math.inf, "coordinates", self.coordinates, "0 or more, and finite")
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "more than 0, and finite")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more, and finite")
        require(self.average or not self.average_features, "average_features", True, "--average with it")
        enough = not self.cutmix or (self.unlabeled_batch or 0) > 1
        require(enough, "unlabeled_batch", self.unlabeled_batch, "2 or more with --cutmix, which mixes two images")
        references = self.pool_size * self.side**2
        if isinstance(self.k, int):
            expected = f"1 to pool_size * map_size^2 = {references}, or a share such as 0.57"
            require(not self.uses_references or 1 <= self.k <= references, "k", self.k, expected)
        else:
            require(0 < self.k <= 1, "k", self.k, "a share in (0, 1] or an int")

    @property
    def side(self) -> int:
        """Side of the maps on which pixels are matched and pseudo-labels logged."""
        return self.image_size if self.map_size is None else self.map_size

    @property
    def cache_bytes(self) -> int:
        return self.cache_mib * 2**20

    @property
    def uses_references(self) -> bool:
        """Whether the method looks at the k nearest references."""
        return self.method in ("rpg", "rpg_plus", "rpg_best")

    def plain(self) -> dict[str, str | int | float | bool | None]:
        """The fields as JSON and checkpoints hold them, paths as text."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """The options that make this another run than the one of ``other`` (what ``plain`` gave then), in words."""
        usual = defaults(self.dataset)
        there = {name: other.get(name, usual[name]) for name in usual}
        return [
            f"{name} {there[name]} there, {value} now"
            for name, value in self.plain().items()
            # As text: k = 1 is one neighbour and k = 1.0 all of them.
            if name not in RUN_ENV_FIELDS and json.dumps(there[name]) != json.dumps(value)
        ]

    @property
    def out_dir(self) -> Path:
        """``out``, or its default."""
        name = f"{self.method}-n{self.labeled}-s{self.split}-seed{self.seed}"
        return self.out or Path("runs", self.dataset, name)


def paper_length(dataset: str) -> dict[str, int]:
    """The paper's ``epochs`` and ``unlabeled_batch`` for a data set."""
    return LENGTHS.get(dataset, LENGTH)


def defaults(dataset: str) -> dict[str, Any]:
    """The value of every option that is not given, for a data set."""
    plain = {field.name: None if field.default is MISSING else field.default for field in fields(Config)}
    return {**plain, **paper_length(dataset)}


def require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}: got {value}, expected {expected}")
