"""FrozenFeatures: what the features are, what is refused, and that neither encoder nor host notices the other."""

import copy
import itertools
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from rpg_loss import FrozenFeatures, RPGLoss

from .processes import needs_gloo, run

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LAYERS = ["fine", "coarse"]


class Encoder(nn.Module):
    """Outputs at 16 and 4 pixels for images of 16; batch norm and dropout tell the modes apart."""

    def __init__(self, dim=2, channels=3, **layers):
        super().__init__()
        conv, norm = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1], (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        self.fine = nn.Sequential(conv(channels, 6, 3, padding=1), norm[dim - 1](6), nn.Dropout(0.5))
        self.coarse = conv(6, 5, 4, stride=4)
        self.late = conv(5, 7, 1)
        self.unused = conv(5, 7, 1)
        self.forwards = 0
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, images):
        fine = self.fine(images)
        outputs = self.late(self.coarse(fine.relu()))
        self.forwards += 1
        return outputs


class Ends(nn.Module):
    """An encoder whose layer ``end`` gives what a function makes of the images."""

    def __init__(self, function, repeat=1):
        super().__init__()
        self.stem, self.end, self.repeat = nn.Conv2d(3, 4, 1), Function(function), repeat

    def forward(self, images):
        for _ in range(self.repeat):
            output = self.end(self.stem(images))
        return output


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Host(nn.Module):
    """A network that is trained, with frozen features beside it."""

    def __init__(self, encoder=None):
        super().__init__()
        self.net = nn.Conv2d(3, 3, 1)
        self.features = FrozenFeatures(encoder or Encoder(), LAYERS, size=8)

    def forward(self, images):
        return self.net(images), self.features(images)


def expected(encoder, images, size):
    """The same in other words."""
    encoder = copy.deepcopy(encoder).eval()
    with torch.no_grad():
        fine = encoder.fine(images)
        coarse = encoder.coarse(fine.relu())
    parts = [F.adaptive_avg_pool2d(fine, size), F.interpolate(coarse, size, mode="bilinear", align_corners=False)]
    return torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], dim=1)


# --- what the features are ---


def test_features_are_the_outputs_of_the_layers_on_one_grid_at_unit_length():
    encoder = Encoder()
    encoder.fine[1].running_mean.fill_(0.1)
    for side in (4, 5, 8):
        features = FrozenFeatures(encoder, LAYERS, size=side)
        for _ in range(2):  # the call that sees the whole forward, and one that stops
            torch.testing.assert_close(features(IMAGES), expected(encoder, IMAGES, (side, side)))
    turned = FrozenFeatures(encoder, LAYERS[::-1], size=8)(IMAGES)
    torch.testing.assert_close(turned, features(IMAGES).roll(5, dims=1))
    one = FrozenFeatures(encoder, "coarse", size=8)
    torch.testing.assert_close(one(IMAGES), features(IMAGES)[:, 6:])


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4, 7, 16, 20])
def test_lengths_and_sizes(dim, size):
    features = FrozenFeatures(Encoder(dim), LAYERS, size=size, positions=0.5)(torch.randn(2, 3, *[16] * dim))
    assert features.shape == (2, 6 + 5 + 2 * dim, *[size] * dim)
    assert features.dtype == torch.float32
    for part, length in zip(features.split([6, 5, 2 * dim], dim=1), (1, 1, 0.5), strict=True):
        torch.testing.assert_close(part.norm(dim=1), torch.full((2, *[size] * dim), float(length)))


