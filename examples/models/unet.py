"""The paper's UNet (Ronneberger et al. 2015) with batch norm and bilinear up-sampling."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.models.base import PyramidNetwork, channels_last, initialize


class UNet(PyramidNetwork):
    """A UNet of five levels: widths 8, 4, 2, 1 and 1 times ``base_channels`` from the bottom upwards.

    Args:
        in_channels: Channels of the image.
        num_outputs: Channels of the logits.
        base_channels: Width of the first level; the deepest is 16 times as wide (paper: 64 to 1024).
        precision: As for :class:`Network`.
    """

    def __init__(
        self, in_channels: int, num_outputs: int, base_channels: int = 64, precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__(precision)
        w1, w2, w3, w4, w5 = (base_channels * 2**level for level in range(5))
        levels = [(in_channels, w1), (w1, w2), (w2, w3), (w3, w4)]
        self.down = nn.ModuleList([nn.Sequential(*conv(i, o), *conv(o, o)) for i, o in levels])
        self.bottom = nn.Sequential(*conv(w4, w5), *conv(w5, w4))
        self.up = nn.ModuleList([UpBlock(w4, w4, w3), UpBlock(w3, w3, w2), UpBlock(w2, w2, w1), UpBlock(w1, w1, w1)])
        self.widths = (w4, w3, w2, w1, w1)
        self.feature_channels = w1
        self.head = nn.Conv2d(w1, num_outputs, 1)
        initialize(self)
        channels_last(self)

    def blocks(self, images: Tensor) -> list[Tensor]:
        x, skips = images, []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        outputs = [self.bottom(x)]
        for block in self.up:
            outputs.append(block(outputs[-1], skips.pop()))
        return outputs


class UpBlock(nn.Module):
    """Takes the size of the skip connection, joins it, and narrows to the next level's width.

    A convolution over two concatenated inputs is the sum of one over each. Written so, nothing has to be copied
    together.
    """

    def __init__(self, width: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.from_below = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.from_skip = nn.Conv2d(skip_channels, width, 3, padding=1, bias=False)
        self.rest = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True), *conv(width, out_channels))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)
        joined: Tensor = self.rest(self.from_below(x) + self.from_skip(skip))
        return joined


def conv(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


@torch.no_grad()
def recalibrate_batch_norm(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Take the statistics for evaluation from these batches alone.

    The usual running average remembers about ten forwards: here that is thirty images, seen by weights that have
    moved since and, in some methods, strongly augmented. Scores would jump from one validation to the next.
    """
    norms = [module for module in net.modules() if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain means; in training they would make a GPU wait in every layer
    net.train()
    for images in batches:
        net(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
