"""The baseline: labelled images only."""

from torch import nn

from examples.augment import View
from examples.methods.base import Method, Step
from rpg_loss import segmentation_cross_entropy


class Supervised(Method):
    def __call__(self, net: nn.Module, pool: View, unlabeled: View) -> Step:
        logits, _ = net(pool.images)
        loss = segmentation_cross_entropy(logits, pool.labels)
        return Step(loss, {"supervised": loss})
