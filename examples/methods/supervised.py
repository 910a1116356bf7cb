"""The baseline: labeled images only."""

from examples.data.augment import View
from examples.methods.base import Method, Step
from examples.models.base import Network
from rpg_loss import segmentation_cross_entropy


class Supervised(Method):
    def forward(self, net: Network, pool: View, unlabeled: View, step: int) -> Step:
        logits, _ = net(pool.images)
        loss = segmentation_cross_entropy(logits, pool.labels, group=self.group)
        return Step(loss, {"supervised": loss})
