"""The self-check catches fused kernels that are wrong in any way, and what follows: right results, and one warning."""

import os
import warnings
from types import SimpleNamespace

import pytest
import torch

import rpg_loss.matching.fused as fused
import rpg_loss.matching.self_check as self_check
from rpg_loss import rpg_pseudo_labels
from rpg_loss.matching import Matches, _warn, match, resolve
from rpg_loss.matching.definition import match_reference
from rpg_loss.matching.references import LocalReferences

from .problems import needs_triton, shrink_self_check

pytestmark = [
    needs_triton,
    pytest.mark.skipif(torch.cuda.is_available(), reason="sabotages the interpreter's kernels"),
]
KERNELS = ("set_maxima", "count_above", "lowest_key")
FP32 = torch.float32
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    """Trusted and forgotten as on a GPU."""
    monkeypatch.setattr(fused, "is_preferred", lambda device: True)
    shrink_self_check(monkeypatch)
    _warn.cache_clear()


@pytest.fixture
def sabotage(monkeypatch):
    """Have something done to the arguments of a kernel after every launch."""
    kernels = fused._kernels()

    class Sabotaged:
        def __init__(self, kernel, spoil):
            self.kernel, self.spoil = kernel, spoil

        def __getitem__(self, grid):
            def launch(*args, **options):
                self.kernel[grid](*args, **options)
                self.spoil(*args[6:], **options)

            return launch

    def spoil(name, how):
        spoiled = {kernel: getattr(kernels, kernel) for kernel in KERNELS}
        spoiled[name] = Sabotaged(spoiled[name], how)
        constants = {"THRESHOLDS": kernels.THRESHOLDS, "MAX_SPAN": kernels.MAX_SPAN}
        monkeypatch.setattr(fused, "_kernels", lambda: SimpleNamespace(**constants, **spoiled))

    return spoil


def higher(sets, best, *sizes, **options):
    best.view(FP32)[11, 3] += 1e-4


def one_set_forgotten(sets, best, *sizes, **options):
    best[:, 0] = 0


def higher_for_short_vectors(sets, best, *sizes, EPS_MATTERS, **options):  # noqa: N803
    if EPS_MATTERS:
        best.view(FP32)[11, 6] += 1e-4


def one_too_many(chosen, thresholds, counts, *sizes, **options):
    counts[3, 5] += 1


def one_too_few(chosen, thresholds, counts, *sizes, **options):
    counts[:, 7] -= 1


def last_of_ties(keys, chosen, thresholds, lowest, *sizes, **options):
    lowest[5] = keys.max()


def no_tie_found(keys, chosen, thresholds, lowest, *sizes, **options):
    lowest[5] = torch.iinfo(torch.int64).max


def noise(sets, best, *sizes, **options):
    best.view(FP32).mul_(1 + 1e-7 * torch.rand(best.shape))


def broken(*args, **options):
    raise RuntimeError("Failed to find C compiler.\nMore of it")


SABOTAGES = {
    "maximum too high": ("set_maxima", higher, "maxima of label sets are wrong"),
    "maximum missing": ("set_maxima", one_set_forgotten, "maxima of label sets are wrong"),
    "maximum of short vectors": ("set_maxima", higher_for_short_vectors, "maxima of label sets are wrong"),
    "count too high": ("count_above", one_too_many, "counts of nearer references are wrong"),
    "count too low": ("count_above", one_too_few, "counts of nearer references are wrong"),
    "last of ties": ("lowest_key", last_of_ties, "the first of equally near references is wrong"),
    "tie not found": ("lowest_key", no_tie_found, "the first of equally near references is wrong"),
    "not repeatable": ("set_maxima", noise, "results differ from one run to the next"),
    "exception at launch": ("count_above", broken, "RuntimeError: Failed to find C compiler."),
}


