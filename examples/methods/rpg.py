"""Reference-guided pseudo-labels, the paper's method (Eq. 1-8)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.config import Config
from examples.data import Dataset
from examples.data.augment import View
from examples.engine.distributed import world_size
from examples.methods.base import Method, Step
from examples.models.unet import UNet
from rpg_loss import PseudoLabels, ReferenceBank, RPGLoss, segmentation_cross_entropy
from rpg_loss.maps import subsample


class RPG(Method):
    def __init__(self, config: Config, data: Dataset, net: UNet, iterations: int) -> None:
        super().__init__(config, data, net, iterations)
        self.criterion = RPGLoss(
            config.k,
            balanced_k=config.balanced_k,
            entropy_over=config.entropy_over,
            temperature=config.temperature,
            map_size=config.map_size,
            weighted=config.weighted,
            resolution=config.resolution,
            normalize_by=config.normalize_by,
            group=self.group,
            check_values=False,
        )
        # Of several processes each has a bank of its own pools, and all together have --bank-mib.
        max_bytes = int(config.bank_mib * 2**20 / world_size())
        self.bank = ReferenceBank(max_bytes, max_age=config.bank_age) if config.bank_mib else None

    def forward(self, net: UNet, pool: View, unlabeled: View, step: int) -> Step:
        (logits_ref, feat_ref), (logits_u, feat_u) = self.forward_views(net, pool.images, unlabeled.images)
        supervised = segmentation_cross_entropy(logits_ref, pool.labels, group=self.group)
        rpg, pseudo_labels = self.rpg(logits_u, feat_u, feat_ref, pool, unlabeled)
        loss = supervised + self.lambda_u(step) * rpg
        return Step(loss, {"supervised": supervised, "rpg": rpg}, pseudo_labels)

    def rpg(
        self, logits_u: Tensor, feat_u: Tensor, feat_ref: Tensor, pool: View, unlabeled: View
    ) -> tuple[Tensor, PseudoLabels]:
        """The loss against this step's pool and, with --bank-mib, those of the steps before."""
        if self.config.average_features:
            feat_u, feat_ref = self.averaged_features(pool, unlabeled)
        past, valid = self.past_references(), unlabeled.valid
        if self.config.agreement:
            pseudo_labels = self.criterion.pseudo_labels(feat_u, feat_ref, pool.labels, extra_ref=past, valid_u=valid)
            outcome = self.where_agreed(logits_u, pseudo_labels, valid)
        else:
            outcome = self.criterion(
                logits_u, feat_u, feat_ref, pool.labels, extra_ref=past, valid_u=valid, return_pseudo_labels=True
            )
        if self.bank is not None:
            self.bank.push(feat_ref, pool.labels)
        return outcome

    def outputs(self, net: UNet, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the features to match: the last, or of the last --matched-levels, and with --coordinates."""
        levels = net.levels(images)
        features = side_by_side(levels[-self.config.matched_levels :], levels[-1].shape[2:])
        length = self.config.coordinates
        return net.head(levels[-1]), append_positions(features, length) if length else features

    @torch.no_grad()
    def averaged_features(self, pool: View, unlabeled: View) -> tuple[Tensor, Tensor]:
        """Features of the unlabelled images and of the pool, of the average of the network's weights."""
        assert self.teacher is not None  # Config wants --average with --average-features
        average = self.teacher.net
        return self.outputs(average, unlabeled.images)[1], self.outputs(average, pool.images)[1]

    def where_agreed(self, logits_u: Tensor, pseudo_labels: PseudoLabels, valid: Tensor) -> tuple[Tensor, PseudoLabels]:
        """The loss against those pseudo-labels that the network's own prediction agrees with."""
        grid = tuple(logits_u.shape[2:])
        if self.config.resolution == "map":
            grid = tuple(pseudo_labels.weights.shape[1:])
        labels, weights = (subsample(maps, grid) for maps in pseudo_labels)
        logits_u = subsample(logits_u, grid)
        agreed = ((logits_u > 0) == (labels > 0)).all(1) if self.multilabel else logits_u.argmax(1) == labels
        pseudo_labels = PseudoLabels(labels, weights * agreed)
        loss = segmentation_cross_entropy(
            logits_u,
            *pseudo_labels,
            valid=subsample(valid, grid),
            normalize_by=self.config.normalize_by,
            group=self.group,
        )
        return loss, pseudo_labels

    def past_references(self) -> tuple[Tensor, Tensor] | None:
        return None if self.bank is None else self.bank.references()

    def pseudo_labels(self, net: UNet, pool: View, images: Tensor) -> PseudoLabels:
        feat_u, feat_ref = (self.outputs(net, view)[1] for view in (images, pool.images))
        return self.criterion.pseudo_labels(feat_u, feat_ref, pool.labels, extra_ref=self.past_references())


def side_by_side(levels: list[Tensor], size: torch.Size) -> Tensor:
    """Outputs of the UNet's levels at one size: one as it is, several behind one another and each of length 1."""
    levels = [
        level if level.shape[2:] == size else F.interpolate(level, size=size, mode="bilinear", align_corners=False)
        for level in levels
    ]
    return levels[0] if len(levels) == 1 else torch.cat([F.normalize(level, dim=1) for level in levels], dim=1)


def append_positions(features: Tensor, length: float) -> Tensor:
    """Features (B, D, H, W) of length 1, and behind them each pixel's place as a vector of the given length.

    The place turns with x and y, so that the cosine between two pixels falls with the distance between them and no
    further than between opposite sides of the image: (B, D + 4, H, W).
    """
    sides = [torch.linspace(-1, 1, side, device=features.device) * math.pi / 2 for side in features.shape[2:]]
    y, x = torch.meshgrid(*sides, indexing="ij")
    places = length / math.sqrt(2) * torch.stack([x.cos(), x.sin(), y.cos(), y.sin()])
    return torch.cat([F.normalize(features.float(), dim=1), places.expand(len(features), -1, -1, -1)], dim=1)
