"""How good a network is on a set of images."""

from __future__ import annotations

import torch
from torch import nn

from examples.data import Dataset, Images, ImageSet, Selection
from examples.data.fusing import fuse_masks
from examples.engine.metrics import IoU, class_masks, known_pixels, predicted_masks

BATCH = 4


@torch.no_grad()
def evaluate(net: nn.Module, images: Images, data: Dataset, iou: IoU | None = None) -> IoU:
    """Collect the IoU of the network's predictions, without augmentation; ignored pixels count nowhere.

    Where the images' original size is known, predictions are brought back to it. ``iou`` is added to if it is given.
    """
    net.eval()
    iou = IoU() if iou is None else iou
    for start in range(0, len(images), BATCH):
        batch = images[range(start, min(start + BATCH, len(images)))]
        logits = net(batch.images)[0]
        if batch.originals is None:
            add(iou, logits, batch.labels, data)
        else:
            for square, original in zip(logits, batch.originals, strict=True):
                restored = original.placement.restore(square, multilabel=data.multilabel)
                add(iou, restored[None], original.read_labels()[None].to(restored.device), data)
    return iou


def unlabeled_with_truth(data: Dataset) -> Selection:
    """Return the images that are learned from without their labels, where these exist: not those that are labeled too.

    Images in memory of which no label is known are left out; those that would have to be read have labels.
    """
    labeled = set(data.labeled.names)
    indices = [i for i, name in enumerate(data.unlabeled.names) if name not in labeled]
    if isinstance(data.unlabeled, ImageSet):
        known = known_pixels(data.unlabeled.labels).flatten(1).any(1).tolist()
        indices = [i for i in indices if known[i]]
    return Selection(data.unlabeled, indices)


def add(iou: IoU, logits: torch.Tensor, labels: torch.Tensor, data: Dataset) -> None:
    prediction = predicted_masks(logits, multilabel=data.multilabel)
    truth = class_masks(labels, prediction.shape[1])
    known = known_pixels(labels)[:, None]
    iou.update(fuse_masks(prediction, data.fused) & known, fuse_masks(truth, data.fused) & known)


def mean_iou(iou: IoU, data: Dataset) -> float:
    """Return the figure that ranks methods on this data set."""
    return float((iou.per_class() if data.score == "miou" else iou.pooled()).nanmean())


def by_class(names: tuple[str, ...], values: torch.Tensor) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))
