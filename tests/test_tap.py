"""FeatureTap: which layer it finds, what it refuses to guess, and that the network stays what it was."""

import copy
import dataclasses
import functools
import pickle
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from rpg_loss import FeatureTap, RPGLoss

from .processes import needs_gloo, run

IMAGES = torch.randn(2, 1, 8, 8)


class Net(nn.Module):
    """A network that ends as ``end(net, features)`` says; ``layers`` are what its end needs."""

    def __init__(self, end=lambda net, features: net.head(features), **layers):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(4, 3, 1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.end = end

    def forward(self, images):
        return self.end(self, self.body(images))


def plain(net, features):
    return net.head(features)


def resized(net, features):
    return F.interpolate(net.head(features), scale_factor=2, mode="bilinear")


def cropped_padded_cast(net, features):
    return F.pad(net.head(features)[..., 1:, :], (0, 0, 1, 0)).double().contiguous()


def beside_an_auxiliary_head(net, features):
    return {"out": resized(net, features), "aux": F.interpolate(net.last(features), scale_factor=2)}


def deep_supervision(net, features):
    return [net.head(features), net.last(F.avg_pool2d(features, 2))]


def deep_supervision_coarse_first(net, features):
    return deep_supervision(net, features)[::-1]


def linear(net, features):
    return net.last(features.movedim(1, -1)).movedim(-1, 1)


def tokens(net, features):
    size = [side // 2 for side in features.shape[2:]]
    logits = net.last(F.avg_pool2d(features, 2).flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, size)
    return F.interpolate(logits, features.shape[2:], mode="bicubic")


def stacked(net, features):
    """Deep supervision in one tensor."""
    return torch.stack([net.last(features), F.interpolate(net.head(features), scale_factor=1)], dim=1)


def hooks_of(net):
    return [
        (*m._forward_hooks, *m._forward_pre_hooks) for m in net.modules() if m._forward_hooks or m._forward_pre_hooks
    ]


FOUND = {
    "plain": (plain, nn.Identity(), "head"),
    "a larger kernel": (lambda net, x: net.last(x), nn.Conv2d(4, 3, 3, padding=1), "last"),
    "transposed": (lambda net, x: net.last(x), nn.ConvTranspose2d(4, 3, 2, stride=2), "last"),
    "resized": (resized, nn.Identity(), "head"),
    "cropped, padded, cast": (cropped_padded_cast, nn.Identity(), "head"),
    "beside an auxiliary head that runs last": (beside_an_auxiliary_head, nn.Conv2d(4, 3, 1), "head"),
    "deep supervision": (deep_supervision, nn.Conv2d(4, 3, 1), "head"),
    "deep supervision, coarse first": (deep_supervision_coarse_first, nn.Conv2d(4, 3, 1), "head"),
    "an unused head": (plain, nn.Conv2d(4, 3, 1), "head"),
}


@pytest.mark.parametrize(("end", "last", "name"), FOUND.values(), ids=FOUND)
def test_finds_the_layer_whose_output_the_logits_are(end, last, name):
    net = Net(end, last=last).eval()
    tap = FeatureTap(net)
    for call in range(2):  # the call that finds, and one that knows
        logits, features = tap(IMAGES)
        assert tap.layer == name, call
        assert torch.equal(features, net.body(IMAGES))
        assert logits.shape[:2] == (2, 3)
    assert not hooks_of(net)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_layer_makes_the_logits_of_the_features(dim):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1]
    net = nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU(), conv(4, 3, 1))
    logits, features = FeatureTap(net)(torch.randn(2, 1, *[4] * dim))
    assert features.shape == (2, 4, *[4] * dim)
    assert torch.equal(net[2](features), logits)


PICKED = {
    "select": lambda output: output[:, 1],
    "select from the end": lambda output: output[:, -1],
    "select an axis from the end": lambda output: output.select(-4, 1),
    "unbind": lambda output: output.unbind(1)[1],
    "unbind an axis from the end": lambda output: output.unbind(-4)[1],
}


@pytest.mark.parametrize("pick", PICKED.values(), ids=PICKED)
def test_one_of_several_outputs_in_one_tensor(pick):
    net = Net(stacked, last=nn.Conv2d(4, 3, 1)).eval()
    for grad in (True, False):
        tap = FeatureTap(net, logits=pick)
        with torch.set_grad_enabled(grad):
            logits, features = tap(IMAGES)
        assert tap.layer == "head"
        assert torch.equal(logits, net.head(features))


