"""FixMatch for segmentation (Sohn et al. 2020): confident predictions teach the strongly augmented view (Eq. 9-10)."""

from torch import Tensor

from examples.config import Config
from examples.data import Dataset
from examples.data.augment import StrongAugmentation, View
from examples.engine.sharding import on_whole_batch
from examples.methods.base import Method, Step
from examples.models.base import Network
from rpg_loss import FixMatchSegLoss, PseudoLabels, fixmatch_targets, segmentation_cross_entropy


class FixMatch(Method):
    def __init__(self, config: Config, data: Dataset, net: Network, iterations: int) -> None:
        super().__init__(config, data, net, iterations)
        self.strong = StrongAugmentation(self.generator)
        self.criterion = FixMatchSegLoss(
            config.threshold, multilabel=data.multilabel, cutout=config.cutout, group=self.group
        )

    def forward(self, net: Network, pool: View, unlabeled: View, step: int) -> Step:
        strong = on_whole_batch(self.strong, unlabeled.images)
        (logits_ref, _), (logits_u, _), (logits_strong, _) = self.forward_views(
            net, pool.images, unlabeled.images, strong.images, target=1
        )
        supervised = segmentation_cross_entropy(logits_ref, pool.labels, group=self.group)
        fixmatch = self.criterion(
            logits_u, logits_strong, warp=strong.warp, cutout_mask=strong.cutout, valid_weak=unlabeled.valid
        )
        loss = supervised + self.lambda_u(step) * fixmatch
        return Step(loss, {"supervised": supervised, "fixmatch": fixmatch}, self.kept_predictions(logits_u))

    def kept_predictions(self, logits: Tensor) -> PseudoLabels:
        return fixmatch_targets(logits, self.config.threshold, multilabel=self.multilabel)

    def pseudo_labels(self, net: Network, pool: View, images: Tensor) -> PseudoLabels:
        return self.kept_predictions(net(images)[0])
