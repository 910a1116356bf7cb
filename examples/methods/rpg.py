"""Reference-guided pseudo-labels, the paper's method (Eq. 1-8)."""

from torch import Tensor, nn

from examples.augment import View
from examples.config import Config
from examples.data import Dataset
from examples.methods.base import Method, Step
from rpg_loss import PseudoLabels, RPGLoss, segmentation_cross_entropy


class RPG(Method):
    weighted = True

    def __init__(self, config: Config, data: Dataset) -> None:
        super().__init__(config, data)
        self.criterion = RPGLoss(config.k, map_size=config.map_size, weighted=self.weighted, check_values=False)

    def __call__(self, net: nn.Module, pool: View, unlabeled: View) -> Step:
        logits_ref, feat_ref = net(pool.images)
        logits_u, feat_u = net(unlabeled.images)
        supervised = segmentation_cross_entropy(logits_ref, pool.labels)
        rpg, pseudo_labels = self.criterion(
            logits_u, feat_u, feat_ref, pool.labels, valid_u=unlabeled.valid, return_pseudo_labels=True
        )
        loss = supervised + self.config.lambda_u * rpg
        return Step(loss, {"supervised": supervised, "rpg": rpg}, pseudo_labels)

    def pseudo_labels(self, net: nn.Module, pool: View, images: Tensor) -> PseudoLabels:
        return self.criterion.pseudo_labels(net(images)[1], net(pool.images)[1], pool.labels)
