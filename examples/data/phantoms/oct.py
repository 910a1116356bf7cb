"""Drawn OCT volumes of the macula with fluid: no download, every volume and B-scan a function of its index.

A volume lives in the unit cube: x along a B-scan, y from B-scan to B-scan (6 mm each), z into the depth (2 mm), so
that it can be cut into any number of B-scans of any size. Layers are surfaces over (x, y). Fluids are bodies in the
volume and therefore persist from one B-scan to the next:

* IRF, intraretinal: a cluster of rounded cysts in the inner and outer nuclear layers, with septa between them;
* SRF, subretinal: a dome between the photoreceptors and the retinal pigment epithelium (RPE);
* PED, pigment epithelial detachment: a dome between the RPE, which it lifts, and Bruch's membrane.

Fluids are as dark as the vitreous, the outer nuclear layer or the shadow of a vessel, and PEDs as bright as the
choroid: what they are is a matter of where they lie. Speckle is that of an image of 512 x 496 pixels; in a smaller one,
each pixel is the mean of several of those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from examples.config import Config
from examples.data.base import Dataset, ImageSet, to_unit_range
from examples.data.splits import best_of

CLASSES = ("irf", "srf", "ped")
IRF, SRF, PED = 1, 2, 3
# Which fluids a volume holds, in turn: any four volumes in a row hold every fluid.
CARRIED = (("irf",), ("srf", "ped"), ("irf", "srf"), ("irf", "srf", "ped"))

TRAIN, VALIDATION, TEST = 20, 4, 8  # volumes
B_SCANS = 16  # of each volume
SHOWN = 1e-3  # share of a B-scan that a fluid takes at least, to count for the choice of the labeled ones
CHOICE_SIDE = 64  # they are chosen by drawings of this size: the same ones whatever the image size
SEED = 2017

# From the vitreous down: thickness in shares of the depth, away from the fovea, and reflectivity. Fluids are layers
# that are 0 thick where there is none.
LAYERS = {
    "nfl": (0.014, 0.58), "gcl_ipl": (0.040, 0.36), "inl": (0.018, 0.22), "opl": (0.014, 0.36), "onl": (0.036, 0.18),
    "is": (0.010, 0.30), "ez": (0.007, 0.70), "os": (0.010, 0.42), "srf": (0.0, 0.0), "rpe": (0.012, 0.92),
    "ped": (0.0, 0.0), "choroid": (0.0, 0.42),
}  # fmt: skip
INNER = ("nfl", "gcl_ipl", "inl", "opl")  # missing in the foveal pit
SEPTUM = 0.18  # width of the walls between cysts, in squared radii
SPECKLE_GRAINS = 512 * 496

Array = NDArray[np.float32]
Labels = NDArray[np.uint8]
Pair = tuple[float, float]  # along x and y
BScan = tuple[int, int]  # index of the volume, number in it


class Waves:
    """A smooth random function of unit variance: a sum of plane waves, hence the same at every size."""

    def __init__(self, rng: Generator, *frequencies: float, count: int = 6):
        self.vectors = (rng.normal(0, 1, (count, len(frequencies))) * frequencies * 2 * np.pi).astype(np.float32)
        self.phases = rng.uniform(0, 2 * np.pi, count).astype(np.float32)

    def __call__(self, *point: Array | float) -> Array:
        total: Any = np.float32(0)
        for vector, phase in zip(self.vectors, self.phases, strict=True):
            total = total + np.cos(sum(f * p for f, p in zip(vector, point, strict=True)) + phase)
        scaled: Array = total * np.float32(np.sqrt(2 / len(self.phases)))
        return scaled


@dataclass(frozen=True)
class Dome:
    """Fluid on a surface."""

    center: NDArray[np.float64]  # (x, y)
    radii: NDArray[np.float64]
    height: float
    uneven: Waves

    def __call__(self, x: Array, y: float) -> Array:
        """Its height over each x (W,), 0 outside."""
        inside = np.maximum(
            0, 1 - ((x - self.center[0]) / self.radii[0]) ** 2 - ((y - self.center[1]) / self.radii[1]) ** 2
        )
        return self.height * inside**0.7 * (1 + 0.2 * self.uneven(x, y))


@dataclass(frozen=True)
class Cysts:
    """A cluster of n cysts; depths are relative: 0 at the top of the inner nuclear layer, 1 below the outer one."""

    centers: NDArray[np.float64]  # (n, 3)
    radii: NDArray[np.float64]  # (n, 3)
    swelling: float
    uneven: Waves

    def thickening(self, x: Array, y: float) -> Array:
        """Return by how much the cluster thickens the retina over each x (W,)."""
        middle, spread = self.centers[:, :2].mean(0), 2 * self.centers[:, :2].std(0) + self.radii[:, :2].mean(0)
        return bump(x, y, middle, spread) * self.swelling

    def inside(self, x: Array, y: float, depth: Array) -> NDArray[np.bool_]:
        """Return which pixels of a B-scan (H, W) with columns x (W,) and the given relative depths are in a cyst."""
        nearest, second = np.full((2, *depth.shape), 2, np.float32)  # in squared radii; 1 is the rim
        wavy = x + 0.006 * self.uneven(x, y)
        for center, radii in zip(self.centers, self.radii, strict=True):
            across = ((wavy - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2
            columns = (across < 1).nonzero()[0]
            distance = across[columns] + ((depth[:, columns] - center[2]) / radii[2]) ** 2
            before = nearest[:, columns]
            second[:, columns] = np.minimum(second[:, columns], np.maximum(before, distance))
            nearest[:, columns] = np.minimum(before, distance)
        wall = (second < 1) & (second - nearest < SEPTUM)
        found: NDArray[np.bool_] = (nearest < 1) & ~wall
        return found


def bump(x: Array, y: float, center: NDArray[np.float64], radii: float | NDArray[np.float64]) -> Array:
    """Return a Gaussian hill over x (W,)."""
    rx, ry = np.broadcast_to(radii, 2)
    hill: Array = np.exp(-(((x - center[0]) / rx) ** 2) - ((y - center[1]) / ry) ** 2)
    return hill


class Volume:
    """The eye of one index: its surfaces, fluids and vessels, and how it is imaged."""

    def __init__(self, index: int):
        self.index = index
        rng = np.random.default_rng([SEED, index])
        self.level, self.curvature = rng.uniform(0.52, 0.70), rng.uniform(-0.08, 0.36)
        self.tilt, self.fovea = rng.normal(0, 0.06, 2), rng.normal(0.5, 0.05, 2)
        self.pit, self.nasal = rng.uniform(0.75, 0.95), rng.choice([-1, 1])
        self.thickness = {name: value * rng.uniform(0.9, 1.15) for name, (value, _) in LAYERS.items()}
        self.uneven = {name: Waves(rng, 2.5, 2.5) for name in ("bruch", "thickness", "gain")}

        carried = CARRIED[index % len(CARRIED)]
        self.srf = [self.draw_dome(rng, (0.24, 0.18), (0.38, 0.28), 0.03, 0.085)] if "srf" in carried else []
        self.ped = [self.draw_dome(rng, (0.18, 0.14), (0.34, 0.24), 0.03, 0.08)] if "ped" in carried else []
        self.cysts = [self.draw_cysts(rng)] if "irf" in carried else []

        self.reflectivity = {name: value * rng.lognormal(0, 0.12) for name, (_, value) in LAYERS.items()}
        self.vitreous = rng.uniform(0.02, 0.10)
        self.reflectivity["srf"] = rng.uniform(0.03, 0.18)
        self.reflectivity["ped"] = rng.uniform(0.05, 0.38)
        self.irf = rng.uniform(0.03, 0.13)
        self.fading = rng.uniform(0.05, 0.10)  # depth below Bruch's membrane after which 1/e is left
        self.choroid_vessels = Waves(rng, 14, 5, 14, count=8)
        self.vessels = [
            (rng.uniform(0, 1), rng.normal(0, 0.3), rng.uniform(0.004, 0.013), rng.uniform(0.3, 0.85))
            for _ in range(rng.integers(4, 11))
        ]  # x in the middle, slope, half width, darkness of the shadow
        self.looks, self.floor = rng.uniform(1.0, 4.0), rng.uniform(0.015, 0.05)  # of speckle; of brightness
        self.exposure, self.gamma = rng.uniform(0.8, 1.2), rng.uniform(0.7, 1.2)

    def draw_dome(self, rng: Generator, narrow: Pair, wide: Pair, low: float, high: float) -> Dome:
        center = self.fovea + rng.normal(0, 0.08, 2)
        return Dome(center, rng.uniform(narrow, wide), rng.uniform(low, high), Waves(rng, 3, 3))

    def draw_cysts(self, rng: Generator) -> Cysts:
        count = rng.integers(40, 70)
        middle = self.fovea + rng.normal(0, 0.08, 2)
        place = middle + rng.normal(0, 1, (count, 2)) * rng.uniform((0.10, 0.07), (0.18, 0.10))
        depth = rng.choice([0.2, 0.66], count, p=[0.3, 0.7]) + rng.normal(0, 0.04, count)
        wide = 0.014 + 0.06 * rng.beta(1, 2, count)
        high = np.minimum(rng.uniform(0.14, 0.34, count), np.minimum(depth, 1 - depth))
        radii = np.stack([wide, wide * rng.uniform(1.0, 1.6, count), high], 1)
        return Cysts(np.concatenate([place, depth[:, None]], 1), radii, rng.uniform(0.05, 0.11), Waves(rng, 8, 4))

    def surfaces(self, x: Array, y: float) -> dict[str, Array]:
        """Return the depth of the upper surface of every layer over each x (W,)."""
        radius = (x - 0.5) ** 2 + (y - 0.5) ** 2
        surface = self.level + self.tilt[0] * (x - 0.5) + self.tilt[1] * (y - 0.5) - self.curvature * radius
        surface = surface + 0.008 * self.uneven["bruch"](x, y)
        pit = 1 - self.pit * bump(x, y, self.fovea, 0.10)
        rim = 1 + 0.35 * bump(x, y, self.fovea, 0.28)
        general = rim * (1 + 0.06 * self.uneven["thickness"](x, y))
        swelling = sum((cluster.thickening(x, y) for cluster in self.cysts), np.zeros_like(x))
        added = {
            "inl": 0.3 * swelling,
            "onl": 0.7 * swelling + 0.5 * self.thickness["onl"] * bump(x, y, self.fovea, 0.10),
            "srf": sum((dome(x, y) for dome in self.srf), np.zeros_like(x)),
            "ped": sum((dome(x, y) for dome in self.ped), np.zeros_like(x)),
        }
        tops = {}
        for name in reversed(LAYERS):
            thickness = self.thickness[name] * (general * pit if name in INNER else 1)
            if name == "nfl":
                thickness = thickness * (1 + 1.2 * self.nasal * (x - 0.5))
            surface = surface - thickness - added.get(name, 0)
            tops[name] = surface.astype(np.float32)
        return tops

    def axes(self, b_scan: int, b_scans: int, width: int, height: int) -> tuple[Array, float, Array]:
        """Return where pixels of a B-scan lie: x (W,), y, z (H, 1), moved a little, as patients do between B-scans."""
        rng = np.random.default_rng([SEED, self.index, b_scans, b_scan])
        dx, dz = rng.normal(0, [0.003, 0.004])
        x = (np.arange(width) + 0.5) / width + dx
        z = (np.arange(height) + 0.5) / height + dz
        return x.astype(np.float32), (b_scan + 0.5) / b_scans, z.astype(np.float32)[:, None]

    def label(self, b_scan: int, b_scans: int, width: int, height: int) -> Labels:
        """Return the class map (H, W) of B-scan ``b_scan`` of ``b_scans``."""
        x, y, z = self.axes(b_scan, b_scans, width, height)
        return self.fluids(x, y, z, self.surfaces(x, y))

    def fluids(self, x: Array, y: float, z: Array, tops: dict[str, Array]) -> Labels:
        """Return the class map (H, W) between surfaces ``tops``."""
        labels = np.zeros((len(z), len(x)), np.uint8)
        labels[(z >= tops["srf"]) & (z < tops["rpe"])] = SRF
        labels[(z >= tops["ped"]) & (z < tops["choroid"])] = PED
        for cluster in self.cysts:
            labels[cluster.inside(x, y, (z - tops["inl"]) / (tops["is"] - tops["inl"]))] = IRF
        return labels

    def draw(self, b_scan: int, b_scans: int, width: int, height: int) -> tuple[Array, Labels]:
        """Draw B-scan ``b_scan`` of ``b_scans``: its image (H, W) float32 in [0, 1] and its class map (H, W) uint8."""
        x, y, z = self.axes(b_scan, b_scans, width, height)
        tops = self.surfaces(x, y)
        labels = self.fluids(x, y, z, tops)
        rng = np.random.default_rng([SEED, self.index, b_scans, b_scan, 1])

        def below(surface: Array, softness: float = 0.0) -> Array:
            """Return how much of each pixel (H, W) lies below a surface (W,)."""
            return np.clip((z - surface) / (1 / height + softness) + 0.5, 0, 1)

        tissue = np.full(labels.shape, self.vitreous, np.float32)
        above = self.vitreous
        for name, top in reversed(tops.items()):
            tissue += (self.reflectivity[name] - above) * below(top)
            above = self.reflectivity[name]
        tissue[labels == IRF] = self.irf
        depth = np.maximum(0, z - tops["choroid"])
        tissue *= np.exp(-depth / self.fading) * (1 + 0.3 * np.minimum(1, depth * 40) * self.choroid_vessels(x, y, z))
        shadow = np.zeros_like(x)
        for middle, slope, half, darkness in self.vessels:
            shadow = np.maximum(shadow, darkness * np.exp(-(((x - middle - slope * (y - 0.5)) / half) ** 2)))
        tissue += 0.4 * shadow * (below(tops["nfl"]) - below(tops["gcl_ipl"], 0.01))
        tissue *= 1 - shadow * below(tops["gcl_ipl"], 0.02)

        gain = self.exposure * rng.lognormal(0, 0.1) * (1 + 0.15 * self.uneven["gain"](x, y))
        grains = self.looks * SPECKLE_GRAINS / labels.size
        speckle = rng.standard_gamma(grains, labels.shape, dtype=np.float32) / np.float32(grains)
        image = np.clip((self.floor + gain * tissue) * speckle, 0, 1) ** np.float32(self.gamma)
        return image.astype(np.float32), labels


def oct_set(b_scans: list[BScan], size: int) -> ImageSet:
    """Draw B-scans, each given as (volume, number in it)."""
    volumes = {index: Volume(index) for index, _ in b_scans}
    images, labels, names = [], [], []
    for index, number in b_scans:
        image, label = volumes[index].draw(number, B_SCANS, size, size)
        images.append(to_unit_range(torch.from_numpy(image)))
        labels.append(torch.from_numpy(label.astype(np.int64)))
        names.append(f"oct{index:03d}_{number:02d}")
    return ImageSet(torch.stack(images)[:, None], torch.stack(labels), tuple(names))


def choose_labeled(b_scans: list[BScan], count: int, split: int) -> list[int]:
    """Choose the positions of the labeled ones among ``b_scans``: a draw in which every fluid is shown."""
    volumes = {index: Volume(index) for index, _ in b_scans}
    shown = np.stack([
        np.bincount(volumes[index].label(number, B_SCANS, CHOICE_SIDE, CHOICE_SIDE).ravel(), minlength=4)[1:]
        >= SHOWN * CHOICE_SIDE**2
        for index, number in b_scans
    ])  # fmt: skip
    rng = np.random.default_rng([count, split])
    chosen = best_of(
        lambda: np.sort(rng.permutation(len(b_scans))[:count]), lambda drawn: (int((~shown[drawn].any(0)).sum()),)
    )
    if not shown[chosen].any(0).all():
        raise ValueError(f"labeled: {count}, but no draw of so few B-scans shows {', '.join(CLASSES)}; pass 3 or more")
    return [int(position) for position in chosen]


def load(config: Config) -> Dataset:
    """Draw the volumes, each for one part; a split is another choice of labeled B-scans, the same for every run."""
    parts, start = [], 0
    for volumes in (TRAIN, VALIDATION, TEST):
        parts.append([(index, number) for index in range(start, start + volumes) for number in range(B_SCANS)])
        start += volumes
    if config.labeled > len(parts[0]):
        raise ValueError(f"labeled: {config.labeled}, but there are only {len(parts[0])} training B-scans")
    chosen = choose_labeled(parts[0], config.labeled, config.split)
    train, validation, test = (oct_set(part, config.image_size) for part in parts)
    sizes = f"{len(train)} training, {len(validation)} validation and {len(test)} test B-scans"
    return Dataset(
        labeled=train[chosen],
        unlabeled=train,
        validation=validation,
        test=test,
        class_names=CLASSES,
        flip_pairs=(),
        multilabel=False,
        found=f"{sizes} of {start} OCT volumes, drawn",
        score="miou_pooled",
    )
