"""Invariant information clustering for segmentation (Ji et al. 2019), as an auxiliary task beside the labels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.config import Config
from examples.data import Dataset
from examples.data.augment import View, WeakAugmentation
from examples.engine.distributed import all_reduce_sum
from examples.engine.sharding import on_whole_batch
from examples.methods.base import Method, Step
from examples.models.base import Network
from rpg_loss import segmentation_cross_entropy

CLUSTERS_PER_CLASS = 5  # background counted as a class
REACH = 10 / 512  # largest displacement T, in shares of the side
WEIGHT = 0.1


class IIC(Method):
    def __init__(self, config: Config, data: Dataset, net: Network, iterations: int) -> None:
        super().__init__(config, data, net, iterations)
        self.clusters = nn.Conv2d(net.feature_channels, CLUSTERS_PER_CLASS * (len(data.class_names) + 1), 1)
        self.reach = math.ceil(REACH * config.image_size)
        self.weak = WeakAugmentation(data.flip_pairs, self.generator)

    def forward(self, net: Network, pool: View, unlabeled: View, step: int) -> Step:
        other, flip = on_whole_batch(self.other_view, unlabeled.images)
        (logits_ref, _), (_, features), (_, features_other) = self.forward_views(
            net, pool.images, unlabeled.images, other
        )
        supervised = segmentation_cross_entropy(logits_ref, pool.labels, group=self.group)
        p = self.clusters(features).softmax(1)
        q = mirror(self.clusters(features_other).softmax(1), flip)
        information = dense_mutual_information(p, q, unlabeled.valid, self.reach)
        loss = supervised - self.lambda_u(step) * WEIGHT * information
        return Step(loss, {"supervised": supervised, "mutual_information": information})

    def other_view(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return images with other colors, about half of them mirrored, and which are."""
        flip = (torch.rand(len(images), 1, 1, 1, generator=self.generator) < 0.5).to(images.device)
        return mirror(self.weak.jitter(images), flip), flip


def mirror(maps: Tensor, flip: Tensor) -> Tensor:
    return torch.where(flip, maps.flip(-1), maps)


def dense_mutual_information(p: Tensor, q: Tensor, valid: Tensor, reach: int) -> Tensor:
    """Return the mutual information between the clusters of a pixel in one view and of its neighbors in the other.

    Args:
        p: Cluster probabilities (B, K, H, W) of one view.
        q: Those of the other view, in the same frame. With several processes, of this one's share.
        valid: (B, H, W) bool, False at pixels to leave out.
        reach: Largest displacement T; the mean is over all displacements in [-T, T]^2.

    Returns:
        A scalar in [0, log K]; 0 where no pixel is valid.
    """
    p, q = (maps.float() * valid[:, None] for maps in (p, q))
    # For every displacement, the sum over pixels of p_k(u) q_l(u + displacement): a correlation.
    joint = all_reduce_sum(F.conv2d(q.transpose(0, 1), p.transpose(0, 1), padding=reach))
    return mutual_information(joint.flatten(2).permute(2, 0, 1)).mean()


def mutual_information(joint: Tensor) -> Tensor:
    """Return the mutual information (...) of joint distributions (..., K, K), first normalized and made symmetric."""
    joint = (joint + joint.transpose(-1, -2)) / 2
    # The floor keeps the logarithm of clusters that never occur finite.
    joint = (joint / joint.sum((-2, -1), keepdim=True).clamp(min=1e-12)).clamp(min=1e-12)
    row, column = joint.sum(-1, keepdim=True), joint.sum(-2, keepdim=True)
    return (joint * (joint.log() - row.log() - column.log())).sum((-2, -1))