@pytest.mark.parametrize(("kernel", "how", "cause"), SABOTAGES.values(), ids=SABOTAGES)
def test_every_sabotage_is_caught(sabotage, kernel, how, cause):
    sabotage(kernel, how)
    u, r, y = torch.randn(9, 5), torch.randn(20, 5), torch.arange(20) % 3
    with pytest.warns(RuntimeWarning, match=cause) as warned:
        got = rpg_pseudo_labels(u, r, y, 7)
    assert [str(warning.message) for warning in warned] == [
        "rpg_loss: the fused kernels failed their self-check on cpu with 16 features of torch.float32: "
        f'{cause}. The slower impl="chunked" runs instead, with right results. Please report what '
        "python -m rpg_loss.doctor prints"
    ]
    expected = rpg_pseudo_labels(u, r, y, 7, impl="chunked")
    assert torch.equal(got.labels, expected.labels)
    assert torch.equal(got.weights, expected.weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rpg_pseudo_labels(u, r, y, 7)
        rpg_pseudo_labels(u[:, :3], r[:, :3], y, 7)  # as many features to the kernels
    with pytest.raises(ValueError, match=rf"impl: got 'triton', which cannot run here: .* of torch.float32: {cause}"):
        rpg_pseudo_labels(u, r, y, 7, impl="triton")


def test_wrong_results_of_the_whole_are_caught(monkeypatch):
    """What lies between the kernels, sorting and scattering, runs on the device, too."""
    right = fused.match_triton

    def spoiled(*args):
        labels, proximities = right(*args)
        return Matches(labels.roll(1), proximities)

    monkeypatch.setattr(fused, "match_triton", spoiled)
    assert "nearest label sets are wrong" in self_check.failure(CPU, FP32, 5)
    monkeypatch.setattr(self_check, "_verdicts", {})
    monkeypatch.setattr(fused, "match_triton", lambda *args: Matches(right(*args)[0], torch.zeros(40, 7)))
    assert "class proximities are wrong" in self_check.failure(CPU, FP32, 5)


@pytest.mark.parametrize(("d", "dtype"), [(1, FP32), (70, FP32), (3, torch.float16), (64, torch.bfloat16)])
def test_right_kernels_pass_and_are_checked_once(monkeypatch, d, dtype):
    calls = []
    fault = self_check._fault
    monkeypatch.setattr(self_check, "_fault", lambda *args: calls.append(args) or fault(*args))
    u, r = torch.randn(4, d).to(dtype), torch.randn(5, d).to(dtype)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        assert [resolve("auto", u, r), resolve("triton", u, r), resolve("auto", u[..., None], r)] == ["triton"] * 3
    finally:
        torch.set_default_dtype(FP32)
    assert len(calls) == 2  # with and without an epsilon that matters
    assert torch.equal(torch.get_rng_state(), state)


def test_every_dtype_and_number_of_features_is_checked(monkeypatch):
    seen = []
    monkeypatch.setattr(self_check, "_fault", lambda u, *args: seen.append((u.dtype, u.shape[1])))
    for d in (16, 32):
        for queries, references in ((FP32, FP32), (torch.half, torch.half), (torch.half, FP32)):
            resolve("auto", torch.ones(1, d, dtype=queries), torch.ones(1, d, dtype=references))
    assert seen == [(dtype, d) for d in (16, 32) for dtype in (FP32, torch.half) for _ in range(2)]


def test_full_size():
    """Several tiles in a program, as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_check, "_SIZES", (1, 3, 5, 7, 20, 40, 64, 90, 110, 160, 200))
        patch.setattr(self_check, "_SETS", 11)
        patch.setattr(self_check, "_QUERIES", 130)
        assert self_check._fault(*self_check.hard_problem(64, FP32, short=False), CPU) is None


def test_out_of_memory_is_no_verdict(monkeypatch):
    def full(*args):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(self_check, "_fault", full)
    args = (torch.eye(2), LocalReferences(torch.eye(2), torch.arange(2), 2), 1)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        match(*args)
    monkeypatch.setattr(self_check, "_fault", lambda *args: None)
    assert match(*args).nearest_sets.tolist() == [0, 1]
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_the_definition_agrees_with_itself_whatever_the_problem():
    for short in (False, True):
        for dtype in (FP32, torch.half, torch.bfloat16):
            u, r, ids = self_check.hard_problem(8, dtype, short)
            for k in (1, 30, len(r) - 1):
                got = match_reference(u, LocalReferences(r, ids, 7), k)
                assert self_check.disagreement(got, self_check.similarities(u, r), ids, 7, k) is None
