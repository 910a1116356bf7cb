"""How good a network is on a set of images."""

from __future__ import annotations

import torch
from torch import nn

from examples.data import Dataset, ImageSet
from examples.data.fusing import fuse_masks
from examples.metrics import IoU, class_masks, known_pixels, predicted_masks

BATCH = 4


@torch.no_grad()
def evaluate(net: nn.Module, images: ImageSet, data: Dataset) -> IoU:
    """Collects the IoU of the network's predictions, without augmentation; ignored pixels count nowhere."""
    net.eval()
    iou = IoU()
    for start in range(0, len(images), BATCH):
        batch = images[range(start, min(start + BATCH, len(images)))]
        prediction = predicted_masks(net(batch.images)[0], multilabel=data.multilabel)
        truth = class_masks(batch.labels, prediction.shape[1])
        known = known_pixels(batch.labels)[:, None]
        iou.update(fuse_masks(prediction, data.fused) & known, fuse_masks(truth, data.fused) & known)
    return iou


def by_class(names: tuple[str, ...], values: torch.Tensor) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))