def test_what_is_picked_of_another_axis_is_not_the_output_of_a_layer():
    net = Net(stacked, last=nn.Conv2d(4, 3, 1))
    for pick in (lambda output: output[:, :, 1], lambda output: (output + 0)[:, 1], lambda output: output.unbind(2)[0]):
        with pytest.raises(ValueError, match="not the output of one"):
            FeatureTap(net, logits=pick)(IMAGES)
    two = Net(lambda net, x: torch.stack([net.head(x)[:, :2], net.last(x)], 1), last=nn.Conv2d(4, 2, 1))
    for several in (net, two):  # as many as classes, or not
        with pytest.raises(ValueError, match=r"several outputs in one tensor, .*logits=lambda o: o\[:, 0\]"):
            FeatureTap(several)(IMAGES)
    with pytest.raises(ValueError, match="not the output of one"):
        FeatureTap(Net(lambda net, x: torch.stack([x.detach(), x.detach()], 1)), logits=lambda o: o[:, 0])(IMAGES)


# --- without gradients ---


@pytest.mark.parametrize("end", [plain, resized, cropped_padded_cast])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(end, mode):
    """As in the validation that Lightning runs before the first step, or in a test after loading."""
    net = Net(end).eval()
    tap = FeatureTap(net)
    with mode():
        logits, features = tap(IMAGES)
        assert tap.layer == "head"
        assert torch.equal(logits, net(IMAGES))
        assert torch.equal(features, net.body(IMAGES))
    assert not hooks_of(net)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("named", [True, False])
def test_networks_made_in_inference_mode(named):
    with torch.inference_mode():
        tap = FeatureTap(Net(), "head" if named else None).eval()
        logits, features = tap(IMAGES)
        assert torch.equal(tap.net.head(features), logits)
        assert tap.layer == "head"


@pytest.mark.parametrize("grad", [True, False])
def test_frozen_networks(grad):
    net = Net(resized).requires_grad_(False)
    with torch.set_grad_enabled(grad):
        tap = FeatureTap(net)
        logits, _ = tap(IMAGES)
    assert tap.layer == "head"
    assert not logits.requires_grad
    detached = Net(lambda net, x: net.head(x).detach() * 1)
    with pytest.raises(ValueError, match="no gradient leads from them to a layer, they may be detached"):
        FeatureTap(detached)(IMAGES)


def test_the_search_leaves_no_trace():
    """Neither in the statistics of batch norm, nor in random streams, nor in the images."""

    def in_place(net, features):
        return resized(net, F.dropout(features, 0.5))

    class InPlace(Net):
        def forward(self, images):
            images *= 2
            return super().forward(images)

    one, other = InPlace(in_place), InPlace(in_place)
    other.load_state_dict(one.state_dict())
    outputs = []
    for net, name in ((one, None), (other, "head")):
        torch.manual_seed(1)
        images = IMAGES.clone()
        with torch.no_grad():
            outputs.append([*FeatureTap(net, name)(images), images, torch.rand(3)])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_the_layer_is_in_the_checkpoint(tmp_path):
    tap = FeatureTap(Net(resized))
    before = tap.state_dict()
    tap(IMAGES)
    torch.save(tap.state_dict(), tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())

    loaded, unknown, named = FeatureTap(Net(resized)), FeatureTap(Net(resized)), FeatureTap(Net(resized), "body.0")
    loaded.load_state_dict(state)
    assert loaded.layer == "head"
    named.load_state_dict(state)
    assert named.layer == "body.0"
    unknown.load_state_dict(before)
    assert unknown.layer is None
    other = FeatureTap(nn.Sequential(nn.Conv2d(1, 3, 1)))
    other.load_state_dict({"_extra_state": state["_extra_state"]}, strict=False)
    assert other.layer is None


EMPTY = {
    "no images": (lambda: torch.zeros(0, 1, 8, 8), None),
    "meta": (lambda: IMAGES.to("meta"), "meta"),
    "fake": (lambda: FakeTensorMode(allow_non_fake_inputs=True).from_tensor(IMAGES), None),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("images", "device"), EMPTY.values(), ids=EMPTY)
def test_tensors_without_memory_are_not_mistaken_for_each_other(images, device, grad):
    """The address of each is 0."""
    net = Net(lambda net, x: (net.last(x), net.head(x))[1], last=nn.Conv2d(4, 3, 1)).eval()
    tap = FeatureTap(net if device is None else net.to(device))
    with torch.set_grad_enabled(grad):
        _, features = tap(images())
    assert tap.layer == "head"
    assert features.shape[1:] == (4, 8, 8)


# --- what cannot be the logits ---


