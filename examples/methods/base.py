"""What a method is to the trainer: something to call once a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from examples.config import Config
from examples.data import Dataset
from examples.data.augment import View
from examples.engine.distributed import group
from examples.methods.ema import EMA
from examples.models.base import Network
from rpg_loss import PseudoLabels


class Step(NamedTuple):
    """The outcome of one step."""

    loss: Tensor  # what to minimize, a scalar
    terms: dict[str, Tensor]  # its parts, for the log
    # Labels (B, C, h, w) or (B, h, w) of the unlabeled view and their weights, for the log; a weight for each label
    # (B, C, h, w) is allowed
    pseudo_labels: PseudoLabels | None = None


class Method(nn.Module, ABC):
    """A way to learn from a labeled pool and unlabeled images.

    To add one, write a file like its neighbors and enter it in ``METHODS``.  Whatever a method assigns to itself as a
    module (further heads, an average) is trained with the network if it needs gradients; the network itself, ``net``,
    it does not keep.  Randomness comes from ``self.generator``: it and all modules and buffers are in the checkpoints
    that a run goes on from.  Views are this process's shares of the batches: losses take their means with
    ``group=self.group``, and what is drawn for a batch is drawn for all of it (``on_whole_batch``).
    """

    def __init__(self, config: Config, data: Dataset, net: Network, iterations: int) -> None:
        super().__init__()
        self.config = config
        self.multilabel = data.multilabel
        self.iterations = iterations
        self.generator = Generator().manual_seed(config.seed)
        self.ema = EMA(net, iterations) if config.ema else None
        self.group = group()

    def get_extra_state(self) -> Tensor:
        """Return where the random stream stands: with it, ``state_dict`` holds all that a method needs to go on."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())

    @abstractmethod
    def forward(self, net: Network, pool: View, unlabeled: View, step: int) -> Step:
        """Return the loss of one step, counted from 1; ``net(images)`` returns logits and features."""

    def lambda_u(self, step: int) -> float:
        """Return the weight of the loss on unlabeled images at a step, counted from 1."""
        return self.config.lambda_u if step > self.config.warm_up * self.iterations else 0.0

    def after_step(self, net: Network, step: int) -> None:
        """Do what has to be done when the optimizer has moved the network."""
        if self.ema is not None:
            self.ema.update(net, step)

    def evaluated(self, net: Network) -> Network:
        """Return the network to validate, test and keep."""
        return net if self.ema is None else self.ema.net

    def pseudo_labels(self, net: Network, pool: View, images: Tensor) -> PseudoLabels | None:
        """Return the method's pseudo-labels of these images, for pictures; None where it uses none."""
        return None

    def forward_views(self, net: Network, *views: Tensor, target: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return logits and features of every batch, with its own statistics or (--batch-norm shared) those of all.

        View ``target`` only gives targets; where it is forwarded by itself, that is done without gradients.
        """
        if self.config.batch_norm == "separate":
            outputs = []
            for number, images in enumerate(views):
                with torch.set_grad_enabled(torch.is_grad_enabled() and number != target):
                    outputs.append(net(images))
            return outputs
        sizes = [len(images) for images in views]
        logits, features = net(torch.cat(views))
        return list(zip(logits.split(sizes), features.split(sizes), strict=True))
