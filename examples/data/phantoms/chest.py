"""Drawn chest phantoms: five overlapping structures, no download, every image a function of its index.

The structures carry the names, the order and roughly the areas of JSRT's, and the right lung is at the image's
left as on a radiograph. Ribs as bright as clavicles, a spine, vessels, soft edges, exposure and noise keep it from
being solved by a threshold. Shapes live in the unit square, so the same phantom can be drawn at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFilter
from torch import Tensor

from examples.config import Config
from examples.data.base import Dataset, ImageSet, to_unit_range
from examples.data.jsrt import CLASSES, FLIP_PAIRS

TRAIN, VALIDATION, TEST = 120, 5, 60
SUPERSAMPLING = 2
SEED = 2022

Image = NDArray[np.float64]
Points = NDArray[np.float64]  # (n, 2): x to the right, y down, both in [0, 1]

# Outlines of an average chest, clockwise; every phantom bends its own copy.
# fmt: off
RIGHT_LUNG = [(0.34, 0.10), (0.41, 0.15), (0.43, 0.28), (0.425, 0.50), (0.42, 0.70), (0.36, 0.72),
              (0.26, 0.75), (0.17, 0.83), (0.12, 0.88), (0.12, 0.70), (0.15, 0.47), (0.20, 0.26), (0.27, 0.14)]
LEFT_LUNG = [(0.65, 0.10), (0.72, 0.14), (0.79, 0.26), (0.84, 0.47), (0.87, 0.70), (0.88, 0.88),
             (0.83, 0.83), (0.76, 0.76), (0.73, 0.66), (0.67, 0.55), (0.61, 0.46), (0.58, 0.36), (0.57, 0.22),
             (0.59, 0.14)]
HEART = [(0.47, 0.47), (0.56, 0.47), (0.64, 0.52), (0.71, 0.62), (0.74, 0.72), (0.69, 0.77),
         (0.57, 0.77), (0.45, 0.75), (0.40, 0.66), (0.42, 0.55)]
BODY = [(0.36, -0.10), (0.64, -0.10), (0.80, 0.03), (0.97, 0.10), (0.96, 0.45), (0.97, 1.10),
        (0.03, 1.10), (0.04, 0.45), (0.03, 0.10), (0.20, 0.03)]
RIGHT_CLAVICLE = [(0.45, 0.235), (0.38, 0.215), (0.31, 0.185), (0.24, 0.165)]  # center line, from the sternum outwards
# fmt: on


def smooth_outline(points: Points, steps: int = 12) -> Points:
    """Return the closed Catmull-Rom curve through ``points``."""
    before, after, beyond = (np.roll(points, shift, axis=0) for shift in (1, -1, -2))
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    square = 2 * before - 5 * points + 4 * after - beyond
    cube = 3 * points - before - 3 * after + beyond
    curve: Points = points + ((after - before) * t + square * t**2 + cube * t**3) / 2
    return curve.transpose(1, 0, 2).reshape(-1, 2)


def band(line: Points, width: float | NDArray[np.float64]) -> Points:
    """Return the outline of a strip of the given width round an open line."""
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], 1) / np.linalg.norm(along, axis=1, keepdims=True)
    half = np.broadcast_to(np.asarray(width) / 2, len(line))[:, None]
    return np.concatenate([line + across * half, (line - across * half)[::-1]])


class Canvas:
    """Fills outlines of one phantom, all carried along by the same posture (an affine map) of the patient."""

    def __init__(self, size: int, posture: Points, shift: Points):
        self.size, self.posture, self.shift = size, posture, shift

    def fill(self, outlines: Sequence[Points], softness: float = 0.0) -> Image:
        """Return how much of each pixel the outlines cover, in [0, 1]; softness is the blur in shares of the side."""
        side = self.size * SUPERSAMPLING
        image = PILImage.new("L", (side, side))
        draw = ImageDraw.Draw(image)
        for outline in outlines:
            placed = ((outline - 0.5) @ self.posture.T + 0.5 + self.shift) * side
            draw.polygon([(float(x), float(y)) for x, y in placed], fill=255)
        if softness:
            image = image.filter(ImageFilter.GaussianBlur(softness * side))
        return np.asarray(image.resize((self.size, self.size), PILImage.Resampling.BOX), np.float64) / 255


def smooth_field(rng: np.random.Generator, size: int, waves: int = 6, frequency: float = 2.0) -> Image:
    """Return a random smooth image of about unit variance: a sum of plane waves, hence the same at every size."""
    center = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(center, center)
    direction = rng.normal(0, frequency, (waves, 2))
    phase = rng.uniform(0, 2 * np.pi, waves)
    waveforms = [np.sin(2 * np.pi * (fx * x + fy * y) + p) for (fx, fy), p in zip(direction, phase, strict=True)]
    field: Image = np.sqrt(2 / waves) * np.sum(waveforms, axis=0)
    return field


def bend(rng: np.random.Generator, points: Sequence[tuple[float, float]], amount: float) -> Points:
    return smooth_outline(np.array(points) + rng.normal(0, amount, (len(points), 2)))


def draw_clavicle(rng: np.random.Generator, *, mirrored: bool) -> Points:
    line = np.array(RIGHT_CLAVICLE) + rng.normal(0, 0.006, (4, 2)) + rng.normal(0, 0.014, 2)
    line[:, 1] += rng.normal(0, 0.06) * (line[0, 0] - line[:, 0])
    line = line * [-1, 1] + [1, 0] if mirrored else line
    return band(line, np.array([0.048, 0.036, 0.036, 0.040]) * rng.uniform(0.85, 1.15))


def draw_ribs(rng: np.random.Generator) -> list[Points]:
    """Draw nine arcs a side, from the spine outwards; the upper ones are easily taken for clavicles."""
    ribs = []
    t = np.linspace(0, 1, 9)
    for side in (-1, 1):
        slope, first = rng.uniform(0.05, 0.2), rng.uniform(0.10, 0.15)
        for rib in range(9):
            reach = 0.30 + 0.09 * np.sin(np.pi * min(rib + 1, 8) / 9)
            x = 0.5 + side * (0.04 + reach * t)
            y = first + 0.078 * rib - 0.05 * np.sin(np.pi * t) + slope * t**2
            ribs.append(band(np.stack([x, y], 1), rng.uniform(0.018, 0.032)))
    return ribs


def draw_vessels(rng: np.random.Generator) -> list[Points]:
    """Draw thin bent branches that leave the two roots of the lungs."""
    vessels = []
    for _ in range(26):
        side = rng.choice([-1, 1])
        start = np.array([0.5 + side * 0.09, 0.45]) + rng.normal(0, 0.025, 2)
        heading = rng.uniform(-1.2, 1.2)
        t = np.linspace(0, rng.uniform(0.08, 0.24), 6)
        bow = rng.normal(0, 1.2) * t**2
        line = start + np.stack([side * t * np.cos(heading), t * np.sin(heading) + bow], 1)
        vessels.append(band(line, np.linspace(rng.uniform(0.008, 0.016), 0.002, 6)))
    return vessels


def draw_phantom(index: int, size: int) -> tuple[Image, NDArray[np.bool_]]:
    """Draw one phantom: an image (size, size) in arbitrary gray units and its masks (5, size, size)."""
    rng = np.random.default_rng([SEED, index])
    angle = rng.normal(0, 0.07)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    canvas = Canvas(size, turn * rng.uniform([0.78, 0.78], [1.08, 1.06]), rng.normal(0, 0.03, 2))

    turned = [rng.normal(0, 0.012), 0]  # as in a slightly turned patient: one lung wider, the other narrower
    lungs = [bend(rng, outline, 0.016) + turned for outline in (RIGHT_LUNG, LEFT_LUNG)]
    heart = bend(rng, HEART, 0.014)
    center = heart.mean(0)
    heart = (heart - center) * rng.uniform([0.75, 0.8], [1.3, 1.25]) + center + rng.normal(0, 0.012, 2)
    clavicles = [draw_clavicle(rng, mirrored=mirrored) for mirrored in (False, True)]

    # The heart hides what little lung lies behind it: the two touch, they do not overlap.
    heart_cover = canvas.fill([heart])
    covers = [np.minimum(canvas.fill([lung]), 1 - heart_cover) for lung in lungs]
    covers += [heart_cover, *(canvas.fill([clavicle]) for clavicle in clavicles)]

    ribs, vessels = draw_ribs(rng), draw_vessels(rng)
    spine = np.stack([0.5 + rng.normal(0, 0.006, 12), np.linspace(-0.1, 1.1, 12)], 1)
    soft = rng.uniform(0.002, 0.012)
    air = np.minimum(canvas.fill(lungs, soft), 1 - 0.95 * canvas.fill([heart], 1.5 * soft))
    aeration = 0.75 + rng.uniform(0.05, 0.25) * smooth_field(rng, size, frequency=1.2)
    density = (
        0.9 * canvas.fill([smooth_outline(np.array(BODY))], 0.02)
        - rng.uniform(0.22, 0.55) * aeration * air
        + rng.uniform(0.05, 0.16) * canvas.fill([band(spine, rng.uniform(0.13, 0.20))], 0.018)
        + rng.uniform(0.0, 0.10) * canvas.fill([heart], 1.5 * soft)
        + rng.uniform(0.03, 0.12) * canvas.fill(ribs, 0.004)
        + rng.uniform(0.06, 0.16) * canvas.fill(vessels, 0.003) * air
        + rng.uniform(0.05, 0.13) * canvas.fill(clavicles, soft)
        + rng.uniform(0.02, 0.10) * smooth_field(rng, size, frequency=0.7)
    )
    film = np.sign(density) * np.abs(density) ** rng.uniform(0.5, 2.0)
    noise = rng.uniform(0.005, 0.05) * rng.standard_normal((size, size))
    return film + noise, np.stack(covers) > 0.5


def phantom_set(indices: range, size: int) -> ImageSet:
    """Draw the phantoms of the given indices."""
    drawn = [draw_phantom(index, size) for index in indices]
    return ImageSet(
        images=torch.stack([to_unit_range(torch.from_numpy(image)) for image, _ in drawn])[:, None],
        labels=torch.stack([torch.from_numpy(masks.astype(np.int8)) for _, masks in drawn]),
        names=tuple(f"phantom{index:04d}" for index in indices),
    )


def load(config: Config) -> Dataset:
    """Draw the phantoms; a split is another choice of labeled ones, the same for every run."""
    if config.labeled > TRAIN:
        raise ValueError(f"labeled: {config.labeled}, but there are only {TRAIN} training phantoms")
    train = phantom_set(range(TRAIN), config.image_size)
    chosen = np.random.default_rng([config.labeled, config.split]).permutation(TRAIN)[: config.labeled]
    validation = range(TRAIN, TRAIN + VALIDATION)
    test = range(validation.stop, validation.stop + TEST)
    return Dataset(
        labeled=train[sorted(chosen.tolist())],
        unlabeled=train,
        validation=phantom_set(validation, config.image_size),
        test=phantom_set(test, config.image_size),
        class_names=CLASSES,
        flip_pairs=FLIP_PAIRS,
        multilabel=True,
        found=f"{TRAIN} training, {VALIDATION} validation and {TEST} test phantoms, drawn",
    )


def load_exclusive(config: Config) -> Dataset:
    """Draw the phantoms of :func:`load` as class maps: every pixel is of one structure or of the background."""
    data = load(config)
    parts = {name: getattr(data, name) for name in ("labeled", "unlabeled", "validation", "test")}
    class_maps = {name: replace(part, labels=exclusive(part.labels)) for name, part in parts.items()}
    return replace(data, **class_maps, multilabel=False)


def exclusive(masks: Tensor) -> Tensor:
    """Turn masks (N, C, H, W) 0/1 into class maps (N, H, W) int64, later classes drawn over earlier ones."""
    ids = torch.arange(1, masks.shape[1] + 1).view(-1, 1, 1)
    return torch.stack([(mask * ids).amax(0) for mask in masks])
