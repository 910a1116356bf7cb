"""Multi-label deep supervision (Reiß et al. 2021): coarse maps learn every class inside their cells, with a teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.config import Config
from examples.data import IGNORE_INDEX, Dataset
from examples.data.augment import View, WeakAugmentation
from examples.engine.metrics import class_masks, known_pixels, with_background
from examples.engine.sharding import on_whole_batch
from examples.methods.base import Method, Step
from examples.methods.ema import EMA, ramp_up
from examples.models.base import Network, PyramidNetwork
from rpg_loss import PseudoLabels, segmentation_cross_entropy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MLDS(Method):
    ema: EMA

    def __init__(self, config: Config, data: Dataset, net: Network, iterations: int) -> None:
        super().__init__(replace(config, ema=True), data, net, iterations)
        assert isinstance(net, PyramidNetwork)  # the configuration has refused others
        self.num_classes = len(data.class_names)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, config.base_channels, 1),
                nn.BatchNorm2d(config.base_channels),
                nn.ReLU(),
                nn.Conv2d(config.base_channels, self.num_classes + 1, 1),
            )
            for width in net.widths
        )
        self.augment = WeakAugmentation(data.flip_pairs, self.generator, multilabel=data.multilabel)

    def forward(self, net: Network, pool: View, unlabeled: View, step: int) -> Step:
        supervised, scales = self.losses(net, pool)
        target = self.predicted(self.ema(unlabeled.images))
        known = unlabeled.valid[:, None] if self.multilabel else unlabeled.valid
        view = on_whole_batch(self.augment, unlabeled.images, target.masked_fill(~known, IGNORE_INDEX))
        teacher, scales_teacher = self.losses(net, view)
        weight = self.lambda_u(step) * ramp_up(step, self.iterations)
        loss = supervised + scales + weight * (teacher + scales_teacher)
        terms = {"supervised": supervised, "scales": scales, "teacher": teacher, "teacher_scales": scales_teacher}
        return Step(loss, terms, self.trusted(target))

    def losses(self, net: Network, view: View) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of the network's own logits, and the sum of those of the further heads."""
        assert isinstance(net, PyramidNetwork)
        levels = net.levels(view.images)
        masks, known = one_hot(view.labels, self.num_classes)
        scales = [
            scale_loss(head(level), masks, known, self.group) for head, level in zip(self.heads, levels, strict=True)
        ]
        own = segmentation_cross_entropy(net.head(levels[-1]), view.labels, group=self.group)
        return own, torch.stack(scales).sum()

    def predicted(self, logits: Tensor) -> Tensor:
        return (logits > 0).to(torch.int8) if self.multilabel else logits.argmax(1)

    def trusted(self, labels: Tensor) -> PseudoLabels:
        return PseudoLabels(labels, torch.ones(len(labels), *labels.shape[-2:], device=labels.device))

    def pseudo_labels(self, net: Network, pool: View, images: Tensor) -> PseudoLabels:
        return self.trusted(self.predicted(net(images)[0]))


def one_hot(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return masks (B, 1 + C, H, W) bool of all classes, background last, and which pixels (B, 1, H, W) are labeled."""
    known = known_pixels(labels)[:, None]
    return with_background(class_masks(labels, num_classes)) & known, known


def scale_loss(logits: Tensor, masks: Tensor, known: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Return the mean cross-entropy of a head's cells, each to name every class inside it.

    Args:
        logits: (B, C, h, w).
        masks: (B, C, H, W) bool.
        known: (B, 1, H, W) bool; cells with a pixel that is not are left out.
        group: Processes whose cells together the mean is taken over.
    """
    target, valid = coarse_targets(masks, known, logits.shape[-2:])
    return segmentation_cross_entropy(logits, target, valid=valid, group=group)


def coarse_targets(masks: Tensor, known: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Return which classes occur in a cell, 0/1 (B, C, h, w), and which cells (B, h, w) have known pixels only."""
    target = F.adaptive_max_pool2d(masks.float(), size)
    valid = F.adaptive_max_pool2d((~known).float(), size)[:, 0] == 0
    return target, valid
