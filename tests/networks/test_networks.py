"""RPGLoss and FixMatchSegLoss on networks that people use, with random weights: what each needs, and that it learns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rpg_loss import FeatureTap, FixMatchSegLoss, ReferencePool, RPGLoss

CLASSES = 3
EXTRA = "pip install 'rpg-loss[networks]'"
WITH_TORCHVISION = "pip install {}, which brings torchvision, and with it perhaps another torch: so in no extra of ours"


def monai():
    return pytest.importorskip("monai.networks.nets", reason=EXTRA)


def unet(dim, **options):
    return monai().UNet(dim, 1, CLASSES, channels=(8, 16, 32), strides=(2, 2), **options)


def seg_resnet(dim):
    return monai().SegResNet(dim, 8, 1, CLASSES, blocks_down=(1, 1, 1), blocks_up=(1, 1))


def dyn_unet(dim):
    """In training its outputs at several resolutions come stacked in one tensor, (B, outputs, C, *S)."""
    return monai().DynUNet(
        dim, 1, CLASSES, [3, 3, 3], [1, 2, 2], [2, 2], filters=(8, 16, 32), deep_supervision=True, deep_supr_num=1
    )


def first_of_stacked(dim):
    return lambda output: output[:, 0] if output.ndim == dim + 3 else output


def swin_unetr():
    pytest.importorskip("einops", reason=EXTRA)
    sizes = dict(feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=2)
    return monai().SwinUNETR(in_channels=1, out_channels=CLASSES, spatial_dims=2, **sizes)


def segformer():
    transformers = pytest.importorskip("transformers", reason=EXTRA)
    config = transformers.SegformerConfig(
        num_channels=1,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=CLASSES,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def twice_as_large(output):
    """Its logits come at a fraction of the images' size; the supervised term wants them at the labels'."""
    return F.interpolate(output.logits, scale_factor=2, mode="bilinear")


class Dinov2WithLinearHead(nn.Module):
    """One linear layer on the tokens of the patches; logits at the images' size."""

    def __init__(self):
        super().__init__()
        transformers = pytest.importorskip("transformers", reason=EXTRA)
        config = transformers.Dinov2Config(
            num_channels=1, image_size=16, patch_size=2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
        )
        self.backbone = transformers.Dinov2Model(config)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images):
        tokens = self.backbone(images).last_hidden_state[:, 1:]
        grid = [side // 2 for side in images.shape[2:]]
        return F.interpolate(self.head(tokens).transpose(1, 2).unflatten(2, grid), images.shape[2:], mode="bilinear")


def plain_conv_unet(dim):
    package = "dynamic_network_architectures"
    reason = WITH_TORCHVISION.format(package.replace("_", "-"))
    unet = pytest.importorskip(f"{package}.architectures.unet", reason=reason)
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dim == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    return unet.PlainConvUNet(
        input_channels=1,
        n_stages=3,
        features_per_stage=(8, 16, 32),
        conv_op=conv,
        kernel_sizes=3,
        strides=(1, 2, 2),
        n_conv_per_stage=1,
        num_classes=CLASSES,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def smp_unet():
    package = "segmentation_models_pytorch"
    smp = pytest.importorskip(package, reason=WITH_TORCHVISION.format(package.replace("_", "-")))
    return smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=CLASSES)


@dataclass
class Case:
    make: Callable[[], nn.Module]
    layer: str  # that is tapped
    features: tuple[int, ...]  # D and the size that they have
    size: tuple[int, ...]  # of the images
    options: dict[str, Any] = field(default_factory=dict)  # what has to be said to the tap
    steps: int = 6


# A UNet of MONAI with residual units ends in a sum of two layers' outputs: its last block, "model.2", has to be named.
NAMED = {"layer": "model.2"}
CASES = {
    "MONAI UNet, 2-D": Case(lambda: unet(2), "model.2.conv", (16, 8, 8), (16, 16)),
    "MONAI UNet, 3-D": Case(lambda: unet(3), "model.2.conv", (16, 8, 8, 4), (16, 16, 8)),
    "MONAI UNet with residual units, 3-D": Case(
        lambda: unet(3, num_res_units=2), "model.2", (16, 8, 8, 4), (16, 16, 8), NAMED
    ),
    "MONAI SegResNet, 3-D": Case(lambda: seg_resnet(3), "conv_final.2.conv", (8, 16, 16, 8), (16, 16, 8)),
    "MONAI DynUNet, 2-D": Case(
        lambda: dyn_unet(2), "output_block.conv.conv", (8, 16, 16), (16, 16), {"logits": first_of_stacked(2)}
    ),
    "MONAI DynUNet, 3-D": Case(
        lambda: dyn_unet(3), "output_block.conv.conv", (8, 16, 16, 8), (16, 16, 8), {"logits": first_of_stacked(3)}
    ),
    "MONAI SwinUNETR, 2-D": Case(swin_unetr, "out.conv.conv", (12, 64, 32), (64, 32)),
    "Segformer": Case(
        # Its untrained features are so alike that RPG's weights start near 0: that term grows before it falls.
        segformer,
        "decode_head.classifier",
        (16, 8, 8),
        (16, 16),
        {"logits": twice_as_large},
        steps=30,
    ),
    "Dinov2 with a linear head": Case(
        Dinov2WithLinearHead,
        "head",
        (16, 8, 8),
        (16, 16),
        {"layout": lambda tokens: tokens.transpose(1, 2).unflatten(2, (8, 8))},
    ),
    "nnU-Net PlainConvUNet, 2-D": Case(lambda: plain_conv_unet(2), "decoder.seg_layers.1", (8, 16, 16), (16, 16)),
    "nnU-Net PlainConvUNet, 3-D": Case(lambda: plain_conv_unet(3), "decoder.seg_layers.1", (8, 16, 16, 8), (16, 16, 8)),
    "segmentation-models-pytorch Unet": Case(smp_unet, "segmentation_head.0", (16, 32, 32), (32, 32)),
}
networks = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def data(size, *, labeled=4, unlabeled=2):
    """Images of three gray values with noise, in coarse blocks, and the labels of the first of them."""
    coarse = torch.randint(CLASSES, (labeled + unlabeled, 1, *(max(side // 8, 2) for side in size)))
    labels = F.interpolate(coarse.float(), size, mode="nearest")
    images = labels - 1 + 0.2 * torch.randn_like(labels)
    return images[:labeled], labels[:labeled, 0].long(), images[labeled:]


def hooks_of(net):
    """Networks of Hugging Face set some of their own in their first forward."""
    return [(list(module._forward_hooks), list(module._forward_pre_hooks)) for module in net.modules()]


@networks
def test_features_are_what_enters_the_last_layer(case):
    images, *_ = data(case.size, labeled=2)
    net = case.make().eval()
    net(images)
    hooks = hooks_of(net)
    tap = FeatureTap(net, **case.options)
    logits, features = tap(images)
    assert tap.layer == case.layer
    assert logits.shape == (2, CLASSES, *case.size)
    assert features.shape == (2, *case.features)
    again, same = tap(images)
    assert torch.equal(features, same)
    assert torch.equal(logits, again)
    with torch.no_grad():
        tap(images)  # DynUNet keeps outputs of its last forward, which can only be copied without a graph
    other, changed = copy.deepcopy(tap)(images + 1)
    assert not torch.equal(features, changed)
    assert not torch.equal(logits, other)
    assert hooks_of(net) == hooks


@networks
def test_a_few_steps_lower_the_loss(case):
    images, labels, images_u = data(case.size)
    tap = FeatureTap(case.make(), **case.options)
    rpg, fixmatch = RPGLoss(k=0.5, map_size=16), FixMatchSegLoss(0.6)
    draw = ReferencePool(labels, size=2).sample()
    images, labels = images[draw], labels[draw]
    strong = images_u + 0.1 * torch.randn_like(images_u)

    def loss():
        logits, features = tap(images)
        logits_u, features_u = tap(images_u)
        logits_strong, _ = tap(strong)
        return rpg(logits_u, features_u, features, labels, logits) + fixmatch(logits_u, logits_strong)

    optimizer = torch.optim.Adam(tap.net.parameters(), 5e-3)
    losses = []
    for _ in range(case.steps):
        losses.append(loss())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    first, last = losses[0].item(), loss().item()
    assert last < 0.9 * first, [value.item() for value in losses]


def test_tensors_with_metadata():
    """MONAI's loaders give MetaTensors."""
    data_ = pytest.importorskip("monai.data", reason=EXTRA)
    images, labels, images_u = data((16, 16))
    tap = FeatureTap(seg_resnet(2)).eval()
    criterion = RPGLoss(map_size=8)

    def loss(wrap):
        logits, features = tap(wrap(images))
        logits_u, features_u = tap(wrap(images_u))
        return criterion(logits_u, features_u, features, wrap(labels), logits)

    got = loss(data_.MetaTensor)
    got.backward()
    torch.testing.assert_close(torch.as_tensor(got).item(), loss(lambda tensor: tensor).item())
