"""Metrics against values worked out by hand, and pooled ones against torchmetrics."""

import pytest
import torch
from torchmetrics.classification import MultilabelJaccardIndex

from examples.data.augment import View
from examples.engine.metrics import IoU, PseudoLabelMeter, class_masks, predicted_masks
from rpg_loss import PseudoLabels
from rpg_loss.maps import subsample


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
    assert iou.at_percentile(0).tolist() == pytest.approx([1 / 3, 1 / 2])
    assert iou.at_percentile(50).tolist() == pytest.approx([5 / 12, 1 / 2])


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


def measured(meter: PseudoLabelMeter) -> dict[str, dict[str, float | None]]:
    return {kind.removeprefix("pseudo_label_"): by_class for kind, by_class in meter.measures().items()}


def test_pseudo_label_meter_by_hand():
    """Three known pixels: one assigned rightly, one wrongly, and background rightly; the invalid one counts nowhere."""
    meter = PseudoLabelMeter(["a"], map_size=2)
    labels = square(1, 1, 1, 0)[None, None].to(torch.int8)
    truth = square(1, 0, 1, 0)[None, None].to(torch.int8)
    weights = square(0.2, 0.6, 0.9, 0.5)[None]
    valid = square(1, 1, 0, 1)[None] > 0
    meter.update(PseudoLabels(labels, weights), view(truth, valid))
    found = measured(meter)
    assert found["precision"] == {"a": 0.5, "background": 1.0}
    assert found["recall"] == {"a": 1.0, "background": 0.5}
    assert found["weight"] == pytest.approx({"a": 0.4, "background": 0.5})
    assert found["share"] == pytest.approx({"a": 2 / 3, "background": 1 / 3})
    assert found["true_share"] == pytest.approx({"a": 1 / 3, "background": 2 / 3})
    assert found["weight_share"] == pytest.approx({"a": 0.8 / 1.3, "background": 0.5 / 1.3})


def test_pseudo_label_meter_of_class_maps():
    """A class that no pseudo-label names has a share, a recall and a part of the weight: none."""
    meter = PseudoLabelMeter(["a", "b"], map_size=2)
    labels, truth = square(1, 1, 0, 0)[None].long(), square(1, 2, 2, -100)[None].long()
    meter.update(PseudoLabels(labels, square(1, 1, 0, 1)[None]), view(truth, torch.ones(1, 2, 2) > 0))
    found = measured(meter)
    assert found["precision"] == {"a": 0.5, "b": None, "background": None}  # of weight 0: teaches nothing
    assert found["recall"] == {"a": 1.0, "b": 0.0, "background": None}
    assert found["share"] == pytest.approx({"a": 2 / 3, "b": 0, "background": 1 / 3})
    assert found["true_share"] == pytest.approx({"a": 1 / 3, "b": 2 / 3, "background": 0})
    assert found["weight_share"] == {"a": 1.0, "b": 0.0, "background": 0.0}


def test_pseudo_label_meter_counts_kept_predictions():
    """With a weight for each label, dropped ones teach nothing, and background needs every label kept."""
    meter = PseudoLabelMeter(["a", "b"], map_size=2)
    target = torch.stack([square(1, 1, 0, 0), square(0, 0, 0, 0)])[None]
    kept = torch.stack([square(1, 0, 1, 1), square(1, 1, 1, 0)])[None]
    truth = torch.stack([square(1, 0, 0, 0), square(0, 0, 0, 1)])[None]
    meter.update(PseudoLabels(target, kept), view(truth, torch.ones(1, 2, 2, dtype=torch.bool)))
    found = measured(meter)
    assert found["precision"] == {"a": 1.0, "b": None, "background": 1.0}
    assert found["weight"] == {"a": 0.5, "b": None, "background": 0.5}
    assert found["share"] == {"a": 0.5, "b": 0.0, "background": 0.5}
    assert found["recall"] == {"a": 1.0, "b": 0.0, "background": 0.5}
    assert found["weight_share"] == {"a": 0.5, "b": 0.0, "background": 0.5}


def test_pseudo_label_meter_sub_samples_finer_maps():
    meter = PseudoLabelMeter(["a"], map_size=2)
    truth = torch.zeros(1, 1, 4, 4)
    truth[..., ::2, ::2] = 1  # the pixels that nearest-neighbor sub-sampling visits
    meter.update(PseudoLabels(torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2)), view(truth, torch.ones(1, 4, 4) > 0))
    assert measured(meter)["precision"] == {"a": 1.0, "background": None}


def test_a_pseudo_label_meter_looks_at_the_pixels_that_the_loss_does():
    """Of 112 pixels on 48, say, torch's own nearest neighbors are others."""
    labels = torch.randint(2, (1, 1, 112, 112))
    meter = PseudoLabelMeter(["a"], 48)
    right = PseudoLabels(subsample(labels, (48, 48)), torch.ones(1, 48, 48))
    meter.update(right, view(labels, torch.ones(1, 112, 112) > 0))
    assert measured(meter)["precision"] == {"a": 1, "background": 1}


def test_a_pseudo_label_meter_that_saw_nothing_measures_nothing():
    assert {share for by_class in measured(PseudoLabelMeter(["a"], 2)).values() for share in by_class.values()} == {
        None
    }


def test_counting_leaves_the_sums_where_the_maps_are():
    """Nothing can be read from a meta tensor: neither does a GPU have to be waited for in every step."""
    meter = PseudoLabelMeter(["a", "b"], map_size=2)
    labels = torch.empty(1, 4, 4, dtype=torch.long, device="meta")
    weights = torch.empty(1, 2, 2, device="meta")
    for _ in range(2):
        meter.update(PseudoLabels(labels, weights), view(labels, torch.empty_like(labels, dtype=torch.bool)))
    assert meter.sums.device.type == "meta"
