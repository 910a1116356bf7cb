"""Pseudo-Label (Lee 2013): the network's own confident predictions are the targets of the same view."""

from torch import Tensor

from examples.data.augment import View
from examples.methods.base import Method, Step
from examples.models.base import Network
from rpg_loss import PseudoLabels, fixmatch_targets, segmentation_cross_entropy


class PseudoLabel(Method):
    def forward(self, net: Network, pool: View, unlabeled: View, step: int) -> Step:
        (logits_ref, _), (logits_u, _) = self.forward_views(net, pool.images, unlabeled.images)
        supervised = segmentation_cross_entropy(logits_ref, pool.labels, group=self.group)
        pseudo_labels = self.targets(logits_u)
        # The mean over what is kept: the other entries have no part in it.
        kept = (pseudo_labels.weights > 0) & (unlabeled.valid[:, None] if self.multilabel else unlabeled.valid)
        pseudolabel = segmentation_cross_entropy(logits_u, pseudo_labels.labels, valid=kept, group=self.group)
        loss = supervised + self.lambda_u(step) * pseudolabel
        return Step(loss, {"supervised": supervised, "pseudolabel": pseudolabel}, pseudo_labels)

    def targets(self, logits: Tensor) -> PseudoLabels:
        # Lee's rule, p > tau or p < 1 - tau, is Eq. 10: |p - 0.5| > |0.5 - tau|.
        return fixmatch_targets(logits.detach(), self.config.threshold, multilabel=self.multilabel)

    def pseudo_labels(self, net: Network, pool: View, images: Tensor) -> PseudoLabels:
        return self.targets(net(images)[0])
