"""Reference-guided pseudo-labels, the paper's method (Eq. 1-8)."""

from torch import Tensor

from examples.config import Config
from examples.data import Dataset
from examples.data.augment import View
from examples.methods.base import Method, Step
from examples.models.base import Network
from rpg_loss import PseudoLabels, RPGLoss, segmentation_cross_entropy


class RPG(Method):
    def __init__(self, config: Config, data: Dataset, net: Network, iterations: int) -> None:
        super().__init__(config, data, net, iterations)
        self.criterion = RPGLoss(
            config.k,
            map_size=config.map_size,
            weighted=config.weighted,
            group=self.group,
            check_values=False,
        )

    def forward(self, net: Network, pool: View, unlabeled: View, step: int) -> Step:
        (logits_ref, feat_ref), (logits_u, feat_u) = self.forward_views(net, pool.images, unlabeled.images)
        supervised = segmentation_cross_entropy(logits_ref, pool.labels, group=self.group)
        rpg, pseudo_labels = self.criterion(
            logits_u, feat_u, feat_ref, pool.labels, valid_u=unlabeled.valid, return_pseudo_labels=True
        )
        loss = supervised + self.lambda_u(step) * rpg
        return Step(loss, {"supervised": supervised, "rpg": rpg}, pseudo_labels)

    def pseudo_labels(self, net: Network, pool: View, images: Tensor) -> PseudoLabels:
        (_, feat_u), (_, feat_ref) = net(images), net(pool.images)
        return self.criterion.pseudo_labels(feat_u, feat_ref, pool.labels)