@pytest.mark.parametrize("grad", [True, False])
def test_a_sum_in_place_is_not_the_output_of_a_layer(grad):
    def fused(net, features):
        logits = net.head(features)
        logits += net.last(features)
        return logits

    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=r"(?s)'head': Conv2d.*'last': Conv2d"):
        FeatureTap(Net(fused, last=nn.Conv2d(4, 3, 1)))(IMAGES)


def test_candidates_are_those_with_as_many_outputs():
    net = Net(lambda net, x: net.head(x).softmax(1), last=nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match=r"layer: the logits \(2, 3, 8, 8\) float32 that Net returned") as caught:
        FeatureTap(net)(IMAGES)
    message = str(caught.value)
    assert "'head': Conv2d(4, 3, kernel_size=(1, 1), stride=(1, 1)), (2, 4, 8, 8) float32 entered it" in message
    assert "body" not in message
    assert "resized" not in message
    assert "they all lie in [0, 1]: if the network ends in a softmax or sigmoid, take it out" in message
    with pytest.raises(ValueError, match=r"Candidates:\s+'body.0'") as caught:
        FeatureTap(Net(lambda net, x: x[:, :2].relu()))(IMAGES)
    assert "several outputs" not in str(caught.value)
    with pytest.raises(ValueError, match="Candidates: none, no such layer ran"):
        FeatureTap(nn.ReLU())(IMAGES)
    assert not hooks_of(net)


