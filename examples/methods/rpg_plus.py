"""RPG+ (Eq. 11): reference-guided pseudo-labels on the weak view and FixMatch on the strong one."""

import torch
from torch import Tensor

from examples.config import Config
from examples.data import Dataset
from examples.data.augment import StrongAugmentation, StrongView, View
from examples.engine.sharding import on_whole_batch
from examples.methods.base import Step
from examples.methods.rpg import RPG
from examples.models.unet import UNet
from rpg_loss import FixMatchSegLoss, PseudoLabels, segmentation_cross_entropy
from rpg_loss.maps import subsample


class RPGPlus(RPG):
    def __init__(self, config: Config, data: Dataset, net: UNet, iterations: int) -> None:
        super().__init__(config, data, net, iterations)
        self.strong = StrongAugmentation(self.generator, cutmix=config.cutmix)
        self.fixmatch = FixMatchSegLoss(
            config.threshold, multilabel=data.multilabel, cutout=config.cutout, group=self.group
        )

    def forward(self, net: UNet, pool: View, unlabeled: View, step: int) -> Step:
        strong = on_whole_batch(self.strong, unlabeled.images)
        (logits_ref, feat_ref), (logits_u, feat_u), (logits_strong, _) = self.forward_views(
            net, pool.images, unlabeled.images, strong.images
        )
        supervised = segmentation_cross_entropy(logits_ref, pool.labels, group=self.group)
        rpg, pseudo_labels = self.rpg(logits_u, feat_u, feat_ref, pool, unlabeled)
        fixmatch = self.fixmatch(
            logits_u, logits_strong, warp=strong.warp, cutout=strong.cutout, valid_weak=unlabeled.valid
        )
        terms = {"rpg": rpg, "fixmatch": fixmatch}
        if self.config.strong_labels:
            terms["strong"] = self.on_strong_view(logits_strong, pseudo_labels, strong)
        loss = supervised + self.lambda_u(step) * torch.stack(list(terms.values())).sum()
        return Step(loss, {"supervised": supervised, **terms}, pseudo_labels)

    def on_strong_view(self, logits: Tensor, pseudo_labels: PseudoLabels, strong: StrongView) -> Tensor:
        """The loss of the strong view against the pseudo-labels of the weak one, moved as its image was.

        Only at the pixels that have been matched: enlarged, their labels would blur borders. They weigh nothing in the
        CutOut square, where there is nothing to see.
        """
        labels, weights = pseudo_labels
        channels = labels if self.multilabel else labels[:, None]
        # What is ignored weighs nothing and may be called background.
        maps = [channels.clamp(min=0).float(), weights[:, None], torch.ones_like(weights)[:, None]]
        moved = strong.warp(at_their_pixels(torch.cat(maps, dim=1), logits.shape[2:]))
        labels, weights, matched = moved[:, :-2], moved[:, -2] * ~strong.cutout, moved[:, -1] > 0
        return segmentation_cross_entropy(
            logits,
            labels if self.multilabel else labels[:, 0].long(),
            weights,
            valid=matched,
            normalize_by=self.config.normalize_by,
            group=self.group,
        )


def at_their_pixels(maps: Tensor, size: torch.Size) -> Tensor:
    """Sub-sampled maps (B, K, h, w) at the pixels that they were taken from, 0 elsewhere: (B, K, *size)."""
    place = torch.arange(size.numel(), device=maps.device).view(size)
    whole = maps.new_zeros(*maps.shape[:2], size.numel())
    whole[..., subsample(place, tuple(maps.shape[2:])).flatten()] = maps.flatten(2)
    return whole.view(*maps.shape[:2], *size)
