"""Drawn scans for the recipes, 2-D or 3-D: an organ with a lesion in it. Needs nothing but torch."""

import torch
from torch import Tensor

CLASSES = ("background", "organ", "lesion")


def draw_scans(count: int, *size: int) -> tuple[Tensor, Tensor]:
    """Draw scans from torch's global random stream.

    The lesion is as dark as the background, bright spots outside are as bright as the organ, and every scan has its own
    exposure and noise: no threshold tells the classes apart.

    Args:
        count: Number of scans, N.
        size: Length of each spatial axis.

    Returns:
        Images (N, 1, *size) float32 and class maps (N, *size) int64, indices of ``CLASSES``.
    """
    axes = len(size)
    place = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij"))

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape, *(1,) * axes).uniform_(low, high)

    def ellipsoid(center: Tensor, smallest: float, largest: float) -> Tensor:
        radii = uniform(smallest, largest, axes)
        return ((place - center) / radii).square().sum(1) < 1

    center = uniform(-0.25, 0.25, axes)
    organ = ellipsoid(center, 0.45, 0.65)
    lesion = organ & ellipsoid(center + uniform(-0.2, 0.2, axes), 0.15, 0.3)
    labels = organ.long() + lesion.long()

    spots = torch.stack([ellipsoid(uniform(-1, 1, axes), 0.1, 0.2) for _ in range(6)]).any(0)
    bright = ((labels == 1) | spots & ~organ).float()
    haze = (place.unsqueeze(0) * uniform(-0.2, 0.2, axes)).sum(1)
    images = uniform(0.7, 1.3) * bright + uniform(-0.2, 0.2) + haze
    return (images + uniform(0.1, 0.3) * torch.randn_like(images)).unsqueeze(1), labels


def mean_iou(prediction: Tensor, labels: Tensor) -> float:
    """Return the intersection over union of all pixels taken together, mean over organ and lesion."""
    ious = [((prediction == c) & (labels == c)).sum() / ((prediction == c) | (labels == c)).sum() for c in (1, 2)]
    return float(sum(ious) / len(ious))