PROBABILITIES = {
    "softmax": lambda net, x: net.head(x).softmax(1),
    "sigmoid": lambda net, x: net.head(x).sigmoid(),
    "resized": lambda net, x: F.interpolate(net.head(x).softmax(1), scale_factor=2),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("end", PROBABILITIES.values(), ids=PROBABILITIES)
def test_probabilities_are_warned_of_once(end, grad):
    tap = FeatureTap(Net(end), "head")
    with torch.set_grad_enabled(grad):
        with pytest.warns(UserWarning, match=r"logits: all values of \(2, 3, .* lie in \[0, 1\], as after a softmax"):
            tap(IMAGES)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tap(IMAGES)


def test_logits_are_not_warned_of():
    """Neither what a layer gives, wherever it lies, nor zeros, nor no values at all."""
    positive = Net(lambda net, x: net.head(0 * x + 0.1 * torch.rand(2, 1, 8, 8)))
    nn.init.constant_(positive.head.weight, 0.1)
    nn.init.constant_(positive.head.bias, 0.5)
    zero = Net(lambda net, x: net.head(x) + net.head.bias.view(-1, 1, 1))
    nn.init.zeros_(zero.head.weight)
    nn.init.zeros_(zero.head.bias)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for net in (positive, zero, Net(), Net(lambda net, x: net.head(x).log_softmax(1))):
            FeatureTap(net, "head")(IMAGES)
        tap = FeatureTap(Net(lambda net, x: net.head(x).softmax(1)), "head").eval()
        tap(IMAGES[:0])
    with pytest.warns(UserWarning, match="logits: all values"):  # the first that there are
        tap(IMAGES)


# --- what the network returns ---


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


SELECTED = {
    "tuple of one": (lambda net, x: (net.head(x),), None),
    "dict of one": (lambda net, x: {"seg": net.head(x)}, None),
    "dict": (lambda net, x: {"hidden": x, "logits": net.head(x)}, None),
    "dataclass": (lambda net, x: Output(net.head(x), x), None),
    "index": (lambda net, x: (x, net.head(x)), 1),
    "negative index": (lambda net, x: (x, net.head(x)), -1),
    "key": (lambda net, x: {"seg": net.head(x), "other": x}, "seg"),
    "attribute": (lambda net, x: Output(x, net.head(x)), "hidden"),
    "function": (lambda net, x: {"seg": [x, net.head(x)]}, lambda output: output["seg"][1]),
}


@pytest.mark.parametrize(("end", "selector"), SELECTED.values(), ids=SELECTED)
def test_logits_are_a_part_of_the_output(end, selector):
    net = Net(end).eval()
    logits, features = FeatureTap(net, logits=selector)(IMAGES)
    assert torch.equal(logits, net.head(net.body(IMAGES)))
    assert torch.equal(features, net.body(IMAGES))


AMBIGUOUS = {
    "two of one size": (
        lambda net, x: [net.head(x), net.head(x)],
        None,
        r"cannot tell .* a list of \[0\]: \(2, 3, 8, 8\)",
    ),
    "different channels": (lambda net, x: (net.head(x), x), None, r"cannot tell .* a tuple of .*\[1\]: \(2, 4, 8, 8\)"),
    "dict of two": (lambda net, x: {"a": net.head(x), "b": x[..., :2]}, None, r"cannot tell .* a dict of 'a': \(2, 3"),
    "nothing": (lambda net, x: None, None, "cannot tell .* a NoneType"),
    "more than tensors": (lambda net, x: (net.head(x), "loss"), None, r"cannot tell .*\[1\]: str"),
    "empty": (lambda net, x: [], None, "cannot tell .* a list of"),
    "no such index": (lambda net, x: (net.head(x), x), 2, "logits: got 2, but the network returned a tuple of"),
    "no such key": (lambda net, x: {"a": net.head(x)}, "b", "logits: got 'b', but the network returned a dict of 'a'"),
    "no such attribute": (plain, "seg", "logits: got 'seg', but the network returned a Tensor"),
    "no container": (lambda net, x: None, 0, "logits: got 0, but the network returned a NoneType"),
}


@pytest.mark.parametrize(("end", "selector", "message"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_outputs_are_refused(end, selector, message):
    with pytest.raises(ValueError, match=message):
        FeatureTap(Net(end), "head", logits=selector)(IMAGES)


def test_a_selector_that_gives_no_tensor():
    with pytest.raises(TypeError, match=r"logits: got str, expected a torch.Tensor"):
        FeatureTap(Net(), logits=lambda output: "logits")(IMAGES)


# --- what lies under the logits ---


def padded_inside(margin, end):
    """Logits of images that a network pads on the right and below, to sizes that it can halve."""
    net = Net(lambda net, x: end(net.head(x)))
    net.body.insert(0, nn.ZeroPad2d((0, margin, 0, margin)))
    return net


CUT = {
    "cut": (4, lambda logits: logits[..., :-4, :-4]),
    "narrowed": (4, lambda logits: logits.narrow(2, 0, 8)[..., :8]),
    "negative padding": (4, lambda logits: F.pad(logits, (0, -4, 0, -4))),
    "split": (4, lambda logits: logits.split([8, 4], 2)[0].split(8, 3)[0]),
    "cut with classes last": (4, lambda logits: logits.movedim(1, -1)[:, :-4, :-4].movedim(-1, 1)),
    "padded with axes swapped": (-2, lambda logits: F.pad(logits.mT, (0, 2)).mT),
    "resized, cast and cut": (4, lambda logits: F.interpolate(logits, scale_factor=2).double()[..., :16, :16]),
    "cut and resized": (4, lambda logits: F.interpolate(logits[..., :-4, :-4], scale_factor=2, mode="bilinear")),
    "padded": (-4, lambda logits: F.pad(logits, (0, 4, 0, 4))),
}


@pytest.mark.parametrize("name", [None, "head"])
@pytest.mark.parametrize(("margin", "end"), CUT.values(), ids=CUT)
def test_logits_that_are_cut_out_of_a_larger_map_are_refused(margin, end, name):
    """Else the features of a pixel would be those of another one."""
    net = padded_inside(margin, end)
    with pytest.raises(ValueError, match=r"logits: got \(2, 3, .*cut out of a larger map .*layout=lambda x"):
        FeatureTap(net, name)(IMAGES)

    def alike(x):
        return F.pad(x, (0, 8 - x.shape[-1], 0, 8 - x.shape[-2]))

    _, features = FeatureTap(net, name, layout=alike)(IMAGES)
    assert torch.equal(features, alike(net.body(IMAGES)))


def test_a_layout_that_leaves_the_features_uncut_is_refused():
    def end(net, features):
        return linear(net, F.pad(features, (4,) * 4))[..., 4:-4, 4:-4]

    net = Net(end, last=nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"logits: got \(2, 3, 8, 8\), .*cut out of a larger map"):
        FeatureTap(net, layout=lambda x: x.movedim(-1, 1))(IMAGES)
    assert FeatureTap(net, layout=lambda x: x.movedim(-1, 1)[..., 4:-4, 4:-4])(IMAGES)[1].shape == (2, 4, 8, 8)


@pytest.mark.parametrize("name", [None, "head", "mixer"])
@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0)])
def test_logits_with_their_axes_in_another_order_are_refused(order, name):
    """Also of a cube, where sizes do not tell; the layout that the error names brings each pixel its own features."""
    move = [0, 1, *(2 + axis for axis in order)]

    def end(net, features):
        return net.head(net.mixer(features)).permute(move)

    net = Net(end, mixer=nn.Conv3d(4, 4, 1)).eval()
    net.body, net.head = nn.Conv3d(1, 4, 1), nn.Conv3d(4, 3, 1)
    volumes = torch.randn(2, 1, 6, 6, 6)
    with pytest.raises(ValueError, match="axes the network moved after its last layer") as refused:
        FeatureTap(net, name)(volumes)
    advised = re.search(r"layout=lambda x: x.permute\((.*)\)\)", str(refused.value)).group(1)
    assert [int(axis) for axis in advised.split(", ")] == move
    logits, features = FeatureTap(net, "head", layout=lambda x: x.permute(move))(volumes)
    torch.testing.assert_close(net.head(features), logits)


