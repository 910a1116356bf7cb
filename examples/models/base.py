"""What a network is to the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Network(nn.Module, ABC):
    """A network that also returns the features its last layer sees.

    Args:
        precision: Of what is computed below the logits, by autocast. Weights, logits and features are float32 anyhow.
    """

    feature_channels: int  # channels of the features

    def __init__(self, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.precision = precision

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, num_outputs, H, W) and features (B, D, h, w), float32, of images (B, in_channels, H, W)."""

    def in_precision(self, compute: Callable[[Tensor], list[Tensor]], images: Tensor) -> list[Tensor]:
        """Return what a part of the network computes of images, in its precision, as float32."""
        if self.precision == torch.float32:
            return compute(images)
        with torch.autocast(images.device.type, self.precision):
            outputs = compute(images)
        return [output.float() for output in outputs]


class PyramidNetwork(Network):
    """A network of levels, from coarse to fine, with a head on the finest: what mlds puts further heads on."""

    widths: tuple[int, ...]  # channels of every level
    head: nn.Conv2d  # makes the logits of the last

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.levels(images)[-1]
        return self.head(features), features

    def levels(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of all levels, the coarsest first."""
        if images.shape[-2] % 16 or images.shape[-1] % 16:
            raise ValueError(f"images: got {tuple(images.shape)}, expected sides divisible by 16; resize or pad")
        return self.in_precision(self.blocks, images)

    @abstractmethod
    def blocks(self, images: Tensor) -> list[Tensor]: ...


def channels_last(net: nn.Module) -> None:
    """Lay the weights out as CPUs are faster with."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares it for tensors alone


def initialize(module: nn.Module) -> None:
    """Draw convolutions by Glorot's rule, without bias."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
