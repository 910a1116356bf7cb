"""The configuration of one training run: its options by group, their rules, and which of them apply to what."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import tyro

from examples.typed_fields import typed_fields

MethodName = Literal[
    "supervised", "pseudolabel", "nearest_neighbor", "fixmatch", "iic", "mean_teacher", "mlds", "rpg", "rpg_plus",
    "transfer",
]  # fmt: skip
DatasetName = Literal["phantom", "phantom_exclusive", "oct_phantom", "jsrt", "retouch", "folder"]
Vendor = Literal["spectralis", "cirrus", "topcon"]
RetinaView = Literal["whole", "crop", "flatten"]

# --- which option applies to what

# The data sets that read an option; all read the others.
DATASET_FLAGS = {
    "root": ("jsrt", "retouch", "folder"),
    "color": ("folder",),
    "group_pattern": ("folder",),
    "vendor": ("retouch",),
    "retina": ("retouch",),
    "skip_unreadable": ("jsrt", "folder"),
}
# The options that studies vary, and the methods that they apply to.
METHOD_NAMES: tuple[str, ...] = get_args(MethodName)
UNLABELED = tuple(method for method in METHOD_NAMES if method != "supervised")
ABLATIONS: dict[str, tuple[str, ...]] = {
    "k": ("rpg", "rpg_plus"),
    "pool_size": METHOD_NAMES,
    "map_size": ("nearest_neighbor", "rpg", "rpg_plus"),
    "weighted": ("rpg", "rpg_plus"),
    "features": ("nearest_neighbor", "rpg", "rpg_plus"),
    "threshold": ("pseudolabel", "fixmatch", "rpg_plus"),
    "cutout": ("fixmatch", "rpg_plus"),
    "batch_norm": tuple(method for method in METHOD_NAMES if method not in ("supervised", "mlds")),
    "lambda_u": UNLABELED,
    "warm_up": UNLABELED,
    "ema": tuple(method for method in METHOD_NAMES if method not in ("mean_teacher", "mlds")),
}
# Where a run takes place, and how often it is saved, does not make it another one.
RUN_ENV_FIELDS = ("root", "out", "overwrite", "device", "cache_mib", "checkpoint_every")


def applies_to(method: str, option: str) -> bool:
    """Return whether an option changes anything for a method."""
    return option not in ABLATIONS or method in ABLATIONS[option]


class PaperSchedule(NamedTuple):
    """The paper's passes over the unlabeled images, and how many of them a step takes."""

    passes: int
    unlabeled_batch: int


def paper_schedule(dataset: str) -> PaperSchedule:
    return PaperSchedule(50, 5) if dataset in ("retouch", "oct_phantom") else PaperSchedule(100, 2)


# --- the options, one class for each group that --help shows

# Not a docstring: tyro keeps the line breaks of those.
DATASET_HELP = (
    "jsrt: chest radiographs, read from --root. retouch: retinal OCT volumes, read from --root. folder: your own"
    " images/ and masks/ below --root. phantom: chest-like images drawn on the fly, with overlapping labels;"
    " phantom_exclusive: with classes that exclude each other. oct_phantom: drawn B-scans of retinal OCT with fluid, of"
    " which half are healthy."
)


