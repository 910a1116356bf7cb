"""Intersection over union, surface distances, and how good pseudo-labels are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects
from torch import Tensor

from examples.data.augment import View
from examples.data.base import IGNORE_INDEX
from examples.engine.distributed import all_reduce_sum
from rpg_loss import PseudoLabels
from rpg_loss.maps import subsample


def class_masks(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels (B, C, H, W) or (B, H, W) as masks (B, C, H, W), bool, of the classes without background."""
    if labels.ndim == 4:
        return labels == 1
    return torch.stack([labels == c + 1 for c in range(num_classes)], dim=1)


def known_pixels(labels: Tensor) -> Tensor:
    """Return which pixels (B, H, W) are labeled, not ignored."""
    known = labels != IGNORE_INDEX
    return known.all(1) if labels.ndim == 4 else known


def predicted_masks(logits: Tensor, *, multilabel: bool) -> Tensor:
    """Return from logits the masks of the classes without background, bool: sigmoid > 0.5, or the most likely class."""
    if multilabel:
        return logits > 0
    most_likely = logits.max(1).indices  # argmax(1) takes several times as long on a CPU
    return class_masks(most_likely, logits.shape[1] - 1)


class IoU:
    """Collects intersection and union of every image and class.

    torchmetrics has no metric with both means: its ``segmentation.MeanIoU`` counts a class absent from image and
    prediction, its Jaccard indices pool the pixels of all images. Here a class absent from both is left out of the
    per-image mean: there is nothing to be right or wrong about.
    """

    def __init__(self) -> None:
        self.intersections: list[Tensor] = []
        self.unions: list[Tensor] = []

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add masks (B, C, H, W), bool."""
        self.intersections.append((prediction & truth).flatten(2).sum(2).cpu())
        self.unions.append((prediction | truth).flatten(2).sum(2).cpu())

    def collected(self) -> tuple[list[Tensor], ...]:
        """Return all that was collected, the first axis over images."""
        return self.intersections, self.unions

    def per_image(self) -> Tensor:
        """Return the IoU of every image and class (N, C); NaN where the class is in neither prediction nor truth."""
        return torch.cat(self.intersections) / torch.cat(self.unions)

    def per_class(self) -> Tensor:
        """Return the mean over the images (C,), skipping NaN."""
        return self.per_image().nanmean(0)

    def at_percentile(self, percent: float) -> Tensor:
        """Return the IoU that so many percent of the images do not exceed (C,), skipping NaN."""
        return self.per_image().nanquantile(percent / 100, 0)

    def pooled(self) -> Tensor:
        """Return the IoU of all images' pixels taken together (C,)."""
        return torch.cat(self.intersections).sum(0) / torch.cat(self.unions).sum(0)


class PseudoLabelMeter:
    """How pseudo-labels are shared out over the classes, and how good they are, against labels the method has not seen.

    ``background`` stands for pixels given no label. A pixel's weight for it is its smallest over the labels where
    weights are per label, as fixmatch's are: it is background only once every label has been ruled out. Pixels of
    weight 0 teach nothing and do not count for precision and recall.

    Args:
        class_names: The classes without background.
        map_size: Side of the map to which everything is sub-sampled (nearest neighbor) to be compared.
    """

    def __init__(self, class_names: Sequence[str], map_size: int):
        self.names = (*class_names, "background")
        self.map_size = map_size
        self.sums = torch.zeros(6, len(self.names), dtype=torch.float64)  # right, used, weight, given, true, known

    def update(self, pseudo_labels: PseudoLabels, view: View) -> None:
        """Add the pseudo-labels of a view, whose own labels are the held-back truth; of all processes' shares."""
        classes = len(self.names) - 1
        known = self._on_map((known_pixels(view.labels) & view.valid)[:, None])
        given = known & with_background(self._on_map(class_masks(pseudo_labels.labels, classes)))
        true = known & with_background(self._on_map(class_masks(view.labels, classes)))
        weights = pseudo_labels.weights
        if weights.ndim == 3:
            weights = weights[:, None].expand(-1, classes, -1, -1)
        weights = given * self._on_map(torch.cat([weights, weights.amin(1, keepdim=True)], dim=1))
        used = weights > 0
        sums = [used & true, used, weights, given, true, known.expand_as(true)]
        # Stays on the device: whoever brings it to the CPU waits for it.
        total = all_reduce_sum(torch.stack([part.sum((0, 2, 3)).double() for part in sums]))
        self.sums = self.sums.to(known.device) + total

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums = state["sums"].clone()

    def _on_map(self, maps: Tensor) -> Tensor:
        return subsample(maps, (self.map_size, self.map_size))

    def measures(self) -> dict[str, dict[str, float | None]]:
        """Return what a run logs of every class; None where a measure divides by nothing.

        * ``pseudo_label_precision``: share of right ones among the pixels assigned the class;
        * ``pseudo_label_recall``: share of them among the pixels that are of the class;
        * ``pseudo_label_weight``: mean weight of the pixels given the class (for fixmatch: the share kept);
        * ``pseudo_label_share``: share of all pixels that are given the class, with whatever weight;
        * ``pseudo_label_true_share``: share of all pixels that are of the class;
        * ``pseudo_label_weight_share``: the class's part in the weight of all pseudo-labels together.
        """
        right, used, weight, given, true, known = self.sums
        ratios = {
            "precision": (right, used),
            "recall": (right, true),
            "weight": (weight, given),
            "share": (given, known),
            "true_share": (true, known),
            "weight_share": (weight, weight.sum().expand_as(weight)),
        }
        return {
            f"pseudo_label_{kind}": {
                name: a / b if b else None for name, a, b in zip(self.names, over.tolist(), under.tolist(), strict=True)
            }
            for kind, (over, under) in ratios.items()
        }


def with_background(masks: Tensor) -> Tensor:
    return torch.cat([masks, ~masks.any(1, keepdim=True)], dim=1)


class SurfaceDistance(NamedTuple):
    """Distances between two surfaces, in the unit of the spacing; NaN where one of the masks is empty."""

    # Average symmetric surface distance: the mean over the surface pixels of both masks of the distance to the
    # nearest of the other
    assd: float
    hd95: float  # 95 % Hausdorff distance: the larger of the 95th percentiles of the distances in both directions


def surface_distance(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: Sequence[float]) -> SurfaceDistance:
    """Return how far the surfaces of two masks, of any number of axes, lie apart.

    A surface pixel is one of the mask that has, along an axis, a neighbor outside the mask or the image. The spacing is
    that from one pixel to the next along each axis.
    """
    if not a.any() or not b.any():
        return SurfaceDistance(math.nan, math.nan)
    # Not by a KDTree: that of scipy 1.17 crashes where denormals are flushed, as the commands have it.
    box = find_objects((a | b).astype(np.uint8))[0]
    edge_a, edge_b = (mask[box] & ~binary_erosion(mask[box]) for mask in (a, b))
    to_a, to_b = (distance_transform_edt(~edge, sampling=spacing) for edge in (edge_a, edge_b))
    from_a, from_b = to_b[edge_a], to_a[edge_b]
    return SurfaceDistance(
        float(np.concatenate([from_a, from_b]).mean()), float(max(np.percentile(from_a, 95), np.percentile(from_b, 95)))
    )
