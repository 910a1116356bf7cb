"""What a method is to the trainer: something to call once a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from examples.augment import View
from examples.config import Config
from examples.data import Dataset
from rpg_loss import PseudoLabels


class Step(NamedTuple):
    """The outcome of one step.

    Attributes:
        loss: What to minimise, a scalar.
        terms: Its parts, for the log.
        pseudo_labels: Labels (B, C, h, w) or (B, h, w) of the unlabelled view and their weights, for the log; a weight
            for each label (B, C, h, w) is allowed.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    pseudo_labels: PseudoLabels | None = None


class Method(ABC):
    """A way to learn from a labelled pool and unlabelled images.

    To add one, write a file like its neighbours and enter it in ``METHODS``.
    """

    def __init__(self, config: Config, data: Dataset) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, net: nn.Module, pool: View, unlabeled: View) -> Step:
        """Computes the loss of one step; ``net(images)`` returns logits and features.

        Pool and unlabelled images are forwarded one after the other, so that each keeps its own batch statistics.
        """

    def pseudo_labels(self, net: nn.Module, pool: View, images: Tensor) -> PseudoLabels | None:
        """What the method would teach about these images, for pictures; None where it uses no pseudo-labels."""
        return None
