"""What a machine without a GPU can know of others: other kinds of devices, cards, versions, and arithmetic of GPUs."""

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import rpg_loss.matching.fused as fused
from rpg_loss import RPGLoss, rpg_pseudo_labels
from rpg_loss.matching import unavailable_reason
from rpg_loss.matching.definition import TIE, match_reference
from rpg_loss.matching.fused import Tiles, match_triton
from rpg_loss.matching.normalize import unit_length
from rpg_loss.matching.references import LocalReferences

from .problems import device_of, flat_problems, needs_triton

CUDA = torch.device("cuda")


class Pretended(TorchFunctionMode):
    """Tensors say that they are on another kind of device, which, like Apple's, has no float64."""

    def __init__(self, kind):
        super().__init__()
        self.device = torch.device(kind, 0)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == torch.Tensor.device.__get__:
            return self.device
        here = torch.device("cpu")
        args, kwargs = tree_map(lambda leaf: here if leaf == self.device else leaf, (args, kwargs or {}))
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                raise TypeError(f"Cannot convert a {self.device} tensor to float64")
        return result


@pytest.mark.parametrize("kind", ["mps", "xpu", "hpu", "privateuseone", "vulkan"])
@settings(max_examples=15)
@given(problem=flat_problems())
def test_other_kinds_of_devices_give_what_a_cpu_gives(kind, problem):
    expected = rpg_pseudo_labels(*problem.args)
    with Pretended(kind):
        got = rpg_pseudo_labels(*problem.args)
    assert torch.equal(got.labels, expected.labels)
    torch.testing.assert_close(got.weights, expected.weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["mps", "xpu", "privateuseone"])
def test_the_loss_on_other_kinds_of_devices(kind):
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    args = (torch.randn(2, 5, 8, 8), torch.randn(3, 5, 8, 8), torch.randint(3, (3, 8, 8)), torch.randn(3, 3, 8, 8))
    expected = RPGLoss()(logits, *args)
    with Pretended(kind):
        torch.testing.assert_close(RPGLoss()(logits, *args), expected)


def test_the_definition_says_that_it_needs_float64():
    with Pretended("mps"), pytest.raises(ValueError, match=r"'reference', which cannot run here: it needs float64"):
        rpg_pseudo_labels(torch.eye(2), torch.eye(2), torch.arange(2), 1, impl="reference")


def test_lengths_are_those_of_float64():
    """To the last bit, overflow and subnormal numbers included, as trainings before have computed them."""
    features = torch.randn(2000, 7) * torch.logspace(-44, 38, 2000)[:, None]
    features = torch.cat([features.nan_to_num(posinf=3e38, neginf=-3e38), torch.full((1, 7), 3.4e38)])
    unit, length = unit_length(features)
    exact = features.double().norm(dim=1)
    largest = features.abs().amax(1)
    scaled = (features / largest.masked_fill(largest == 0, 1)[:, None]).norm(dim=1)
    limits = torch.finfo(torch.float32)
    product = (scaled.double() * largest.double()).clamp(limits.tiny, limits.max).float()
    assert torch.equal(length, torch.where(exact == 0, 1, product))
    assert unit.isfinite().all()