UNCUT = {
    "every second pixel": lambda logits: logits[..., ::2, ::2],
    "some of the classes": lambda logits: logits[:, :2],
    "an odd size that was rounded up": lambda logits: F.interpolate(logits, scale_factor=2)[..., :-1, :-1],
    "cut and padded again": lambda logits: F.pad(logits[..., 4:], (4, 0)),
    "some of the classes, split": lambda logits: logits.split([2, 1], 1)[0].double(),
    "cut and, with axes swapped, padded again": lambda logits: F.pad(logits[..., 4:, :].mT, (4, 0)).mT,
    "axes in another order": lambda logits: logits.movedim(1, -1)[..., :2].movedim(-1, 1),
}


@pytest.mark.parametrize("end", UNCUT.values(), ids=UNCUT)
def test_logits_over_the_whole_map_are_not(end):
    tap = FeatureTap(padded_inside(0, end))
    assert tap(IMAGES)[1].shape == (2, 4, 8, 8)
    assert tap.layer == "head"


# --- the layout of features ---


def test_linear_layers_take_features_last():
    net = Net(linear, last=nn.Linear(4, 3)).eval()
    with pytest.raises(
        ValueError, match=r"layout: got None, but layer 'last' takes features last.* \(2, 8, 8, 4\) float32"
    ):
        FeatureTap(net)(IMAGES)
    _, features = FeatureTap(net, layout=lambda x: x.movedim(-1, 1))(IMAGES)
    assert torch.equal(features, net.body(IMAGES))
    with pytest.raises(TypeError, match=r"layout: got NoneType, expected a torch.Tensor"):
        FeatureTap(net, layout=lambda x: None)(IMAGES)


@pytest.mark.parametrize("name", ["last", "last.0"])
def test_so_do_layers_before_them(name):
    """A dropout may be named; read as (B, D, *S), its input is of another map."""
    net = Net(linear, last=nn.Sequential(nn.Dropout(), nn.Linear(4, 3))).eval()
    with pytest.raises(ValueError, match=rf"layout: got None, but layer '{name}' takes features last"):
        FeatureTap(net, name)(IMAGES)
    _, features = FeatureTap(net, name, layout=lambda x: x.movedim(-1, 1))(IMAGES)
    assert torch.equal(features, net.body(IMAGES))
    net = Net(lambda net, x: F.interpolate(net.head(x), (4, 8)))
    assert FeatureTap(net)(IMAGES)[1].shape == (2, 4, 8, 8)  # convolutions never do


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_tokens_become_a_map(size):
    """One token for 2 x 2 pixels, in row-major order."""
    images = torch.randn(2, 1, *size)
    net = Net(tokens, last=nn.Linear(4, 3)).eval()
    grid = [side // 2 for side in size]
    _, features = FeatureTap(net, layout=lambda x: x.transpose(1, 2).unflatten(2, grid))(images)
    torch.testing.assert_close(features, F.avg_pool2d(net.body(images), 2))
    with pytest.raises(ValueError, match=r"layer: .* entered 'last', which makes features \(2, 4, \d+\)"):
        FeatureTap(net, layout=lambda x: x.movedim(-1, 1))(images)


# --- layers by name ---


def test_any_layer_can_be_named():
    net = Net(lambda net, x: net.head(net.mixer(x) + x), mixer=nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid())).eval()
    _, features = FeatureTap(net, "mixer")(IMAGES)
    assert torch.equal(features, net.body(IMAGES))


def test_arguments_and_keywords_are_passed_on():
    class Scaled(nn.Conv2d):
        def forward(self, input, factor):
            return super().forward(input) * factor

    class WithKeywords(Net):
        def forward(self, images, *, factor):
            return self.last(input=self.body(images), factor=factor)

    net = WithKeywords(last=Scaled(4, 3, 1)).eval()
    logits, features = FeatureTap(net, "last")(IMAGES, factor=2)
    assert torch.equal(features, net.body(IMAGES))
    assert torch.equal(logits, net(IMAGES, factor=2))


