"""RPG+ (Eq. 11): reference-guided pseudo-labels on the weak view and FixMatch on the strong one."""

from examples.config import Config
from examples.data import Dataset
from examples.data.augment import StrongAugmentation, View
from examples.engine.sharding import on_whole_batch
from examples.methods.base import Step
from examples.methods.rpg import RPG
from examples.models.base import Network
from rpg_loss import FixMatchSegLoss, segmentation_cross_entropy


class RPGPlus(RPG):
    def __init__(self, config: Config, data: Dataset, net: Network, iterations: int) -> None:
        super().__init__(config, data, net, iterations)
        self.strong = StrongAugmentation(self.generator)
        self.fixmatch = FixMatchSegLoss(
            config.threshold, multilabel=data.multilabel, cutout=config.cutout, group=self.group
        )

    def forward(self, net: Network, pool: View, unlabeled: View, step: int) -> Step:
        strong = on_whole_batch(self.strong, unlabeled.images)
        (logits_ref, feat_ref), (logits_u, feat_u), (logits_strong, _) = self.forward_views(
            net, pool.images, unlabeled.images, strong.images
        )
        supervised = segmentation_cross_entropy(logits_ref, pool.labels, group=self.group)
        feat_ref, feat_u = self.matched(pool.images, feat_ref), self.matched(unlabeled.images, feat_u)
        rpg, pseudo_labels = self.criterion(
            logits_u, feat_u, feat_ref, pool.labels, valid_u=unlabeled.valid, return_pseudo_labels=True
        )
        fixmatch = self.fixmatch(
            logits_u, logits_strong, warp=strong.warp, cutout_mask=strong.cutout, valid_weak=unlabeled.valid
        )
        loss = supervised + self.lambda_u(step) * (rpg + fixmatch)
        return Step(loss, {"supervised": supervised, "rpg": rpg, "fixmatch": fixmatch}, pseudo_labels)