def test_axes_of_their_own_sizes():
    """Finer along one axis, coarser along the other."""
    maps = FrozenFeatures(Encoder(), "coarse", size=(2, 9))(IMAGES)
    assert maps.shape == (2, 5, 2, 9)
    ramp = Ends(lambda x: torch.stack([torch.ones(4, 4), torch.arange(16.0).view(4, 4)]).expand(2, 2, 4, 4))
    part = FrozenFeatures(ramp, "end", size=(2, 8))(IMAGES)
    means, between = part[0, 1] / part[0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    torch.testing.assert_close(means, torch.stack([2 + between, 10 + between]))


def test_places_are_near_each_other_where_pixels_are():
    size = (5, 8)
    encoder = Encoder()
    with_places = FrozenFeatures(encoder, "fine", size=size, positions=2)(IMAGES)
    assert torch.equal(with_places[:, :6], FrozenFeatures(encoder, "fine", size=size)(IMAGES))
    place = with_places[:, 6:]
    assert torch.equal(place[0], place[1])
    for (y, x), (v, w) in itertools.product(itertools.product(range(5), range(8)), repeat=2):
        dot = place[0, :, y, x] @ place[0, :, v, w]
        wanted = 4 * (math.cos(math.pi * (y - v) / 5) + math.cos(math.pi * (x - w) / 8)) / 2
        assert dot == pytest.approx(wanted, abs=1e-5)


def test_an_image_does_not_depend_on_others_nor_a_call_on_the_last():
    features = FrozenFeatures(Encoder(), LAYERS, size=8, positions=1)
    both = features(IMAGES)
    assert torch.equal(features(IMAGES), both)
    torch.testing.assert_close(torch.cat([features(IMAGES[:1]), features(3 * IMAGES[1:] / 3)]), both)


def test_outputs_changed_in_place_later_are_as_the_layer_gave_them():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    features = FrozenFeatures(encoder, ["0", "2"], size=16)
    for _ in range(2):
        torch.testing.assert_close(features(IMAGES)[:, :4], F.normalize(encoder[0](IMAGES).detach(), dim=1))


def test_where_an_output_is_zero_the_part_is_zero():
    assert not FrozenFeatures(Ends(lambda x: 0 * x), "end", size=4)(IMAGES).any()


def test_the_forward_ends_with_the_last_layer_that_is_needed():
    features = FrozenFeatures(Encoder(), LAYERS, size=4)
    for _ in range(3):
        features(IMAGES)
        assert features.encoder.forwards == 1  # the first call saw the end
        assert not any(module._forward_hooks for module in features.encoder.modules())

    class Catches(Encoder):
        def forward(self, images):
            try:
                return super().forward(images)
            except Exception:
                return super().forward(images)

    caught = FrozenFeatures(Catches(), LAYERS, size=4)
    caught(IMAGES)
    assert caught(IMAGES).shape == (2, 11, 4, 4)
    assert caught.encoder.forwards == 1


def test_one_channel_is_repeated_and_scaled():
    encoder = Encoder()
    features = FrozenFeatures(encoder, LAYERS, size=8)
    gray = IMAGES[:, :1]
    torch.testing.assert_close(features(gray), features(gray.repeat(1, 3, 1, 1)))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    scaled = (gray - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(FrozenFeatures(encoder, LAYERS, size=8, mean=mean, std=std)(gray), features(scaled))
    torch.testing.assert_close(FrozenFeatures(encoder, LAYERS, size=8, mean=2, std=4)(gray), features((gray - 2) / 4))
    torch.testing.assert_close(FrozenFeatures(encoder, LAYERS, size=8, std=4)(gray), features(gray / 4))
    # Without a convolution, or with one that does not take the images, the channels have to be said.
    linear = nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (16, 16)), nn.Identity())
    assert FrozenFeatures(linear, "2", size=4)(IMAGES[:, :2]).shape == (2, 2, 4, 4)
    assert FrozenFeatures(linear, "2", size=4, in_channels=5)(gray).shape == (2, 5, 4, 4)


SEVERAL = {
    "tuple": lambda x: (None, x, 2 * x.sum()),
    "list": lambda x: [x, x[..., :1]],
    "dict": lambda x: {"map": x, "rest": 1},
}


@pytest.mark.parametrize("function", SEVERAL.values(), ids=SEVERAL)
def test_of_several_outputs_the_first_tensor_is_taken(function):
    encoder = Ends(function)
    expected = F.normalize(encoder.stem(IMAGES).detach(), dim=1)
    torch.testing.assert_close(FrozenFeatures(encoder, "end", size=16)(IMAGES), expected)


