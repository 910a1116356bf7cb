"""Labels of images by votes of their nearest references: on a coarse grid, then on a fine one where that is not sure.

What a pixel looks like does not tell where a heart ends and what lies below it begins; what is around it does. So the
votes of the coarse grid, around each pixel, are one more part of its features on the fine one (Tu and Bai, Auto-context
and its application to high-level vision tasks, PAMI 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.data import ImageSet
from examples.data.augment import swap_classes
from examples.data.resize import Placement
from examples.engine.metrics import class_masks, known_pixels, predicted_masks
from rpg_loss import FrozenFeatures, rpg_pseudo_labels

K = 20  # nearest cells that vote
TEMPERATURE = 0.02  # a vote falls by e where the cosine is so much below the highest
SURE = 0.05  # shares of the coarse grid that near 0 or 1 are not looked at again
# The share from which a label is there: the first, or another one that is clearly better for the references, each
# labeled by the others.
CUTS = (0.4, 0.35, 0.45, 0.3, 0.5, 0.25, 0.2, 0.15)
CLEARLY = 0.01  # in IoU; less is chance, with a handful of references
WEIGHT_K = 0.02  # share of the references that weights are made of
BLOCK = 2**22  # similarities that are held at a time
BATCH = 4  # images that are encoded at a time


class Votes(NamedTuple):
    """What the references say about one image."""

    # (C, g, g) in [0, 1], how much of each cell of the grid is of each label; background first where classes exclude
    # each other
    shares: Tensor
    nearest: Tensor  # (g/2, g/2), the cosine of each coarse cell's nearest reference
    features: Tensor  # (D, g/2, g/2), what weights are made of


@dataclass(frozen=True)
class Cells:
    """Labeled cells of a grid, of all reference images."""

    features: Tensor  # (N, D) of unit length
    shares: Tensor  # (N, C) in [0, 1], how much of a cell is of each label
    images: Tensor  # (N,) int64, the reference image; a mirrored one counts as the one that it was made of
    k: int  # how many of them vote

    @classmethod
    def of(cls, maps: Tensor, shares: Tensor, known: Tensor, images: Tensor, k: int) -> Cells:
        """Take the known (B, g, g) cells of maps (B, D, g, g) and shares (B, C, g, g) of some images (B,)."""
        features = F.normalize(maps.movedim(1, -1)[known], dim=1)
        return cls(features, shares.movedim(1, -1)[known], images[:, None, None].expand_as(known)[known], k)

    def without(self, image: int) -> Cells:
        """Return the cells of other images; all, if there are no others."""
        others = self.images != image
        if not others.any():
            return self
        return Cells(self.features[others], self.shares[others], self.images[others], self.k)

    def vote(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return shares (M, C) of queries (M, D), and the cosine of the nearest cell (M,)."""
        shares, nearest = [queries.new_empty(0, self.shares.shape[1])], [queries.new_empty(0)]
        for block in F.normalize(queries, dim=1).split(max(1, BLOCK // len(self.features))):
            cosines, cells = (block @ self.features.T).topk(min(self.k, len(self.features)))
            votes = torch.softmax(cosines / TEMPERATURE, dim=1)
            shares.append((votes[..., None] * self.shares[cells]).sum(1))
            nearest.append(cosines[:, 0])
        return torch.cat(shares), torch.cat(nearest)

    def vote_on_map(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return shares (C, g, g) and cosines (g, g) of an image (D, g, g)."""
        shares, nearest = self.vote(maps.flatten(1).T)
        return shares.T.unflatten(1, maps.shape[1:]), nearest.unflatten(0, maps.shape[1:])


@dataclass(frozen=True)
class References:
    """The reference images, encoded once."""

    coarse: Cells  # cells of a grid of half the side
    # Cells of the grid where the coarse votes are not sure; their features have the votes around them as a further
    # part
    fine: Cells
    maps: Tensor  # (B, D, g/2, g/2); weights are made of them
    labels: Tensor  # (B, C, g/2, g/2) or (B, g/2, g/2); and of these
    cut: float  # the share from which a label is there

    def label(self, features: Tensor) -> Votes:
        """Return what the references say about an image with features (D, g, g)."""
        rough, nearest = self.coarse.vote_on_map(halved(features))
        full = with_context(features, rough, multilabel=self.labels.ndim == 4)
        return Votes(refined(rough, full, self.fine), nearest, halved(full))

    def weigh(self, votes: Votes) -> Tensor:
        """Return W of Eq. 7 (g/2, g/2) for an image's labels."""
        found = rpg_pseudo_labels(votes.features[None], self.maps, self.labels, WEIGHT_K, check_values=False)
        return found.weights[0]


@torch.no_grad()
def encode_references(
    images: ImageSet, features: FrozenFeatures, flip_pairs: Sequence[tuple[int, int]], classes: int, k: int
) -> References:
    """Encode the reference images, and their mirror images, in which left and right labels change places.

    Args:
        images: At least one, with labels.
        features: Makes maps (B, D, g, g) of even sides g.
        flip_pairs: As in :class:`Dataset`.
        classes: Number of labels, without background.
        k: How many cells vote.
    """
    labels = torch.cat([images.labels, swap_classes(images.labels.flip(-1), flip_pairs)])
    pixels = torch.cat([images.images, images.images.flip(-1)])
    maps = torch.cat([features(part) for part in pixels.split(BATCH)])
    multilabel = labels.ndim == 4
    known = known_pixels(labels)[:, None]
    masks = class_masks(labels, classes)
    masks = masks if multilabel else torch.cat([labels[:, None] == 0, masks], dim=1)
    covered = F.interpolate(known.float(), maps.shape[2:], mode="area")
    shares = F.interpolate(masks.float(), maps.shape[2:], mode="area") / covered.clamp(min=1e-6)
    which = torch.arange(len(images), device=maps.device).repeat(2)
    rough = halved(shares)
    coarse = Cells.of(halved(maps), rough, halved(covered)[:, 0] > 0.5, which, k)
    if not len(coarse.features):
        raise ValueError("references: none of their pixels is labeled")
    if len(images) > 1:  # as those of other images will be: by references that are not of the same image
        rough = torch.stack(
            [coarse.without(int(i)).vote_on_map(halved(of))[0] for i, of in zip(which, maps, strict=True)]
        )
    full = torch.stack([with_context(*pair, multilabel=multilabel) for pair in zip(maps, rough, strict=True)])
    known_cells = covered[:, 0] > 0.5
    again = known_cells & torch.stack([unsure(votes) for votes in rough])
    fine = Cells.of(full, shares, again if again.any() else known_cells, which, k)
    cut = CUTS[0]
    if len(images) > 1:
        left_out = torch.stack([refined(rough[i], full[i], fine.without(i)) for i in range(len(images))])
        own = images.labels
        cut = best_cut(left_out, class_masks(own, classes), known_pixels(own), multilabel=multilabel)
    step = labels.shape[-1] // rough.shape[-1]
    return References(coarse, fine, halved(full), labels[..., step // 2 :: step, step // 2 :: step], cut)


def refined(rough: Tensor, full: Tensor, fine: Cells) -> Tensor:
    """Return shares (C, g, g) of coarse ones (C, g/2, g/2), with votes of fine cells where they are not sure.

    Args:
        rough: The coarse shares.
        full: (D, g, g), what the fine cells are compared with.
        fine: They vote.
    """
    shares = F.interpolate(rough[None], full.shape[1:], mode="bilinear")[0]
    again = unsure(rough)
    shares[:, again] = fine.vote(full[:, again].T)[0].T
    return shares


def best_cut(shares: Tensor, truth: Tensor, known: Tensor, *, multilabel: bool) -> float:
    """Return of CUTS the one with the highest IoU, over all images, mean over labels, if it is clearly above the first.

    A rare label seldom has half of the votes of its own pixels: cut there, most of it would be lost.

    Args:
        shares: (B, C, g, g), votes; background first where classes exclude each other.
        truth: (B, C, H, W) bool, without background.
        known: (B, H, W) bool, the pixels that count.
    """
    overlaps, unions = truth.new_zeros(2, len(CUTS), truth.shape[1], dtype=torch.int64)
    for votes, true, seen in zip(shares, truth & known[:, None], known, strict=True):
        square = F.interpolate(votes[None], seen.shape, mode="bilinear")
        for row, cut in enumerate(CUTS):
            masks = predicted_masks(decided(square, cut, multilabel=multilabel), multilabel=multilabel)[0] & seen
            overlaps[row] += (masks & true).sum((1, 2))
            unions[row] += (masks | true).sum((1, 2))
    scores = (overlaps / unions).nanmean(1).tolist()
    return CUTS[scores.index(max(scores))] if max(scores) - scores[0] > CLEARLY else CUTS[0]


def decided(shares: Tensor, cut: float, *, multilabel: bool) -> Tensor:
    """Return shares (B, C, H, W) as logits: a label is there from that share on, or from that share of its own and
    background's together, where classes exclude each other.
    """
    if multilabel:
        return shares - cut
    return torch.cat([shares[:, :1] * (cut / (1 - cut)), shares[:, 1:]], dim=1)


def halved(maps: Tensor) -> Tensor:
    return F.avg_pool2d(maps, 2)


def with_context(features: Tensor, rough: Tensor, *, multilabel: bool) -> Tensor:
    """Return features (D, g, g) with a further part of unit length: the votes (C, g/2, g/2) at and around each cell.

    Around: an eighth and a quarter of the side up, down, left and right.
    """
    if multilabel:
        rough = torch.cat([rough, 1 - rough.amax(0, keepdim=True)])
    side = rough.shape[-1]
    margin = side // 4
    smooth = F.avg_pool2d(F.pad(rough[None], (1,) * 4, mode="replicate"), 3, stride=1)
    wide = F.pad(smooth, (margin,) * 4, mode="replicate")[0]
    places = [(0, 0), *((sign * step * (axis == 0), sign * step * (axis == 1))
              for step in (side // 8, margin) for sign in (1, -1) for axis in (0, 1))]  # fmt: skip
    around = torch.cat(
        [wide[:, margin + y : margin + y + side, margin + x : margin + x + side] for y, x in places]
    )  # fmt: skip
    context = F.interpolate(F.normalize(around, dim=0)[None], features.shape[1:], mode="bilinear")[0]
    return torch.cat([features, F.normalize(context, dim=0)])


def unsure(shares: Tensor) -> Tensor:
    """Return in which cells (g, g) some shares (C, g/2, g/2) there or around are neither near 0 nor near 1."""
    highest = F.max_pool2d(shares[None], 3, stride=1, padding=1)[0]
    lowest = -F.max_pool2d(-shares[None], 3, stride=1, padding=1)[0]
    return ((highest > SURE) & (lowest < 1 - SURE)).any(0).repeat_interleave(2, 0).repeat_interleave(2, 1)


def proposed_masks(shares: Tensor, placement: Placement, cut: float, *, multilabel: bool) -> Tensor:
    """Return masks (C, H, W) bool, at the image's own size, of shares (C, g, g)."""
    # To the square first: that a side is a whole number of cells of the grid is not sure.
    square = decided(F.interpolate(shares[None], (placement.size,) * 2, mode="bilinear"), cut, multilabel=multilabel)
    logits = placement.restore(square[0], multilabel=multilabel)
    return predicted_masks(logits[None], multilabel=multilabel)[0]
