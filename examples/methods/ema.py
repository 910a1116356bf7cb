"""An exponential moving average of a network (the mean teacher, Tarvainen & Valpola 2017), and the ramp of its loss."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from examples.models.base import Network

EARLY, LATE = 0.99, 0.999  # decay of the average before and after the first seventh of the run
MEMORY = 1 / 6  # longest memory in shares of the run: in a short run .999 would remember the untrained network


class EMA(nn.Module):
    """An exponential moving average of a network's parameters, which starts as its copy."""

    def __init__(self, net: Network, iterations: int) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.iterations = iterations

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the averaged network's logits, with the statistics of this batch."""
        logits: Tensor = self.net(images)[0]
        return logits

    @torch.no_grad()
    def update(self, net: Network, step: int) -> None:
        """Move the average after a step of the network, counted from 1."""
        alpha = decay(step, self.iterations)
        for average, parameter in zip(self.net.parameters(), net.parameters(), strict=True):
            average.lerp_(parameter, 1 - alpha)


def decay(step: int, iterations: int) -> float:
    """Return the share of the old average to keep: a plain mean at first, .99 at most, .999 after the first seventh.

    In runs of less than 6000 steps both are lowered, so that the average remembers no more than a sixth of the run.
    """
    longest = 1 - 1 / max(MEMORY * iterations, 1)
    if step > iterations / 7:
        return min(LATE, longest)
    return min(1 - 1 / (step + 1), EARLY, longest)


def ramp_up(step: int, iterations: int) -> float:
    """Return a weight that rises from exp(-5) to 1 over the first two sevenths of the run."""
    return math.exp(-5 * (1 - min(step / (iterations * 2 / 7), 1)) ** 2)
