"""A network in bf16 computes the same but for rounding, and is still the network it was."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from examples.engine.checkpoint import load_verified
from examples.engine.loop import train
from examples.models import network_precision
from examples.models.unet import UNet
from tests.examples.tiny import tiny


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
    assert copy.deepcopy(other).precision == torch.bfloat16  # as for an average


@pytest.mark.parametrize("method", ["rpg_plus", "mlds", "mean_teacher", "iic"])
def test_a_run_in_bf16_is_another_one_with_weights_alike(method, shrunk, tmp_path):
    runs = [tiny(tmp_path / name, method=method, iterations=3, precision=name) for name in ("fp32", "bf16")]
    for run in runs:
        train(run)
    usual, other = (load_verified(run.out_dir / "best.pt")["model"] for run in runs)
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