REFUSED_LAYERS = {
    ValueError: [
        ("haed", plain, "layer: got 'haed', which is not in Net; did you mean 'head'"),
        ("xyz", plain, "layer: got 'xyz', .*; see net.named_modules"),
        ("", plain, "layer: got '', which is not in Net"),
        ("last", plain, "layer: 'last' ran 0 times in one forward, expected once"),
        ("head", lambda net, x: net.head(net.head(x).repeat(1, 2, 1, 1)[:, :4]), "'head' ran 2 times"),
        ("last", lambda net, x: net.head(x + net.last(x.mean((2, 3)))[..., None, None]), r"layer: .* \(2, 4\)"),
        ("last", lambda net, x: net.head(x + net.last(x[:1])), r"expected \(2, D, \*S\) with 2 spatial"),
    ],
    TypeError: [
        (nn.ReLU(), plain, "layer: got ReLU, expected the name of a layer"),
        ("last", lambda net, x: net.last(None) or net.head(x), "layer: what entered 'last': got NoneTy"),
        ("none", lambda net, x: net.none() or net.head(x), "layer: what entered 'none': got NoneTy"),
    ],
}


class NoArgument(nn.Module):
    def forward(self):
        return None


@pytest.mark.parametrize(
    ("error", "name", "end", "message"), [(error, *case) for error, cases in REFUSED_LAYERS.items() for case in cases]
)
def test_layers_that_do_not_do(error, name, end, message):
    net = Net(end, last=nn.Identity(), none=NoArgument())
    with pytest.raises(error, match=message):
        FeatureTap(net, name)(IMAGES)
    assert not hooks_of(net)


def test_a_shared_layer_that_gives_the_logits_of_its_second_call_is_not_kept():
    net = Net(lambda net, x: net.head(x + net.head(x).sum(1, keepdim=True)))
    tap = FeatureTap(net)
    with pytest.raises(ValueError, match="'head' ran 2 times"):
        tap(IMAGES)
    assert tap.layer is None


def test_features_changed_in_place_are_refused():
    net = Net(lambda net, x: net.head(net.last(x)), last=nn.Sequential(nn.LeakyReLU(inplace=True), nn.Conv2d(4, 4, 1)))
    with pytest.raises(ValueError, match="layer: what entered 'last' was changed in place"):
        FeatureTap(net, "last")(IMAGES)
    with torch.no_grad(), pytest.raises(ValueError, match="layer: what entered 'last' was changed in place"):
        FeatureTap(net, "last")(IMAGES)
    FeatureTap(net, "last.1")(IMAGES)


def test_arguments():
    with pytest.raises(TypeError, match=r"net: got function, expected a torch\.nn\.Module"):
        FeatureTap(plain)
    with pytest.raises(TypeError, match=r"net: got \w*ScriptModule, .* no script; pass the module that it was made of"):
        FeatureTap(torch.jit.ScriptModule())
    with pytest.raises(TypeError, match="layout: got 'tokens', expected a function"):
        FeatureTap(Net(), layout="tokens")
    assert "layer='head'" in repr(FeatureTap(Net(), "head"))


# --- the network stays what it is ---


def test_nothing_is_left_when_the_network_raises():
    net = Net(lambda net, x: net.head(x) if x.shape[-1] == 8 else net.head(x).no_such_thing)
    tap = FeatureTap(net)
    for _ in range(2):
        with pytest.raises(AttributeError, match="no_such_thing"):
            tap(IMAGES[..., :4])
        assert not hooks_of(net)
        tap(IMAGES)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda tap: pickle.loads(pickle.dumps(tap)), AveragedModel])
@pytest.mark.parametrize("named", [True, False])
def test_copies_tap_the_copy(copied, named):
    tap = FeatureTap(Net(plain), "head" if named else None)
    if not named:
        tap(IMAGES)
    copy_ = copied(tap)
    with torch.no_grad():
        for parameter in copy_.parameters():
            parameter.zero_()
    logits, features = copy_.eval()(IMAGES)
    assert not logits.any()
    assert not features.any()
    assert tap.eval()(IMAGES)[1].any()


def test_parameters_state_modes_and_dtypes_are_the_networks():
    net = Net().eval()
    tap = FeatureTap(net)
    assert not tap.training
    assert list(tap.state_dict()) == ["_extra_state", *(f"net.{name}" for name in net.state_dict())]
    assert [id(p) for p in tap.parameters()] == [id(p) for p in net.parameters()]
    other = Net()
    FeatureTap(other).load_state_dict(tap.state_dict())
    assert torch.equal(other.head.weight, net.head.weight)
    tap.train()
    assert net.body[1].training
    logits, features = tap.double()(IMAGES.double())
    assert logits.dtype == features.dtype == torch.float64


