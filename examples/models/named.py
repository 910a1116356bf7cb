"""Any other network: ``--network module:callable``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from examples.config import Config
from examples.models.base import Network
from rpg_loss import FeatureTap


def named(name: str, option: str) -> Callable[..., Any]:
    """Return what ``module:callable`` names; modules are looked for in the working folder, too."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{option}: got {name!r}, expected module:callable, as my_networks:make_unet")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{option}: {name} cannot be imported ({error})") from error
    if not callable(found):
        raise ValueError(f"{option}: {name} is a {type(found).__name__}, expected something to call")
    return found


class TappedNetwork(Network):
    """A network that returns logits (B, num_outputs, H, W) alone, with the features tapped from it.

    Their layer is found in a first forward of an image of the size that ``config`` gives.
    """

    def __init__(
        self, net: nn.Module, config: Config, num_outputs: int, precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__(precision)
        self.tap = FeatureTap(net.eval())
        name, sides = config.network, (config.image_size, config.image_size)
        images, expected = torch.zeros(1, config.in_channels, *sides), (1, num_outputs, *sides)
        try:
            with torch.no_grad():
                logits, features = self.tap(images)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"network: {name} cannot be used for images {tuple(images.shape)}: {error}") from error
        if tuple(logits.shape) != expected:
            raise ValueError(f"network: {name} makes logits {tuple(logits.shape)}, expected {expected}")
        self.feature_channels = features.shape[1]
        self.train()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.in_precision(lambda x: list(self.tap(x)), images)
        return logits, features
