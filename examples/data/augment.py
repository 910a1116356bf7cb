"""Weak and strong augmentation of whole batches, on tensors, from an explicit random generator.

Whatever moves an image moves its labels and a map of ones with it, in one affine grid; where the ones are gone the
warp has uncovered what no camera saw, and that pixel is ignored from there on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import kornia.color as kc
import kornia.enhance as ke
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from examples.data.base import IGNORE_INDEX

MID_GRAY = 0.0  # of images in [-1, 1]; also what uncovered pixels show

# Weak augmentation: the paper names the operations, the ranges are ours.
CROP = (0.8, 1.0)  # side of the random crop in shares of the image's
ROTATION = 10.0  # degrees, either way
CONTRAST = 0.2
BRIGHTNESS = 0.2  # on images in [-1, 1]
NOISE = 0.05  # largest standard deviation


class View(NamedTuple):
    """Augmented images, their labels carried along, and which of their pixels the source image shows."""

    images: Tensor  # (B, 1 or 3, H, W) in [-1, 1]
    labels: Tensor  # as in ImageSet; IGNORE_INDEX where uncovered
    valid: Tensor  # (B, H, W) bool
    clean: Tensor  # (B, 1 or 3, H, W): the images before
    carry: Callable[[Tensor], Tensor]  # probabilities of the clean images -> of the view, 0 where uncovered


class StrongView(NamedTuple):
    """Strongly augmented images, and how to bring maps of the weak view into their frame."""

    images: Tensor  # (B, 1 or 3, H, W)
    warp: Callable[[Tensor], Tensor]  # (B, K, H, W) -> same, nearest neighbor, 0 where uncovered
    cutout: Tensor  # (B, H, W) bool, True inside the CutOut square


def uniform(low: float, high: float, count: int, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def matrix(*rows: Tensor | float) -> Tensor:
    """Return the affine map (..., 3, 3) of its upper two rows, row by row.

    It leads from a place in the output to the place in the input shown there, in [-1, 1] (square images).
    """
    values = [torch.as_tensor(value, dtype=torch.float32) for value in (*rows, 0, 0, 1)]
    shape = max((value.shape for value in values), key=len)
    return torch.stack([value.expand(shape) for value in values], dim=-1).view(*shape, 3, 3)


def rotation(degrees: Tensor | float) -> Tensor:
    angle = torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float32))
    return matrix(angle.cos(), -angle.sin(), 0, angle.sin(), angle.cos(), 0)


def translation(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return the shift in shares of the side."""
    return matrix(1, 0, 2 * x, 0, 1, 2 * y)


def warp(maps: Tensor, transform: Tensor, mode: str = "nearest") -> Tensor:
    """Show maps (B, K, H, W) through ``transform`` (B, 3, 3), 0 where nothing is."""
    grid = F.affine_grid(transform[:, :2].to(maps), list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, mode=mode, padding_mode="zeros", align_corners=False)


def swap_classes(labels: Tensor, pairs: Sequence[tuple[int, int]], first: int = 0) -> Tensor:
    """Exchange the classes that change sides in a mirrored image.

    Args:
        labels: Maps (B, C, H, W) with a channel a class, or class maps (B, H, W).
        pairs: Classes, counted without background.
        first: Channel of the first class: 1 if background has a channel of its own.
    """
    swapped = labels.clone()
    for a, b in pairs:
        if labels.ndim == 4:
            swapped[:, first + a], swapped[:, first + b] = labels[:, first + b], labels[:, first + a]
        else:  # classes are counted without background
            swapped[labels == a + 1], swapped[labels == b + 1] = b + 1, a + 1
    return swapped


class WeakAugmentation:
    """Random crop, rotation, flip, brightness, contrast and additive noise.

    Args:
        flip_pairs: Classes that change places in a mirrored image.
        generator: Source of all randomness, on the CPU.
        multilabel: Whether probabilities have one channel for every class, or one for background before them.
    """

    def __init__(self, flip_pairs: Sequence[tuple[int, int]], generator: Generator, *, multilabel: bool = True):
        self.flip_pairs = flip_pairs
        self.generator = generator
        self.background = int(not multilabel)

    def __call__(self, images: Tensor, labels: Tensor, shown: Tensor | None = None) -> View:
        """Augment images (B, 1 or 3, H, W) and labels (B, C, H, W) or (B, H, W) together.

        Pixels where ``shown`` (B, H, W) is False (padding) are as little valid as those that the warp uncovers.
        """
        count, g = len(images), self.generator
        side = uniform(*CROP, count, g)
        room = (1 - side) / 2
        flip = torch.rand(count, generator=g) < 0.5
        x, y = room * uniform(-1, 1, count, g), room * uniform(-1, 1, count, g)
        transform = (
            translation(x, y)
            @ rotation(uniform(-ROTATION, ROTATION, count, g))
            @ matrix(torch.where(flip, -side, side), 0, 0, 0, side, 0)
        ).to(images.device)

        flip = flip.to(images.device)
        clean, labels = images, self.mirror_classes(labels, flip)
        channels = labels if labels.ndim == 4 else labels[:, None]
        covered = torch.ones_like(images[:, :1]) if shown is None else shown[:, None].to(images)
        moved = warp(torch.cat([channels.float(), covered], dim=1), transform)
        valid = moved[:, -1] > 0.5
        moved = moved[:, :-1].masked_fill(~valid[:, None], IGNORE_INDEX).to(labels.dtype)

        def carry(maps: Tensor) -> Tensor:
            return warp(self.mirror_classes(maps, flip), transform, mode="bilinear")

        images = self.jitter(warp(images, transform, mode="bilinear"))
        return View(images, moved.view_as(labels), valid, clean, carry)

    def mirror_classes(self, labels: Tensor, flip: Tensor) -> Tensor:
        """Exchange left and right classes where an image is flipped; probabilities may start with background."""
        swapped = swap_classes(labels, self.flip_pairs, self.background if labels.is_floating_point() else 0)
        return torch.where(flip.view(-1, *[1] * (labels.ndim - 1)), swapped, labels)

    def jitter(self, images: Tensor) -> Tensor:
        """Change brightness, contrast and noise, by a draw for every image."""

        def per_image(low: float, high: float) -> Tensor:
            return uniform(low, high, len(images), self.generator).to(images).view(-1, 1, 1, 1)

        noise = torch.randn(images.shape, generator=self.generator).to(images)
        images = images * per_image(1 - CONTRAST, 1 + CONTRAST) + per_image(-BRIGHTNESS, BRIGHTNESS)
        return (images + noise * per_image(0, NOISE)).clamp(-1, 1)


