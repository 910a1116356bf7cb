"""Mean teacher for segmentation (Perone & Cohen-Adad 2018): the student agrees with an average of its past."""

from dataclasses import replace

from torch import Tensor

from examples.config import Config
from examples.data import Dataset
from examples.data.augment import View
from examples.engine.distributed import all_reduce_mean
from examples.methods.base import Method, Step
from examples.methods.ema import EMA, ramp_up
from examples.models.base import Network
from rpg_loss import PseudoLabels, segmentation_cross_entropy

WEIGHT = 20.0  # of the consistency once ramped up


class MeanTeacher(Method):
    ema: EMA

    def __init__(self, config: Config, data: Dataset, net: Network, iterations: int) -> None:
        super().__init__(replace(config, ema=True), data, net, iterations)

    def forward(self, net: Network, pool: View, unlabeled: View, step: int) -> Step:
        (logits_ref, _), (logits_u, _) = self.forward_views(net, pool.images, unlabeled.images)
        supervised = segmentation_cross_entropy(logits_ref, pool.labels, group=self.group)
        target = unlabeled.carry(self.probabilities(self.ema(unlabeled.clean)))
        valid = unlabeled.valid[:, None]
        error = (self.probabilities(logits_u) - target).square() * valid
        consistency = error.sum() / all_reduce_mean(valid.sum() * error.shape[1]).clamp(min=1)
        weight = self.lambda_u(step) * WEIGHT * ramp_up(step, self.iterations)
        loss = supervised + weight * consistency
        return Step(loss, {"supervised": supervised, "consistency": consistency}, self.rounded(target))

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.multilabel else logits.softmax(1)

    def rounded(self, probabilities: Tensor) -> PseudoLabels:
        labels = (probabilities > 0.5).float() if self.multilabel else probabilities.argmax(1)
        return PseudoLabels(labels, probabilities.new_ones(len(labels), *labels.shape[-2:]))

    def pseudo_labels(self, net: Network, pool: View, images: Tensor) -> PseudoLabels:
        return self.rounded(self.probabilities(net(images)[0]))
