"""FixMatch for segmentation (Sohn et al. 2020): sure predictions teach the strongly augmented view (Eq. 9-10)."""

import torch
from torch import Tensor, nn

from examples.augment import StrongAugmentation, View
from examples.config import Config
from examples.data import Dataset
from examples.methods.base import Method, Step
from rpg_loss import FixMatchSegLoss, PseudoLabels, fixmatch_targets, segmentation_cross_entropy


class FixMatch(Method):
    def __init__(self, config: Config, data: Dataset) -> None:
        super().__init__(config, data)
        self.strong = StrongAugmentation(torch.Generator().manual_seed(config.seed))
        self.criterion = FixMatchSegLoss(config.threshold, multilabel=data.multilabel)

    def __call__(self, net: nn.Module, pool: View, unlabeled: View) -> Step:
        logits_ref, _ = net(pool.images)
        with torch.no_grad():
            logits_u, _ = net(unlabeled.images)
        strong = self.strong(unlabeled.images)
        logits_strong, _ = net(strong.images)

        supervised = segmentation_cross_entropy(logits_ref, pool.labels)
        fixmatch = self.criterion(
            logits_u, logits_strong, warp=strong.warp, cutout=strong.cutout, valid_weak=unlabeled.valid
        )
        loss = supervised + self.config.lambda_u * fixmatch
        return Step(loss, {"supervised": supervised, "fixmatch": fixmatch}, self.kept_predictions(logits_u))

    def kept_predictions(self, logits: Tensor) -> PseudoLabels:
        target, kept = fixmatch_targets(logits, self.config.threshold, multilabel=self.criterion.multilabel)
        return PseudoLabels(target, kept.float())

    def pseudo_labels(self, net: nn.Module, pool: View, images: Tensor) -> PseudoLabels:
        return self.kept_predictions(net(images)[0])
