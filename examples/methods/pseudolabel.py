"""Pseudo-Label (Lee 2013): the network's own sure predictions teach the same view."""

from torch import Tensor

from examples.data.augment import View
from examples.methods.base import Method, Step
from examples.models.unet import UNet
from rpg_loss import PseudoLabels, fixmatch_targets, segmentation_cross_entropy


class PseudoLabel(Method):
    def forward(self, net: UNet, pool: View, unlabeled: View, step: int) -> Step:
        (logits_ref, _), (logits_u, _) = self.forward_views(net, pool.images, unlabeled.images)
        supervised = segmentation_cross_entropy(logits_ref, pool.labels, group=self.group)
        target, sure = self.targets(logits_u)
        # The mean over what is kept: entries that are not sure have no part in it.
        kept = sure & (unlabeled.valid[:, None] if self.multilabel else unlabeled.valid)
        pseudolabel = segmentation_cross_entropy(logits_u, target, valid=kept, group=self.group)
        loss = supervised + self.lambda_u(step) * pseudolabel
        return Step(
            loss, {"supervised": supervised, "pseudolabel": pseudolabel}, PseudoLabels(target, sure.float())
        )  # fmt: skip

    def targets(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        # Lee's rule, p > tau or p < 1 - tau, is Eq. 10: |p - 0.5| > |0.5 - tau|.
        return fixmatch_targets(logits.detach(), self.config.threshold, multilabel=self.multilabel)

    def pseudo_labels(self, net: UNet, pool: View, images: Tensor) -> PseudoLabels:
        target, sure = self.targets(net(images)[0])
        return PseudoLabels(target, sure.float())
