"""Networks for the trainer."""

from __future__ import annotations

import torch
from torch import nn

from examples.config import Config
from examples.models.base import Network, PyramidNetwork
from examples.models.encoders import UNetLite0
from examples.models.named import TappedNetwork, named
from examples.models.unet import UNet

__all__ = ["Network", "PyramidNetwork", "UNet", "UNetLite0", "build_network", "network_precision"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
PYRAMIDS = {"unet": UNet, "unet_lite0": UNetLite0}


def build_network(config: Config, num_outputs: int, precision: torch.dtype = torch.float32) -> Network:
    """Return the network of ``config.network`` for images of ``config.in_channels``, in training mode, on the CPU."""
    if config.network in PYRAMIDS:
        return PYRAMIDS[config.network](config.in_channels, num_outputs, config.base_channels, precision)
    net = named(config.network, "network")(in_channels=config.in_channels, num_outputs=num_outputs)
    if not isinstance(net, nn.Module):
        raise ValueError(f"network: {config.network} returned a {type(net).__name__}, expected a torch.nn.Module")
    return TappedNetwork(net, config, num_outputs, precision)


def network_precision(precision: str, device: str) -> torch.dtype:
    """Return the type that the network computes in; a GPU that would only imitate it is refused."""
    gpu = torch.device(device).type == "cuda"
    if precision == "bf16" and gpu and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(
            f"precision: bf16, but {torch.cuda.get_device_name(device)} does not compute in it (from Ampere on, GPUs"
            " do); leave --precision out"
        )
    return PRECISIONS[precision]
