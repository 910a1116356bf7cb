"""bf16 and compiled networks compute the same but for rounding, and are still the networks they were."""

import copy
import json
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from examples.engine.precision import compile_networks, network_precision
from examples.methods.ema import Teacher
from examples.models.unet import UNet
from examples.train import train
from tests.examples.tiny import shrink, tiny


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what compilers of old and new torch versions warn of is not ours
        yield


def gradients(net: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    net.zero_grad()
    logits, features = net(images)
    (logits.square().mean() + features.square().mean()).backward()
    return {name: weight.grad.clone() for name, weight in net.named_parameters()}


def test_bf16_is_for_the_inside_of_the_network_alone():
    net, other = UNet(1, 3, 8), UNet(1, 3, 8, torch.bfloat16)
    other.load_state_dict(net.state_dict())
    images = torch.randn(2, 1, 32, 32)
    seen = []
    other.bottom.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for outcome, expected in zip(other(images), net(images), strict=True):
        assert outcome.dtype == torch.float32
        assert not torch.equal(outcome, expected)
        assert (outcome - expected).abs().mean() < 0.05 * expected.abs().mean()
    assert seen == [torch.bfloat16]
    a, b = gradients(net, images), gradients(other, images)
    assert all(gradient.dtype == torch.float32 for gradient in b.values())
    for name in ("head.weight", "up.3.from_skip.weight"):
        assert nn.functional.cosine_similarity(a[name].flatten(), b[name].flatten(), dim=0) > 0.99
    assert copy.deepcopy(other).precision == torch.bfloat16  # a teacher's


@pytest.mark.parametrize("method", ["rpg_plus", "mlds", "mean_teacher", "iic"])
def test_a_run_in_bf16_is_another_one_with_weights_alike(method, tmp_path, monkeypatch):
    shrink(monkeypatch.setattr)
    runs = [tiny(tmp_path / name, method=method, iterations=3, precision=name) for name in ("fp32", "bf16")]
    for run in runs:
        train(run)
    usual, other = (torch.load(run.out_dir / "best.pt", weights_only=True)["model"] for run in runs)
    assert all(values.dtype == usual[name].dtype for name, values in other.items())
    assert not torch.equal(usual["head.weight"], other["head.weight"])
    assert torch.allclose(usual["head.weight"], other["head.weight"], atol=0.02)
    assert json.loads((runs[1].out_dir / "result.json").read_text())["config"]["precision"] == "bf16"


def test_a_gpu_that_would_imitate_bf16_is_refused(monkeypatch):
    assert network_precision("bf16", "cpu") == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Quadro")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match="precision: bf16, but Quadro does not"):
        network_precision("bf16", "cuda")
    assert network_precision("fp32", "cuda") == torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert network_precision("bf16", "cuda") == torch.bfloat16


def eagerly(monkeypatch) -> list[object]:
    """Has torch.compile trace what it is given, and run it as it is; lists what was traced."""
    traced = []
    compile_ = torch.compile

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=backend, fullgraph=True))
    return traced


def test_networks_and_teachers_are_compiled_for_training_with_weights_of_their_own(monkeypatch):
    traced = eagerly(monkeypatch)
    net = UNet(1, 3, 4)
    teacher = Teacher(net, 10)
    images = torch.randn(2, 1, 32, 32)
    expected = [*net(images), teacher(images)]
    keys = list(net.state_dict())
    compile_networks(net, teacher)
    assert list(net.state_dict()) == keys
    assert not traced
    found = [*net(images), teacher(images)]
    assert len(traced) == 2
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with torch.no_grad():
        net.up[3].from_skip.weight.zero_()
    assert not torch.equal(net(images)[0], expected[0])
    assert torch.equal(teacher(images), expected[2])
    copied = copy.deepcopy(teacher)
    with torch.no_grad():
        copied.net.up[3].from_skip.weight.zero_()
    assert not torch.equal(copied(images), expected[2])
    net.eval()(images)
    assert len(traced) == 2


def test_compiled_gradients_are_those_of_the_network(monkeypatch):
    """Traced and differentiated by the compiler, but run without generated code, whose compilation takes minutes."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend="aot_eager"))
    net = UNet(1, 2, 2)
    images = torch.randn(2, 1, 16, 16)
    expected = gradients(net, images)
    compile_networks(net)
    for name, gradient in gradients(net, images).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=1e-5), name


def test_what_cannot_be_compiled_is_refused_with_the_reason(tmp_path, monkeypatch):
    shrink(monkeypatch.setattr)

    def backend(graph, inputs):
        raise RuntimeError("no compiler found")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=backend))
    with pytest.raises(ValueError, match=r"compile: torch.compile cannot .*no compiler found.*leave --compile out"):
        train(tiny(tmp_path / "run", compile=True))


def test_a_training_pass_of_the_network_never_waits_for_the_device():
    """A scalar that Python reads makes a GPU finish all that was queued."""

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(function)
            return function(*args, **kwargs or {})

    net = UNet(1, 2, 2)
    with Reads():
        logits, _ = net(torch.randn(2, 1, 16, 16))
        logits.sum().backward()