@dataclass(frozen=True)
class MainOptions:
    """What every user needs."""

    dataset: Annotated[tyro.conf.Positional[DatasetName], tyro.conf.arg(help=DATASET_HELP)]

    method: MethodName = "rpg_plus"
    """What the unlabeled images are used for; one file each in examples/methods/."""

    root: Path | None = None
    """Folder the data set is read from; the drawn ones need none."""

    labeled: int = 3
    """Number of labeled images, N_l (paper: 3, 6, 12, 24)."""

    device: str = "auto"
    """Where to train: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""

    out: Path | None = None
    """Folder for results; default runs/{dataset}/{method}-n{labeled}-s{split}-seed{seed}."""


@dataclass(frozen=True)
class DataOptions:
    """Which images, and how they are read."""

    split: int = 0
    """Which draw of labeled and validation images; jsrt: 0 to 4, retouch: the fold, 0 to 9 (both are committed)."""

    image_size: int = 512
    """Side of the square images, in pixels; a multiple of 16 (paper: 512)."""

    color: bool = False
    """folder: keep the colors of images, as red, green and blue; without it, color becomes gray."""

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

    cache_mib: int = 4096
    """retouch: MiB of decoded images to keep in memory; what does not fit is read again every time."""


@dataclass(frozen=True)
class ScheduleOptions:
    """All lengths are in iterations; an iteration is one optimizer step."""

    iterations: int | None = None
    """Length of the run; default: the paper's passes over unlabeled images (retouch, oct_phantom 50, others 100)."""

    double_length: bool = False
    """Train twice as long, as for the starred results of the paper's tables."""

    eval_every: int | None = None
    """Iterations from one validation to the next; default: ten passes over the unlabeled images, as in the paper."""

    checkpoint_every: int = 500
    """Iterations from one checkpoint that a stopped run goes on from to the next; validations save one, too."""

    pool_size: int = 3
    """Labeled images in each step: the reference pool, p (paper: 3)."""

    unlabeled_batch: int | None = None
    """Unlabeled images in each step; default: as in the paper, 5 for retouch and oct_phantom, 2 for the others."""

    learning_rate: float = 5e-4
    """Learning rate of Adam (paper: 5e-4)."""

    weight_decay: float = 5e-4
    """Weight decay of Adam (paper: 5e-4)."""

    seed: int = 0
    """Seed of everything random: weights, draws, augmentation."""


@dataclass(frozen=True)
class MethodOptions:
    """The network, and what the methods have in the paper."""

    network: str = "unet"
    """unet (the paper's), unet_lite0 (on a pretrained encoder) or module:callable of (in_channels, num_outputs)."""

    base_channels: int = 64
    """Width of the UNet's first level; each deeper level doubles it (paper: 64, up to 1024)."""

    k: int | float = 7000 / (3 * 64 * 64)
    """rpg, rpg_plus: nearest references that count, a number or a share in (0, 1] (paper: 7000 of 3 * 64 * 64)."""

    map_size: int | None = 64
    """Side s of the sub-sampled maps on which pixels are matched (paper: 64); None: every pixel."""

    threshold: float = 0.95
    """Confidence above which pseudolabel, fixmatch and rpg_plus keep a prediction, tau (paper: 0.8 and 0.95)."""

    ema: bool = False
    """Keep and evaluate a moving average of the weights, as mean_teacher and mlds do anyway (paper: not)."""


@dataclass(frozen=True)
class AblationOptions:
    """What studies vary."""

    weighted: bool = True
    """rpg, rpg_plus: weigh pseudo-labels by the entropy of their proximities; if not, all alike (W = 1)."""

    features: Literal["network", "frozen", "both"] = "network"
    """rpg, rpg_plus, nearest_neighbor: match in features of the network, of a frozen EfficientNet-lite0, or of both."""

    lambda_u: float = 1.0
    """Weight of the loss on unlabeled images (paper: 1)."""

    warm_up: float = 0.0
    """Share of the run before unlabeled images are learned from (paper: 0)."""

    cutout: Literal["background", "ignore"] = "background"
    """fixmatch, rpg_plus: what the strong view's CutOut square is to be (paper: background)."""

    batch_norm: Literal["separate", "shared"] = "separate"
    """Forward pool, weak and strong views each with its own batch statistics, or all in one batch."""


@dataclass(frozen=True)
class DeviceOptions:
    """How it is computed."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """What the network computes in; bf16: faster on GPUs from Ampere on and some CPUs; the rest is float32."""


@dataclass(frozen=True)
class OutputOptions:
    """The run's folder."""

    overwrite: bool = False
    """Start again where the folder holds an earlier run, finished or not, and replace it."""


