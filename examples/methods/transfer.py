"""Label transfer as the teacher: pseudo-labels by the nearest references in a pretrained encoder's features.

They are those of `examples.transfer`, by all labeled images, and do not change while the network learns: each image's
are made when it is drawn for the first time, and kept. They teach the weak view and a strong one, FixMatch's, in which
they are moved with the image, and nothing is taught within the CutOut square.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from examples.config import Config
from examples.data import Dataset, ImageSet
from examples.data.augment import StrongAugmentation, View
from examples.data.base import IGNORE_INDEX
from examples.data.resize import Placement
from examples.engine.sharding import on_whole_batch
from examples.inference.transfer_features import GRID, IMAGE_SIZE, POSITIONS, build_features
from examples.inference.transfer_votes import K, References, encode_references, proposed_masks
from examples.methods.base import Method, Step
from examples.models.base import Network
from rpg_loss import PseudoLabels, segmentation_cross_entropy


class Transfer(Method):
    def __init__(self, config: Config, data: Dataset, net: Network, iterations: int) -> None:
        super().__init__(config, data, net, iterations)
        self.features = build_features("lite0", GRID, POSITIONS)
        self.labeled, self.flip_pairs, self.num_classes = data.labeled, data.flip_pairs, len(data.class_names)
        self.strong = StrongAugmentation(self.generator)
        self.references: References | None = None
        # By a hash of the image: the bits of masks (C, H, W), of which a large data set has many.
        self.proposals: dict[bytes, NDArray[np.uint8]] = {}

    def forward(self, net: Network, pool: View, unlabeled: View, step: int) -> Step:
        strong = on_whole_batch(self.strong, unlabeled.images)
        (logits_ref, _), (logits_u, _), (logits_strong, _) = self.forward_views(
            net, pool.images, unlabeled.images, strong.images
        )
        supervised = segmentation_cross_entropy(logits_ref, pool.labels, group=self.group)
        maps, valid = self.carried(unlabeled), unlabeled.valid[:, None]
        pseudo_labels = self.certain(maps)
        weak = self.taught(logits_u, pseudo_labels.labels, valid)
        moved = strong.warp(torch.cat([maps, valid.float()], dim=1))
        covered = (moved[:, -1:] > 0.5) & ~strong.cutout[:, None]
        transfer = (weak + self.taught(logits_strong, self.certain(moved[:, :-1]).labels, covered)) / 2
        loss = supervised + self.lambda_u(step) * transfer
        return Step(loss, {"supervised": supervised, "transfer": transfer}, pseudo_labels)

    def taught(self, logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """Return the loss of logits beside labels (B, C, H, W) or (B, H, W), where ``valid`` (B, 1, H, W)."""
        target = labels.masked_fill(~(valid if self.multilabel else valid[:, 0]), IGNORE_INDEX)
        return segmentation_cross_entropy(logits, target, group=self.group)

    def pseudo_labels(self, net: Network, pool: View, images: Tensor) -> PseudoLabels:
        return self.certain(self.maps(torch.stack([self.propose(image) for image in images])))

    def carried(self, view: View) -> Tensor:
        """Return what is proposed for a view's images as maps, moved as these were."""
        masks = torch.stack([self.kept(image) for image in view.clean])
        return view.carry(self.maps(masks.to(view.clean.device)))

    def maps(self, masks: Tensor) -> Tensor:
        """Return masks (B, C, H, W) as probabilities: with background first, where classes exclude each other."""
        return (masks if self.multilabel else torch.cat([~masks.any(1, keepdim=True), masks], dim=1)).float()

    def certain(self, maps: Tensor) -> PseudoLabels:
        labels = (maps > 0.5).to(torch.int8) if self.multilabel else maps.argmax(1)
        return PseudoLabels(labels, maps.new_ones(len(maps), *maps.shape[-2:]))

    def kept(self, image: Tensor) -> Tensor:
        key = hashlib.sha256(image.cpu().numpy().tobytes()).digest()
        if key not in self.proposals:
            self.proposals[key] = np.packbits(self.propose(image).cpu().numpy())
        shape = (self.num_classes, *image.shape[1:])
        bits = np.unpackbits(self.proposals[key], count=math.prod(shape))
        return torch.from_numpy(bits.astype(bool).reshape(shape))

    @torch.no_grad()
    def propose(self, image: Tensor) -> Tensor:
        """Return the masks (C, H, W) bool of an image (1 or 3, H, W)."""
        if self.references is None:
            labeled = encoded_size(self.labeled.to(str(image.device)))
            self.references = encode_references(labeled, self.features, self.flip_pairs, self.num_classes, K)
        # One at a time, so that what is proposed does not depend on what it is drawn with.
        shares = self.references.label(self.features(resized(image[None]))[0]).shares
        side = image.shape[-1]
        place = Placement(side, side, side)
        return proposed_masks(shares, place, self.references.cut, multilabel=self.multilabel)


def encoded_size(images: ImageSet) -> ImageSet:
    """Bring images to the size at which they are encoded; padding is of no label."""
    labels = images.labels if images.labels.ndim == 4 else images.labels[:, None]
    if images.shown is not None:
        labels = labels.masked_fill(~images.shown[:, None], IGNORE_INDEX)
    labels = F.interpolate(labels.float(), (IMAGE_SIZE,) * 2).to(images.labels.dtype)
    return ImageSet(resized(images.images), labels if images.labels.ndim == 4 else labels[:, 0], images.names)


def resized(images: Tensor) -> Tensor:
    return F.interpolate(images, (IMAGE_SIZE,) * 2, mode="bilinear", antialias=True)