def test_gradients_pass_as_without_the_tap():
    torch.manual_seed(0)
    net = Net()
    expected = torch.autograd.grad(net(IMAGES).square().sum(), list(net.parameters()))
    logits, features = FeatureTap(net)(IMAGES)
    got = torch.autograd.grad(logits.square().sum(), list(net.parameters()), retain_graph=True)
    torch.testing.assert_close(got, expected)
    assert torch.autograd.grad(features.sum(), net.body[0].weight)[0].isfinite().all()


def test_under_autocast():
    tap = FeatureTap(Net())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            logits, features = tap(IMAGES)
            assert logits.dtype == torch.bfloat16
            assert tap.layer == "head"
        loss = RPGLoss()(logits, features, features, torch.randint(3, (2, 8, 8)), logits)
    loss.backward()
    assert tap.net.head.weight.grad.isfinite().all()


class Checkpointed(nn.Module):
    """Recomputes ``part`` in the backward."""

    def __init__(self, net, whole, reentrant):
        super().__init__()
        self.net, self.whole, self.reentrant = net, whole, reentrant

    def forward(self, images):
        images = images.requires_grad_()
        if self.whole:
            return checkpoint(self.net, images, use_reentrant=self.reentrant)
        return self.net.head(checkpoint(self.net.body, images, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_activation_checkpointing(whole, reentrant):
    net = Net()
    net.body[1] = nn.GroupNorm(2, 4)
    tap = FeatureTap(Checkpointed(net, whole, reentrant))
    for _ in range(2):
        logits, features = tap(IMAGES.clone())
        assert tap.layer == "net.head"
        torch.testing.assert_close(features, net.body(IMAGES))
        got = torch.autograd.grad(logits.square().sum(), list(net.parameters())) if not reentrant else None
        if reentrant:
            net.zero_grad()
            logits.square().sum().backward()
            got = tuple(parameter.grad for parameter in net.parameters())
        torch.testing.assert_close(got, torch.autograd.grad(net(IMAGES).square().sum(), list(net.parameters())))
        assert not hooks_of(net)


# --- compilers and processes ---


@pytest.fixture
def compiler():
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield "aot_eager"
    torch.compiler.reset()


@pytest.mark.parametrize("end", [plain, resized, beside_an_auxiliary_head])
def test_compiled_in_one_graph(compiler, end):
    net = Net(end, last=nn.Conv2d(4, 3, 1)).eval()
    tap = FeatureTap(net)
    tap(IMAGES)
    compiled = torch.compile(tap, fullgraph=True, backend=compiler)
    for factor in (1, 2, 3):
        got, expected = compiled(factor * IMAGES), tap(factor * IMAGES)
        torch.testing.assert_close(got, expected)
        gradients = [torch.autograd.grad(logits.square().sum(), net.head.weight) for logits, _ in (got, expected)]
        torch.testing.assert_close(*gradients)
        assert list(dict(net.named_modules())) == list(dict(Net(end, last=nn.Identity()).named_modules()))
        assert type(net.head) is nn.Conv2d


@pytest.mark.parametrize("named", [True, False])
def test_compiled_where_the_network_looks_at_its_last_layer(compiler, named):
    net = Net(lambda net, x: net.head(net.head.out_channels * x.to(net.head.weight.dtype))).eval()
    tap = FeatureTap(net, "head" if named else None)
    compiled = torch.compile(tap, fullgraph=named, backend=compiler)
    torch.testing.assert_close(compiled(IMAGES), FeatureTap(net)(IMAGES))


def test_what_compilers_trace_equals_what_runs_without_them(monkeypatch):
    net = Net(plain).eval()
    tap = FeatureTap(net, "head")
    expected = tap(IMAGES)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(tap(IMAGES), expected)
    torch.testing.assert_close(FeatureTap(net)(IMAGES), expected)
    assert type(net.head) is nn.Conv2d
    with pytest.raises(RuntimeError, match="channels"):
        tap(IMAGES.repeat(1, 2, 1, 1))
    assert type(net.head) is nn.Conv2d


@pytest.mark.parametrize("named", [True, False])
def test_compiled_with_batch_norm(compiler, named):
    """Two forwards and then the backward, as in every step, from the first step on."""
    images = [IMAGES, 2 * IMAGES, IMAGES + 1]
    results = []
    net = Net(resized)
    for compiles in (False, True):
        tap = FeatureTap(copy.deepcopy(net), "head" if named or not compiles else None)
        forward = torch.compile(tap, backend=compiler) if compiles else tap
        for _ in range(2):
            tap.zero_grad()
            sum(output.square().mean() for x in images for output in forward(x)).backward()
        results.append([*(p.grad for p in tap.parameters()), *tap.buffers()])
    torch.testing.assert_close(*results)


def test_compiled_with_a_layer_of_two_names_and_a_broken_graph(compiler):
    def broken(net, features):
        torch._dynamo.graph_break()
        return net.blocks[0](features)

    net = Net(broken).eval()
    net.blocks = nn.ModuleList([net.head])
    tap = FeatureTap(net, "head")
    compiled = torch.compile(tap, backend=compiler)
    for factor in (1, 2, 3):
        torch.testing.assert_close(compiled(factor * IMAGES), tap(factor * IMAGES))
    assert net.blocks[0] is net.head
    assert not hooks_of(net)


@pytest.mark.parametrize("named", [True, False])
def test_a_network_compiled_inside_the_tap_is_refused(compiler, named):
    net = torch.compile(Net(), backend=compiler)
    with pytest.raises(ValueError, match=r"net: .* is compiled .* torch\.compile\(FeatureTap\(net\)\)"):
        FeatureTap(net, "_orig_mod.head" if named else None)(IMAGES)
    net = Net()
    net.body.compile(backend=compiler)  # not on the way to the head
    FeatureTap(net, "head" if named else None)(IMAGES)
    net.compile(backend=compiler)
    with pytest.raises(ValueError, match=r"net: .* is compiled"):
        FeatureTap(net, "head")(IMAGES)


def check_distributed_data_parallel(rank, world):
    net = Net(resized).eval()
    expected = FeatureTap(copy.deepcopy(net))(IMAGES)
    ddp = nn.parallel.DistributedDataParallel
    for options in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
        # With options, DDP returns copies made by a function of its own, from which no layer is found.
        name = "module.head" if options else None
        for module in (FeatureTap(ddp(net, **options), name), ddp(FeatureTap(net), **options)):
            net.zero_grad()
            for _ in range(2):
                logits, features = module(IMAGES)
                torch.testing.assert_close((logits, features), expected)
                logits.sum().backward()
            assert net.head.weight.grad is not None
    tap = ddp(FeatureTap(net, "head"))
    torch.testing.assert_close(torch.compile(tap, backend="aot_eager")(IMAGES), tap(IMAGES))


@needs_gloo
def test_distributed_data_parallel(tmp_path):
    run(check_distributed_data_parallel, 1, tmp_path)


# --- threads ---


def in_threads(calls):
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


@pytest.mark.parametrize("named", [True, False])
def test_threads_share_a_tap(named):
    net = Net(resized).eval()
    taps = [FeatureTap(net, "head" if named else None) for _ in range(5)]
    start = threading.Barrier(8, timeout=60)

    def calls(number):
        start.wait()
        for tap in taps:
            for _ in range(8):
                logits, features = tap(number * IMAGES)
                assert torch.equal(features, net.body(number * IMAGES))
                assert torch.equal(logits, resized(net, features))

    in_threads([functools.partial(calls, number) for number in range(8)])
    assert not hooks_of(net)


def replica_of(module):
    """What DataParallel runs: shallow copies, which share the dictionaries of hooks."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        replica._modules[name] = replica_of(child)
        setattr(replica, name, replica._modules[name])
    for name, parameter in module._parameters.items():
        setattr(replica, name, None if parameter is None else parameter.clone())
    return replica


@pytest.mark.parametrize("named", [True, False])
def test_replicas_of_data_parallel(named):
    net = Net(resized).eval()
    tap = FeatureTap(net, "head" if named else None)
    start = threading.Barrier(4, timeout=60)

    def calls(number):
        replica = replica_of(tap)
        start.wait()
        logits, features = zip(*(replica(number * IMAGES) for _ in range(20)), strict=True)
        assert all(torch.equal(f, net.body(number * IMAGES)) for f in features)
        return logits[0].sum()

    torch.stack(in_threads([functools.partial(calls, number) for number in range(4)])).sum().backward()
    assert net.head.weight.grad is not None
    assert not hooks_of(net)


def test_layers_in_threads_of_their_own_are_refused():
    net = Net(lambda net, x: in_threads([lambda: net.head(x)])[0])
    with pytest.raises(ValueError, match=r"'head' ran 0 times .*DataParallel or compiled code run hidden: wrap"):
        FeatureTap(net, "head")(IMAGES)
    twice = Net(lambda net, x: net.head(x) + net.head(x))
    with pytest.raises(ValueError, match=r"expected once; name a layer that runs once$"):
        FeatureTap(twice, "head")(IMAGES)