@dataclass(frozen=True)
class Config(
    OutputOptions, DeviceOptions, AblationOptions, MethodOptions, ScheduleOptions, DataOptions, MainOptions
):  # fmt: skip
    """All options of a run; the defaults are the paper's. Fields are those of the bases, from the last to the first."""

    def __post_init__(self) -> None:
        """Fill in what depends on the data set, and refuse what could only fail later."""
        if self.unlabeled_batch is None:
            object.__setattr__(self, "unlabeled_batch", paper_schedule(self.dataset).unlabeled_batch)
        for name in ("labeled", "image_size", "base_channels", "iterations", "eval_every", "pool_size",
                     "unlabeled_batch", "checkpoint_every", "map_size"):  # fmt: skip
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more")
        require(self.split >= 0, "split", self.split, "0 or more")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 or more, and less than 2^32")
        gray = f"it for a folder alone: the images of {self.dataset} are gray"
        require(not self.color or self.dataset == "folder", "color", self.color, gray)
        require(self.image_size % 16 == 0, "image_size", self.image_size, "a multiple of 16, for the UNet")
        require(self.side <= self.image_size, "map_size", self.side, f"at most --image-size {self.image_size}")
        require(self.cache_mib >= 0, "cache_mib", self.cache_mib, "0 or more")
        require(0.5 <= self.threshold < 1, "threshold", self.threshold, "in [0.5, 1)")
        require(0 <= self.lambda_u < math.inf, "lambda_u", self.lambda_u, "0 or more, and finite")
        require(0 <= self.warm_up < 1, "warm_up", self.warm_up, "a share in [0, 1)")
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "more than 0, and finite")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more, and finite")
        networks = ("unet", "unet_lite0")
        known = self.network in networks or ":" in self.network
        require(known, "network", self.network, f"{', '.join(networks)} or module:callable")
        levels = self.method != "mlds" or self.network in networks
        require(levels, "network", self.network, f"{' or '.join(networks)} for mlds, which puts heads on every level")
        references = self.pool_size * self.side**2
        if isinstance(self.k, int):
            expected = f"1 to pool_size * map_size^2 = {references}, or a share such as 0.57"
            require(not applies_to(self.method, "k") or 1 <= self.k <= references, "k", self.k, expected)
        else:
            require(0 < self.k <= 1, "k", self.k, "a share in (0, 1] or an int")

    @property
    def side(self) -> int:
        """Side of the maps on which pixels are matched and pseudo-labels logged."""
        return self.image_size if self.map_size is None else self.map_size

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return 3 if self.color else 1

    @property
    def out_dir(self) -> Path:
        """``out``, or its default."""
        name = f"{self.method}-n{self.labeled}-s{self.split}-seed{self.seed}"
        return self.out or Path("runs", self.dataset, name)

    def plain(self) -> dict[str, str | int | float | bool | None]:
        """Return the fields as JSON and checkpoints hold them, paths as text."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Config:
        """Return the inverse of ``plain``."""
        return cls(**typed_fields(cls, plain))

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Return, in words, the options that make this another run than the one of ``other``, its ``plain()``."""
        usual = defaults(self.dataset)
        there = {name: other.get(name, usual[name]) for name in usual}
        return [
            f"{name} {there[name]} there, {value} now"
            for name, value in self.plain().items()
            # As text: k = 1 is one neighbor and k = 1.0 all of them.
            if name not in RUN_ENV_FIELDS and json.dumps(there[name]) != json.dumps(value)
        ]


def defaults(dataset: str) -> dict[str, Any]:
    """Return the value of every option that is not given, for a data set."""
    plain = {field.name: None if field.default is MISSING else field.default for field in fields(Config)}
    return {**plain, "unlabeled_batch": paper_schedule(dataset).unlabeled_batch}


def require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}: got {value}, expected {expected}")
