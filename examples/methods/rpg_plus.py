"""RPG+ (Eq. 11): reference-guided pseudo-labels on the weak view and FixMatch on the strong one."""

import torch
from torch import Tensor, nn

from examples.augment import StrongAugmentation, View
from examples.config import Config
from examples.data import Dataset
from examples.methods.base import Method, Step
from rpg_loss import FixMatchSegLoss, PseudoLabels, RPGLoss, segmentation_cross_entropy


class RPGPlus(Method):
    def __init__(self, config: Config, data: Dataset) -> None:
        super().__init__(config, data)
        self.strong = StrongAugmentation(torch.Generator().manual_seed(config.seed))
        self.rpg = RPGLoss(config.k, map_size=config.map_size, check_values=False)
        self.fixmatch = FixMatchSegLoss(config.threshold, multilabel=data.multilabel)

    def __call__(self, net: nn.Module, pool: View, unlabeled: View) -> Step:
        logits_ref, feat_ref = net(pool.images)
        logits_u, feat_u = net(unlabeled.images)
        strong = self.strong(unlabeled.images)
        logits_strong, _ = net(strong.images)

        supervised = segmentation_cross_entropy(logits_ref, pool.labels)
        rpg, pseudo_labels = self.rpg(
            logits_u, feat_u, feat_ref, pool.labels, valid_u=unlabeled.valid, return_pseudo_labels=True
        )
        fixmatch = self.fixmatch(
            logits_u, logits_strong, warp=strong.warp, cutout=strong.cutout, valid_weak=unlabeled.valid
        )
        loss = supervised + self.config.lambda_u * (rpg + fixmatch)
        return Step(loss, {"supervised": supervised, "rpg": rpg, "fixmatch": fixmatch}, pseudo_labels)

    def pseudo_labels(self, net: nn.Module, pool: View, images: Tensor) -> PseudoLabels:
        return self.rpg.pseudo_labels(net(images)[1], net(pool.images)[1], pool.labels)