@pytest.mark.parametrize("extra", range(6))
@pytest.mark.parametrize(("size", "patch"), [((16, 16), 2), ((18, 13), 3), ((32, 16, 16), 4)])
def test_tokens(size, patch, extra):
    conv = (nn.Conv2d, nn.Conv3d)[len(size) - 2](1, 4, patch, stride=patch)

    def tokens(images):
        return F.pad(conv(images).flatten(2).transpose(1, 2), (0, 0, extra, 0), value=7)

    images = torch.randn(2, 1, *size)
    grid = tuple(side // patch for side in size)
    got = FrozenFeatures(nn.Sequential(Function(tokens)), "0", size=grid, layout="tokens")(images)
    torch.testing.assert_close(got, F.normalize(conv(images).detach(), dim=1))


TOKENS = {
    "sides of their own": (nn.Conv3d(1, 4, (2, 4, 4), (2, 4, 4)), (8, 16, 16), lambda tokens: tokens, (4, 4, 4)),
    "behind a class": (nn.Conv2d(1, 4, 4, 4), (16, 24), lambda tokens: F.pad(tokens, (0, 0, 1, 0)), (4, 6)),
    "merged": (nn.Conv2d(1, 4, 2, 2), (16, 24), lambda tokens: tokens[:, :24], (4, 6)),
    "of another convolution": (nn.Conv2d(1, 4, 3, 2, 1), (16, 24), lambda tokens: tokens[:, :25], (4, 6)),
    "a convolution of pixels": (nn.Conv2d(1, 4, 1), (16, 24), lambda tokens: tokens[:, :25], (4, 6)),
}


@pytest.mark.parametrize(("conv", "size", "kept", "grid"), TOKENS.values(), ids=TOKENS)
def test_tokens_are_of_the_patches_that_the_first_convolution_cuts(conv, size, kept, grid):
    made = []

    def tokens(maps):
        made.append(kept(maps.flatten(2).transpose(1, 2)))
        return made[-1]

    encoder = nn.Sequential(conv, Function(tokens))
    got = FrozenFeatures(encoder, "1", size=grid, layout="tokens")(torch.randn(2, 1, *size))
    last = made[-1][:, -math.prod(grid) :].transpose(1, 2).unflatten(2, grid)
    torch.testing.assert_close(got, F.normalize(last, dim=1))


def test_tokens_of_some_patches_alone_are_no_map():
    """A masked autoencoder keeps a random quarter of 196, behind a token of the class: 50 look like 7 x 7."""
    encoder = nn.Sequential(nn.Conv2d(1, 4, 16, 16), Function(lambda maps: maps.flatten(2).mT[:, :50]))
    with pytest.raises(ValueError, match=r"\(1, 50, 4\) fit no grid of patches \(16, 16\) of images \(224, 224\)"):
        FrozenFeatures(encoder, "1", size=7, layout="tokens")(torch.randn(1, 1, 224, 224))


def test_other_layouts():
    encoder = Ends(lambda x: x.movedim(1, -1))
    got = FrozenFeatures(encoder, "end", size=16, layout=lambda output: output.movedim(-1, 1))(IMAGES)
    torch.testing.assert_close(got, F.normalize(encoder.stem(IMAGES).detach(), dim=1))
    maps = FrozenFeatures(Encoder(), LAYERS, size=8, layout="tokens")  # of a network of both, maps stay as they are
    assert maps(IMAGES).shape == (2, 11, 8, 8)


# --- what is refused ---

ARGUMENTS = {
    "no network": ({"encoder": len}, TypeError, r"encoder: got builtin_function_or_method, expected a torch\.nn\.Mod"),
    "script": (
        {"encoder": torch.jit.ScriptModule()},
        TypeError,
        r"encoder: got \w*ScriptModule, .* no script; pass the",
    ),
    "lazy": (
        {"encoder": nn.Sequential(nn.LazyConv2d(3, 3)), "layers": ["0"]},
        ValueError,
        "encoder: got a network with lazy layers, expected all weights; call it on images once",
    ),
    "unknown layer": (
        {"layers": ["fin"]},
        ValueError,
        r"layers: got 'fin', which is not in Encoder; did you mean 'fin",
    ),
    "nothing like it": ({"layers": ["xyz"]}, ValueError, r"layers: got 'xyz', .*; see net\.named_modules"),
    "no name": ({"layers": [3]}, TypeError, "layers: got int, expected the name of a layer"),
    "no layer": ({"layers": []}, ValueError, r"layers: got \(\), expected one layer or more"),
    "twice": ({"layers": ["fine", "fine"]}, ValueError, r"layers: got \('fine', 'fine'\), .* each once"),
    "size 0": ({"size": (8, 0)}, ValueError, r"size: got \(8, 0\), expected sides of 1 or more"),
    "no size": ({"size": ()}, ValueError, r"size: got \(\), expected sides"),
    "fraction": ({"size": 8.0}, TypeError, r"size: got 8\.0, expected an int, or a tuple"),
    "negative": ({"positions": -1}, ValueError, "positions: got -1, expected a length of 0 or more"),
    "infinite": ({"positions": math.inf}, ValueError, "positions: got inf, expected a length"),
    "words": ({"positions": "2"}, ValueError, "positions: got '2', expected a length"),
    "layout": ({"layout": "maps"}, TypeError, "layout: got 'maps', expected 'tokens', None, or a function"),
    "channels": ({"in_channels": 0}, ValueError, "in_channels: got 0, expected 1 or more"),
    "half a channel": ({"in_channels": 1.5}, TypeError, r"in_channels: got 1\.5, expected an int"),
    "layers": ({"layers": None}, TypeError, "layers: got NoneType, expected the name of a layer"),
    "no mean": ({"mean": None}, TypeError, "mean: got None, expected a number, or one per channel"),
    "nan": ({"mean": math.nan}, ValueError, "mean: got nan, expected a finite number"),
    "no std": ({"std": ()}, ValueError, r"std: got \(\), expected a finite number"),
    "flag": ({"check_values": 1}, TypeError, "check_values: got 1, expected True or False"),
    "std": ({"std": (1, 0, 1)}, ValueError, r"std: got \(1, 0, 1\), expected no zeros"),
}


@pytest.mark.parametrize(("changed", "error", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments(changed, error, message):
    with pytest.raises(error, match=message):
        FrozenFeatures(**{"encoder": Encoder(), "layers": LAYERS, "size": 8, **changed})


CALLS = {
    "no tensor": ({}, None, TypeError, "images: got NoneType"),
    "integers": ({}, IMAGES.byte(), TypeError, r"images: got \(2, 3, 16, 16\) uint8, expected a real floating"),
    "one axis": ({}, IMAGES[0, 0], ValueError, r"images: got shape \(16, 16\), expected non-empty \(B, 3, \*S\)"),
    "no axis": ({"in_channels": 1}, IMAGES[0, 0, 0, 0], ValueError, r"images: got shape \(\)"),
    "empty": ({}, IMAGES[:0], ValueError, r"images: got shape \(0, 3, 16, 16\), expected non-empty"),
    "channels": ({}, IMAGES[:, :2], ValueError, r"\(2, 2, 16, 16\), .*\(B, 3, \*S\), or \(B, 1, \*S\) .* in_channels"),
    "nan": (
        {},
        IMAGES.where(IMAGES < 1, math.nan),
        ValueError,
        r"images: .* NaN or infinite .*check_values=False",
    ),
    "sizes": ({"size": (8, 8, 8)}, IMAGES, ValueError, r"size: got \(8, 8, 8\) for images with 2 spatial axes"),
    "device": ({}, IMAGES.to("meta"), ValueError, "images, encoder: got images on meta, encoder on cpu"),
    "mean": ({"mean": (1, 2)}, IMAGES, ValueError, r"mean, std: got \(1\.0, 2\.0\), .* each of 3 channels"),
    "unused": ({"layers": "unused"}, IMAGES, ValueError, r"layers: 'unused' ran 0 times in one forward, expected once"),
}


@pytest.mark.parametrize(("changed", "images", "error", "message"), CALLS.values(), ids=CALLS)
def test_calls(changed, images, error, message):
    features = FrozenFeatures(**{"encoder": Encoder(), "layers": LAYERS, "size": 8, **changed})
    with pytest.raises(error, match=message):
        features(images)


OUTPUTS = {
    "flat": (lambda x: x.mean((2, 3)), None, ValueError, r"'end' gave \(2, 4\), .* expected \(2, D, \*S\) with 2 spat"),
    "tokens": (lambda x: x.flatten(2).mT, None, ValueError, r"'end' gave \(2, 256, 4\), .*layout='tokens' for \(B, N"),
    "another batch": (lambda x: x.view(4, 2, 16, 16), None, ValueError, r"'end' gave \(4, 2, 16, 16\)"),
    "integers": (lambda x: x.long(), None, TypeError, r"layers: the output of 'end': got \(2, 4, 16, 16\) int64"),
    "nothing": (lambda x: None, None, TypeError, "layers: the output of 'end': got NoneType"),
    "no tensor in it": (lambda x: ["x"], None, TypeError, "layers: the output of 'end': got NoneType"),
    "too many tokens": (lambda x: x.new_ones(2, 70, 4), "tokens", ValueError, r"\(2, 70, 4\) fit no grid of equal"),
    "too few tokens": (lambda x: x.new_ones(2, 63, 4), "tokens", ValueError, r"\(2, 63, 4\) fit no grid"),
    "two grids": (lambda x: x.new_ones(2, 9, 4), "tokens", ValueError, r"fit \(2, 2\) and \(3, 3\) of equal patches"),
    "layout": (lambda x: x, lambda x: None, TypeError, "layout: got NoneType"),
    "layout's shape": (lambda x: x, lambda x: x[0], ValueError, r"which makes features \(4, 16, 16\)"),
}


@pytest.mark.parametrize(("function", "layout", "error", "message"), OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_that_are_no_maps(function, layout, error, message):
    with pytest.raises(error, match=message):
        FrozenFeatures(Ends(function), "end", size=4, layout=layout)(IMAGES)


def test_a_layer_that_runs_twice():
    features = FrozenFeatures(Ends(lambda x: x, repeat=2), "end", size=4)
    for _ in range(2):
        with pytest.raises(ValueError, match="layers: 'end' ran 2 times in one forward, expected once; name a layer"):
            features(IMAGES)


def test_values_are_not_looked_at_if_nobody_wants_it():
    features = FrozenFeatures(Encoder(), LAYERS, size=8, check_values=False)
    assert features(IMAGES.where(IMAGES < 1, math.nan)).isnan().any()


def test_an_encoder_that_cannot_be_copied():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        encoder = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ValueError, match=r"encoder: got a Sequential that cannot be copied \(.*remove_weight_norm"):
        FrozenFeatures(encoder, "0", size=8)
    nn.utils.remove_weight_norm(encoder[0])
    FrozenFeatures(encoder, "0", size=8)


def test_a_compiled_encoder_is_refused():
    with pytest.raises(ValueError, match=r"encoder: got a OptimizedModule that is compiled .* compile what calls"):
        FrozenFeatures(torch.compile(Encoder(), backend="eager"), "_orig_mod.fine", size=8)


# --- the encoder is frozen ---


def test_the_encoder_is_a_copy_in_evaluation_mode_without_gradients():
    encoder = Encoder()
    host = Host(encoder)
    before = host.features(IMAGES)
    host.train()
    host.features.encoder.train()
    host.requires_grad_()
    host.apply(lambda module: [nn.init.zeros_(parameter) for parameter in module.parameters()])
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    images = IMAGES.clone().requires_grad_()
    after = host.features(images)
    assert torch.equal(before, after)
    assert not after.requires_grad
    assert encoder.training
    assert encoder.fine[0].weight.requires_grad
    assert not any(parameter.requires_grad for parameter in host.features.encoder.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_gradients(mode):
    with mode():
        features = FrozenFeatures(Encoder(), LAYERS, size=8)
        got = features(IMAGES)
    assert got.is_inference() == (mode is torch.inference_mode)
    torch.testing.assert_close(features(IMAGES), got.clone())
    assert not features(IMAGES).is_inference()


def test_autocast_and_half_precision():
    features = FrozenFeatures(Encoder(), LAYERS, size=8)
    wanted = features(IMAGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features(IMAGES), wanted)
        assert features(IMAGES.bfloat16()).dtype == torch.float32
    half = FrozenFeatures(copy.deepcopy(features.encoder).bfloat16(), LAYERS, size=8)
    assert half(IMAGES).dtype == torch.float32
    torch.testing.assert_close(half(IMAGES), wanted, atol=0.1, rtol=0)
    assert not torch.equal(half(IMAGES), wanted)
    assert features(IMAGES.double()).dtype == torch.float32


# --- the host does not notice it ---


def test_neither_optimizers_nor_checkpoints_see_the_encoder():
    host = Host()
    assert list(host.state_dict()) == ["net.weight", "net.bias", "features._extra_state"]
    assert len(list(host.parameters())) == 2
    assert not list(host.buffers())
    assert host.state_dict()["features._extra_state"].shape == (32,)
    assert "Encoder, ('fine', 'coarse'), size=(8,), positions=0" in repr(host)


def test_a_changed_encoder_is_noticed_when_a_checkpoint_is_loaded(tmp_path):
    encoder = Encoder()
    torch.save(Host(encoder).state_dict(), tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    Host(encoder).half().load_state_dict(state)
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        changed.unused.bias[0] += 1
    renamed = copy.deepcopy(encoder)
    renamed.other = renamed.unused
    del renamed.unused
    for other in (changed, renamed):
        with pytest.raises(ValueError, match=r"_extra_state: got fingerprint \w{8}, .* \(Encoder\) has other weights"):
            Host(other).load_state_dict(state)
    del state["features._extra_state"]
    Host(changed).load_state_dict(state, strict=False)


def test_how_weights_lie_in_memory_is_no_part_of_the_fingerprint():
    encoder = Encoder()
    state = Host(encoder).state_dict()
    strided = copy.deepcopy(encoder)
    bias = strided.unused.bias
    strided.unused.bias = nn.Parameter(bias.detach().repeat_interleave(2)[::2])
    Host(strided).load_state_dict(state)


def test_state_that_is_no_tensor_is_no_part_of_the_fingerprint():
    class Extra(nn.Identity):
        def get_extra_state(self):
            return {"calls": 3}

    assert FrozenFeatures(Encoder(extra=Extra()), LAYERS, size=8).state_dict()


def test_the_encoder_moves_with_the_host():
    host = Host().to("meta", torch.float64)
    assert {(p.device.type, p.dtype) for p in host.features.encoder.parameters()} == {("meta", torch.float64)}
    assert host.features.encoder.fine[1].running_mean.device.type == "meta"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda host: pickle.loads(pickle.dumps(host)), AveragedModel])
def test_copies_have_encoders_of_their_own(copied):
    host = Host()
    wanted = host.features(IMAGES)
    copy_ = copied(host)
    with torch.no_grad():
        for parameter in host.features.encoder.parameters():
            parameter.zero_()
    assert torch.equal(copy_.eval()(IMAGES)[1], wanted)
    if copied is AveragedModel:
        copy_.update_parameters(host)


def test_the_loss_takes_them_and_trains_the_network_alone():
    host, criterion = Host(), RPGLoss(map_size=8)
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    before = [copy.deepcopy(host.features.encoder.state_dict()), host.net.weight.clone()]
    logits, features = host(IMAGES)
    criterion(logits, features, features, torch.randint(3, (2, 16, 16)), logits).backward()
    optimizer.step()
    torch.testing.assert_close(host.features.encoder.state_dict(), before[0], rtol=0, atol=0)
    assert not torch.equal(host.net.weight, before[1])


def check_distributed_data_parallel(rank, world):
    host = Host()
    ddp = nn.parallel.DistributedDataParallel(host)
    for _ in range(2):
        logits, features = ddp(IMAGES)
        assert torch.equal(features, host.features(IMAGES))
        logits.sum().backward()
    assert host.net.weight.grad is not None


@needs_gloo
def test_distributed_data_parallel(tmp_path):
    run(check_distributed_data_parallel, 1, tmp_path)


def test_compiled_code_calls_it_as_it_is():
    torch.compiler.reset()
    host = Host()
    host.features(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(host, backend="aot_eager")
        for factor in (1, 2, 3):
            torch.testing.assert_close(compiled(factor * IMAGES), host(factor * IMAGES))
            compiled(factor * IMAGES)[0].sum().backward()
    torch.compiler.reset()
