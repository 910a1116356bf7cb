"""Reference-guided pseudo-labels, the paper's method (Eq. 1-8)."""

from torch import Tensor

from examples.augment import View
from examples.config import Config
from examples.data import Dataset
from examples.methods.base import Method, Step
from examples.parallel import world
from examples.unet import UNet
from rpg_loss import PseudoLabels, ReferenceBank, RPGLoss, segmentation_cross_entropy


class RPG(Method):
    def __init__(self, config: Config, data: Dataset, net: UNet, iterations: int) -> None:
        super().__init__(config, data, net, iterations)
        self.criterion = RPGLoss(
            config.k,
            balanced_k=config.balanced_k,
            map_size=config.map_size,
            weighted=config.weighted,
            resolution=config.resolution,
            normalize_by=config.normalize_by,
            group=self.group,
            check_values=False,
        )
        # Of several processes each has a bank of its own pools, and all together have --bank-mib.
        max_bytes = int(config.bank_mib * 2**20 / world())
        self.bank = ReferenceBank(max_bytes, max_age=config.bank_age) if config.bank_mib else None

    def forward(self, net: UNet, pool: View, unlabeled: View, step: int) -> Step:
        (logits_ref, feat_ref), (logits_u, feat_u) = self.forward_views(net, pool.images, unlabeled.images)
        supervised = segmentation_cross_entropy(logits_ref, pool.labels, group=self.group)
        rpg, pseudo_labels = self.rpg(logits_u, feat_u, feat_ref, pool, unlabeled)
        loss = supervised + self.config.lambda_u * rpg
        return Step(loss, {"supervised": supervised, "rpg": rpg}, pseudo_labels)

    def rpg(
        self, logits_u: Tensor, feat_u: Tensor, feat_ref: Tensor, pool: View, unlabeled: View
    ) -> tuple[Tensor, PseudoLabels]:
        """The loss against this step's pool and, with --bank-mib, those of the steps before."""
        outcome = self.criterion(
            logits_u, feat_u, feat_ref, pool.labels,
            extra_ref=self.past_references(), valid_u=unlabeled.valid, return_pseudo_labels=True,
        )  # fmt: skip
        if self.bank is not None:
            self.bank.push(feat_ref, pool.labels)
        return outcome

    def past_references(self) -> tuple[Tensor, Tensor] | None:
        return None if self.bank is None else self.bank.references()

    def pseudo_labels(self, net: UNet, pool: View, images: Tensor) -> PseudoLabels:
        return self.criterion.pseudo_labels(
            net(images)[1], net(pool.images)[1], pool.labels, extra_ref=self.past_references()
        )
