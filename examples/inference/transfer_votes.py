"""Labels of images by votes of their nearest references, in the features of a pretrained encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.data import ImageSet
from examples.data.resize import Placement
from examples.engine.metrics import IoU, class_masks, known_pixels, predicted_masks
from rpg_loss import FrozenFeatures, rpg_pseudo_labels

BLOCK = 2**22  # similarities that are held at a time
CUTS = tuple(step / 20 for step in range(2, 15))  # thresholds that are tried
STEP = 2  # in cells of the grid, of the coarser one that weights are made on
WEIGHT_K = 0.02  # share of the references that weights are made of


class Votes(NamedTuple):
    """What the references say about one image.

    Attributes:
        shares: (C, g, g) in [0, 1], how much of each cell of the grid is of each label; background first where classes
            exclude each other.
        nearest: (g, g), the cosine of each cell's nearest reference.
        weights: (h, w) in [0, 1], W of Eq. 7, on a coarser grid.
    """

    shares: Tensor
    nearest: Tensor
    weights: Tensor


@dataclass(frozen=True)
class References:
    """The cells of all reference images, as encoded once.

    Attributes:
        features: (N, D) of unit length.
        shares: (N, C) in [0, 1], how much of the cell is of each label.
        images: (N,) int64, which reference image it is of; a mirrored one counts as the one it was made of.
        coarse_features: (n, D, h, w) and
        coarse_labels: (n, C, h, w) or (n, h, w), what weights are made of.
        k: Neighbors that vote.
        temperature: The vote of a neighbor falls by e where its cosine is so much lower than the highest.
    """

    features: Tensor
    shares: Tensor
    images: Tensor
    coarse_features: Tensor
    coarse_labels: Tensor
    k: int
    temperature: float

    def without(self, image: int) -> References:
        """Return those of the other images; the weights are still of all."""
        others = self.images != image
        return References(
            self.features[others], self.shares[others], self.images[others],
            self.coarse_features, self.coarse_labels, self.k, self.temperature,
        )  # fmt: skip

    def vote(self, features: Tensor) -> Votes:
        """Return what the references say about an image with features (D, g, g)."""
        queries = F.normalize(features.flatten(1).T, dim=1)
        rows = max(1, BLOCK // len(self.features))
        shares, nearest = [], []
        for block in queries.split(rows):
            similarities, indices = (block @ self.features.T).topk(min(self.k, len(self.features)))
            votes = torch.softmax(similarities / self.temperature, dim=1)
            shares.append((votes[..., None] * self.shares[indices]).sum(1))
            nearest.append(similarities[:, 0])
        grid = features.shape[1:]
        coarse = features[None, :, ::STEP, ::STEP]
        weights = rpg_pseudo_labels(coarse, self.coarse_features, self.coarse_labels, WEIGHT_K, check_values=False)
        return Votes(torch.cat(shares).T.unflatten(1, grid), torch.cat(nearest).unflatten(0, grid), weights.weights[0])


@torch.no_grad()
def encode_references(
    images: ImageSet, features: FrozenFeatures, flip_pairs: Sequence[tuple[int, int]], classes: int, k: int,
    temperature: float, batch: int,
) -> References:  # fmt: skip
    """Encode the reference images, and their mirror images, in which left and right labels change places.

    Raises:
        ValueError: no pixel of them is labeled.
    """
    labels = torch.cat([images.labels, mirrored(images.labels, flip_pairs)])
    pixels = torch.cat([images.images, images.images.flip(-1)])
    maps = F.normalize(torch.cat([features(part) for part in pixels.split(batch)]), dim=1)
    grid = maps.shape[2:]
    known = known_pixels(labels)[:, None]
    one_hot = class_masks(labels, classes)
    if labels.ndim == 3:
        one_hot = torch.cat([labels[:, None] == 0, one_hot], dim=1)
    covered = F.interpolate(known.float(), grid, mode="area")
    shares = F.interpolate((one_hot & known).float(), grid, mode="area") / covered.clamp(min=1e-6)
    used = covered.flatten() > 0.5
    if not used.any():
        raise ValueError("references: none of their pixels is labeled")
    which = torch.arange(len(images), device=maps.device).repeat(2).repeat_interleave(grid.numel())
    rows, columns = (
        ((torch.arange(0, cells, STEP, device=maps.device) + 0.5) * side / cells).long()
        for side, cells in zip(labels.shape[-2:], grid, strict=True)
    )
    return References(
        features=maps.movedim(1, -1).flatten(0, 2)[used],
        shares=shares.movedim(1, -1).flatten(0, 2)[used],
        images=which[used],
        coarse_features=maps[:, :, ::STEP, ::STEP],
        coarse_labels=labels[..., rows[:, None], columns],
        k=k,
        temperature=temperature,
    )


def mirrored(labels: Tensor, flip_pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return labels (B, C, H, W) or (B, H, W) of the mirror images."""
    flipped = labels.flip(-1)
    swapped = flipped.clone()
    for a, b in flip_pairs:
        for one, other in ((a, b), (b, a)):
            if labels.ndim == 4:
                swapped[:, one] = flipped[:, other]
            else:
                swapped[flipped == one + 1] = other + 1
    return swapped


def proposed_masks(scores: Tensor, placement: Placement, *, multilabel: bool) -> Tensor:
    """Return masks (C, H, W) bool at the image's own size of shares that are divided by their cuts, (C, g, g)."""
    # To the square first: that a side is a whole number of cells of the grid is not sure.
    square = F.interpolate(scores[None], (placement.size,) * 2, mode="bilinear")[0]
    logits = placement.restore(square - 1 if multilabel else square, multilabel=multilabel)
    return predicted_masks(logits[None], multilabel=multilabel)[0]


def find_cuts(references: References, maps: Tensor, images: ImageSet) -> Tensor:
    """Find how large a share of each label has to be, such that references are labeled best by the others.

    Args:
        references: Those of all images.
        maps: (P, D, g, g), the features of the images.
        images: Reference images.

    Returns:
        (C,), what shares are to be divided by: labels that may overlap are there where the quotient is above 1, and of
        those that exclude each other there is the one with the highest.
    """
    multilabel = images.labels.ndim == 4
    classes = references.shares.shape[1]
    usual = torch.full((classes,), 0.5 if multilabel else 1.0, device=maps.device)
    if len(maps) < 2:
        return usual
    votes = torch.stack([references.without(i).vote(features).shares for i, features in enumerate(maps)])
    side = images.labels.shape[-1]
    shares = F.interpolate(votes, (side, side), mode="bilinear")
    known = known_pixels(images.labels)[:, None]
    truth = class_masks(images.labels, classes - (not multilabel)) & known

    def score(cuts: Tensor) -> Tensor:
        iou = IoU()
        scaled = shares / cuts[:, None, None]
        iou.update(predicted_masks(scaled - 1 if multilabel else scaled, multilabel=multilabel) & known, truth)
        return iou.per_class() if multilabel else iou.pooled().nanmean()

    if multilabel:  # each for itself
        scores = torch.stack([score(torch.full_like(usual, cut)) for cut in CUTS]).nan_to_num()
        return torch.tensor(CUTS, device=maps.device)[scores.argmax(0).to(maps.device)]
    cuts = usual.clone()
    for label in range(1, classes):
        tried = [torch.where(torch.arange(classes, device=maps.device) == label, 2 * cut, cuts) for cut in CUTS]
        cuts = max([cuts, *tried], key=score)
    return cuts
