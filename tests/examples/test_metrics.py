"""Metrics against values worked out by hand, and pooled ones against torchmetrics."""

import pytest
import torch
from torchmetrics.classification import MultilabelJaccardIndex

from examples.augment import View
from examples.metrics import IoU, PseudoLabelMeter, class_masks, predicted_masks
from rpg_loss import PseudoLabels


def masks(*rows: str) -> torch.Tensor:
    """One image a row of "class0/class1", one character a pixel: (B, 2, 1, W) bool."""
    return torch.tensor([[[[pixel == "x" for pixel in label]] for label in row.split("/")] for row in rows])


def test_iou_by_hand():
    iou = IoU()
    iou.update(masks("xx../...."), masks(".xx./...."))  # 1 of 3; absent from both
    iou.update(masks("xxxx/x..."), masks("xx../xx.."))  # 2 of 4; 1 of 2
    assert iou.per_image()[:, 0].tolist() == pytest.approx([1 / 3, 1 / 2])
    assert iou.per_image()[0, 1].isnan()
    assert iou.per_class().tolist() == pytest.approx([5 / 12, 1 / 2])
    assert iou.pooled().tolist() == pytest.approx([3 / 7, 1 / 2])


def test_pooled_iou_is_torchmetrics():
    prediction, truth = torch.rand(5, 3, 8, 8) > 0.5, torch.rand(5, 3, 8, 8) > 0.5
    iou = IoU()
    iou.update(prediction[:2], truth[:2])
    iou.update(prediction[2:], truth[2:])
    expected = MultilabelJaccardIndex(num_labels=3, average="none")(prediction.int(), truth.int())
    assert torch.allclose(iou.pooled(), expected)


def test_masks_of_class_maps_leave_out_background():
    assert class_masks(torch.tensor([[[0, 1, 2, -100]]]), 2).tolist() == masks(".x../..x.").tolist()
    logits = torch.tensor([[[[3.0, 0.0]], [[0.0, 0.0]], [[0.0, 1.0]]]])
    assert predicted_masks(logits, multilabel=False).tolist() == masks("../.x").tolist()
    assert predicted_masks(logits, multilabel=True).sum() == 2


def square(*pixels: float) -> torch.Tensor:
    return torch.tensor(pixels).view(2, 2)


def view(labels: torch.Tensor, valid: torch.Tensor) -> View:
    images = torch.empty(0)
    return View(images, labels, valid, images, lambda maps: maps)


def test_pseudo_label_meter_by_hand():
    meter = PseudoLabelMeter(["a"], map_size=2)
    labels = square(1, 1, 1, 0)[None, None].to(torch.int8)
    truth = square(1, 0, 1, 0)[None, None].to(torch.int8)
    weights = square(0.2, 0.6, 0.9, 0.5)[None]
    valid = square(1, 1, 0, 1)[None] > 0
    meter.update(PseudoLabels(labels, weights), view(truth, valid))
    assert meter.precision() == {"a": 0.5, "background": 1.0}
    assert meter.weight() == pytest.approx({"a": 0.4, "background": 0.5})


def test_pseudo_label_meter_counts_kept_predictions():
    """With a weight for each label, dropped ones do not count for precision, and background needs every label kept."""
    meter = PseudoLabelMeter(["a", "b"], map_size=2)
    target = torch.stack([square(1, 1, 0, 0), square(0, 0, 0, 0)])[None]
    kept = torch.stack([square(1, 0, 1, 1), square(1, 1, 1, 0)])[None]
    truth = torch.stack([square(1, 0, 0, 0), square(0, 0, 0, 1)])[None]
    meter.update(PseudoLabels(target, kept), view(truth, torch.ones(1, 2, 2, dtype=torch.bool)))
    assert meter.precision() == {"a": 1.0, "b": None, "background": 1.0}
    assert meter.weight() == {"a": 0.5, "b": None, "background": 0.5}


def test_pseudo_label_meter_sub_samples_finer_maps():
    meter = PseudoLabelMeter(["a"], map_size=2)
    truth = torch.zeros(1, 1, 4, 4)
    truth[..., ::2, ::2] = 1  # the pixels that nearest-neighbour sub-sampling visits
    meter.update(PseudoLabels(torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2)), view(truth, torch.ones(1, 4, 4) > 0))
    assert meter.precision() == {"a": 1.0, "background": None}