@pytest.fixture
def card(monkeypatch):
    """Pretend a card of some compute capability and a version of Triton."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def pretend(*capability, triton="3.9.0"):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(fused, "triton_version", lambda: triton)

    return pretend


def test_cards_that_are_too_old(card):
    card(7, 5)
    reason = unavailable_reason("triton", CUDA)
    assert reason == "it needs compute capability 8.0 (Ampere) or newer, and cuda has 7.5"


@pytest.mark.parametrize(("version", "runs"), [("3.0.0", False), ("3.1.0", False), ("3.2.0", True), ("3.10.0", True)])
def test_versions_of_triton_whose_tf32_products_drift_are_for_half_precision_alone(card, version, runs):
    card(8, 0, triton=version)
    reason = unavailable_reason("triton", CUDA, torch.float32)
    assert (reason is None) == runs
    assert runs or reason == f"it needs Triton 3.2 or newer for float32 features, and {version} is installed"
    assert unavailable_reason("triton", CUDA, torch.bfloat16) is None


@needs_triton
def test_the_version_of_triton():
    assert fused.triton_version() == importlib.import_module("triton").__version__


def test_tiles_by_the_card(card):
    """float32 takes two stages on cards with 99 KiB: three took 104 KiB in Triton 3.8."""
    expected = {(8, 0): 3, (8, 6): 2, (8, 9): 2, (9, 0): 3, (10, 0): 3, (10, 3): 3, (12, 0): 2, (12, 1): 2}
    for capability, stages in expected.items():
        card(*capability)
        for d in (16, 64, 1024):
            assert fused._choose_tiles(CUDA, torch.zeros(1, d)).stages == stages
            assert fused._choose_tiles(CUDA, torch.zeros(1, d).half()).stages == 3
    assert [fused._choose_tiles(CUDA, torch.zeros(1, d).half()).features for d in (16, 32, 48, 64, 80)] == [
        16, 32, 64, 64, 64
    ]  # fmt: skip


def test_auto_does_not_interpret_on_a_gpu(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not fused.is_preferred(CUDA)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert fused.is_preferred(CUDA)
    assert not fused.is_preferred(torch.device("cpu"))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("d", [1, 15, 17, 70, 130])
def test_rows_are_filled_up_to_multiples_of_16_features(d, dtype):
    """Unaligned rows take more registers than a card has; zeros change nothing."""
    u, r, ids = torch.randn(20, d).to(dtype), torch.randn(70, d).to(dtype), torch.arange(70) % 4
    features = fused._Features(u, half=dtype == torch.float16)
    assert features.values.shape == (20, fused.padded(d))
    assert fused.padded(d) % 16 == 0
    assert not features.values[:, d:].any()
    device = device_of("triton")
    references = LocalReferences(r.to(device), ids.to(device), 4)
    got = match_triton(u.to(device), references, 30, tiles=Tiles(32, 32, 32, 4, 1))
    expected = match_reference(u, LocalReferences(r, ids, 4), 30)
    assert torch.equal(got.nearest_sets.cpu(), expected.nearest_sets)
    torch.testing.assert_close(got.proximities.cpu(), expected.proximities, atol=1e-6, rtol=0)


@needs_triton
def test_many_label_sets_are_matched_fewer_queries_at_a_time(monkeypatch):
    blocks = []
    monkeypatch.setattr(fused, "match_in_blocks", lambda engine, m, block, k, references: blocks.append(block))
    for sets in (1, 128, 512, 2**23):
        ids = torch.zeros(1, dtype=torch.int64)
        monkeypatch.setattr(fused, "sweeps", lambda *args: None)
        match_triton(torch.ones(1, 1), LocalReferences(torch.ones(1, 1), ids, sets), 1)
    assert blocks == [2**15, 2**15, 2**13, 1]


interpreted_only = pytest.mark.skipif(torch.cuda.is_available(), reason="arithmetic is emulated in the interpreter")


@pytest.fixture
def builder():
    import triton.runtime.interpreter as interpreter

    return interpreter, interpreter.InterpreterBuilder


def truncated(values):
    """float64 as float32, rounded towards zero."""
    rounded = values.astype(np.float32)
    return np.where(np.abs(rounded) > np.abs(values), np.nextafter(rounded, np.float32(0)), rounded)


@needs_triton
@interpreted_only
def test_long_half_precision_features_do_not_drift(monkeypatch, builder):
    """Tensor cores round their sums towards zero: a chain of 1024 products would be off by more than TIE."""
    interpreter, builder = builder

    def create_dot(self, a, b, d, *_):
        sums = d.data.astype(np.float64)
        for start in range(0, a.data.shape[1], 16):
            some = slice(start, start + 16)
            sums = truncated(sums + a.data[:, some].astype(np.float64) @ b.data[some].astype(np.float64))
        return interpreter.TensorHandle(sums.astype(np.float32), d.dtype)

    monkeypatch.setattr(builder, "create_dot", create_dot)
    u, r = torch.rand(16, 1024).half(), torch.rand(40, 1024).half()
    engine = fused.sweeps(u.dtype, LocalReferences(r, torch.arange(40), 40))(u)
    expected = torch.nn.functional.cosine_similarity(u[:, None].double(), r[None].double(), dim=2)
    assert (engine.set_maxima().double() - expected).abs().max() < TIE


@needs_triton
@interpreted_only
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_short_vectors_are_divided_exactly(monkeypatch, builder):
    """GPUs divide within two units in the last place; vectors so short that the epsilon is all give 0, not NaN."""
    interpreter, builder = builder

    def create_fdiv(self, a, b):
        return interpreter.TensorHandle((a.data / b.data * np.float32(1 + 2.0**-22)).astype(np.float32), a.dtype)

    monkeypatch.setattr(builder, "create_fdiv", create_fdiv)
    u = torch.rand(16, 8) * 1e-4
    r = torch.cat([torch.rand(30, 8) * torch.logspace(-5, 0, 30)[:, None], torch.full((1, 8), 1e-38)])
    engine = fused.sweeps(u.dtype, LocalReferences(r, torch.arange(31), 31))(u)
    a, b = u.double(), r.double()
    expected = a @ b.T / (torch.outer(a.norm(dim=1), b.norm(dim=1)) + 1e-8)
    torch.testing.assert_close(engine.set_maxima().double(), expected, atol=2e-7, rtol=0)
    tiny = fused.sweeps(u.dtype, LocalReferences(r, torch.arange(31), 31))(torch.full((1, 8), 1e-38))
    assert (tiny.set_maxima() < TIE).all()


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="since torch 2.9")
@pytest.mark.parametrize("name", ["pseudo_labels", "checked_labels"])
def test_operators_that_wait_stay_out_of_cuda_graphs(name):
    assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.rpg_loss, name).default.tags