def autocontrast(image: Tensor) -> Tensor:
    low, high = image.amin((-2, -1), keepdim=True), image.amax((-2, -1), keepdim=True)
    return (image - low) / (high - low).clamp(min=1 / 255)


def contrast(image: Tensor, factor: float) -> Tensor:
    return (image.mean() + (image - image.mean()) * factor).clamp(0, 1)


def saturation(image: Tensor, factor: float) -> Tensor:
    gray = kc.rgb_to_grayscale(image)
    return (gray + (image - gray) * factor).clamp(0, 1)


# RandAugment as FixMatch draws it. Magnitude v is 1 to 9, images are in [0, 1].
PHOTOMETRIC: dict[str, Callable[[Tensor, int], Tensor]] = {
    "AutoContrast": lambda image, v: autocontrast(image),
    "Equalize": lambda image, v: ke.equalize(image),
    "Identity": lambda image, v: image,
    "Brightness": lambda image, v: image * (0.05 + 0.09 * v),
    "Contrast": lambda image, v: contrast(image, 0.05 + 0.09 * v),
    "Sharpness": lambda image, v: ke.sharpness(image, 0.05 + 0.09 * v),
    "Posterize": lambda image, v: ke.posterize(image, 4 + math.floor(0.4 * v)),
    "Solarize": lambda image, v: ke.solarize(image, (256 - math.floor(25.6 * v)) / 256),
}
# Magnitude -> transform; the magnitude comes with a random sign.
GEOMETRIC: dict[str, Callable[[int], Tensor]] = {
    "Rotate": lambda v: rotation(3 * v),
    "ShearX": lambda v: matrix(1, 0.03 * v, 0, 0, 1, 0),
    "ShearY": lambda v: matrix(1, 0, 0, 0.03 * v, 1, 0),
    "TranslateX": lambda v: translation(0.03 * v, 0),
    "TranslateY": lambda v: translation(0, 0.03 * v),
}
OPERATIONS = (*PHOTOMETRIC, *GEOMETRIC)
# Of images in color, one more.
COLOR: dict[str, Callable[[Tensor, int], Tensor]] = {"Color": lambda image, v: saturation(image, 0.05 + 0.09 * v)}


class StrongAugmentation:
    """FixMatch's strong augmentation: two RandAugment operations, each half of the time, then always CutOut.

    An image's photometric operations run first, its geometric ones are composed into a single warp, so that image
    and labels are resampled once and alike. ``generator``, on the CPU, is the source of all randomness.
    """

    def __init__(self, generator: Generator):
        self.generator = generator

    def __call__(self, images: Tensor) -> StrongView:
        """Augment weakly augmented images (B, 1 or 3, H, W)."""
        augmented, transforms = zip(*(self.rand_augment(image[None]) for image in images), strict=True)
        transform = torch.stack(transforms).to(images.device)
        cutout = self.cutout_squares(images)
        strong = warp(torch.cat(augmented), transform, mode="bilinear").masked_fill(cutout[:, None], MID_GRAY)
        return StrongView(strong, lambda maps: warp(maps, transform), cutout)

    def rand_augment(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return one image (1, 1 or 3, H, W) after its photometric operations, and the transform (3, 3) left to do."""
        image, transform = (image + 1) / 2, torch.eye(3)
        operations = OPERATIONS if image.shape[1] == 1 else (*OPERATIONS, *COLOR)
        for _ in range(2):
            operation = operations[self.draw(len(operations))]
            magnitude, sign, applied = 1 + self.draw(9), 1 - 2 * self.draw(2), self.draw(2)
            if applied and operation in GEOMETRIC:
                transform = transform @ GEOMETRIC[operation](sign * magnitude)
            elif applied:
                image = {**PHOTOMETRIC, **COLOR}[operation](image, magnitude)
        return image * 2 - 1, transform

    def cutout_squares(self, images: Tensor) -> Tensor:
        """Return squares of half the side about uniform centers, clipped at the border: (B, H, W) bool."""
        height, width = images.shape[-2:]
        reach = height // 4
        squares = torch.zeros(len(images), height, width, dtype=torch.bool)
        for square in squares:
            y, x = self.draw(height), self.draw(width)
            square[max(y - reach, 0) : y + reach, max(x - reach, 0) : x + reach] = True
        return squares.to(images.device)

    def draw(self, choices: int) -> int:
        return int(torch.randint(choices, (), generator=self.generator))
