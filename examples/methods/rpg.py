"""Reference-guided pseudo-labels, the paper's method (Eq. 1-8)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.config import Config
from examples.data import Dataset
from examples.data.augment import View
from examples.methods.base import Method, Step
from examples.models.base import Network
from examples.models.encoders import LITE0_LAYERS, lite0
from rpg_loss import FrozenFeatures, PseudoLabels, RPGLoss, segmentation_cross_entropy
from rpg_loss.maps import subsample


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
        self.frozen = None
        if config.features != "network":
            self.frozen = FrozenFeatures(lite0(), LITE0_LAYERS, size=config.side, check_values=False)

    def forward(self, net: Network, pool: View, unlabeled: View, step: int) -> Step:
        (logits_ref, feat_ref), (logits_u, feat_u) = self.forward_views(net, pool.images, unlabeled.images)
        supervised = segmentation_cross_entropy(logits_ref, pool.labels, group=self.group)
        feat_ref, feat_u = self.matched(pool.images, feat_ref), self.matched(unlabeled.images, feat_u)
        rpg, pseudo_labels = self.criterion(
            logits_u, feat_u, feat_ref, pool.labels, valid_u=unlabeled.valid, return_pseudo_labels=True
        )
        loss = supervised + self.lambda_u(step) * rpg
        return Step(loss, {"supervised": supervised, "rpg": rpg}, pseudo_labels)

    def pseudo_labels(self, net: Network, pool: View, images: Tensor) -> PseudoLabels:
        feat_u, feat_ref = (self.matched(view, net(view)[1]) for view in (images, pool.images))
        return self.criterion.pseudo_labels(feat_u, feat_ref, pool.labels)

    @torch.no_grad()
    def matched(self, images: Tensor, features: Tensor) -> Tensor:
        """Return the features that pixels are matched in, of images that the network makes ``features`` of."""
        if self.frozen is None:
            return features
        frozen: Tensor = self.frozen(images)
        return frozen if self.config.features == "frozen" else beside(features, frozen)


def beside(own: Tensor, frozen: Tensor) -> Tensor:
    """Return features of the network, at unit length, and behind them frozen ones, of their size."""
    own = subsample(own, tuple(frozen.shape[-2:]))  # as the loss does
    return torch.cat([F.normalize(own, dim=1), frozen], dim=1)
