"""Every implementation against the definition, and the definition against a slow independent oracle."""

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rpg_loss.matching import match
from rpg_loss.matching.chunked import _block_size, match_chunked
from rpg_loss.matching.definition import match_reference
from rpg_loss.matching.fused import Tiles, match_triton
from rpg_loss.matching.normalize import full_float32_matmul
from rpg_loss.matching.references import LocalReferences, encode_label_sets

from .problems import (
    FAST_IMPLS,
    IMPLS,
    Largest,
    device_of,
    flat_problems,
    label_and_weight,
    label_vectors,
    needs_triton,
    problems,
    pseudo_labels,
)


def oracle(problem):
    """Label and weight of every query, by loops."""
    used = [pair for pair in zip(problem.feat_ref.double().numpy(), label_vectors(problem), strict=True) if pair[1]]
    references, sets = zip(*used, strict=True)
    k = min(problem.k, len(sets))
    found = [label_and_weight(query, references, sets, k) for query in problem.feat_u.double().numpy()]
    return [(sets[nearest], weight) for nearest, weight in found]


@pytest.mark.parametrize("impl", IMPLS)
@given(problem=flat_problems())
def test_oracle(impl, problem):
    labels, weights = pseudo_labels(*problem.args, impl=impl)
    expected = oracle(problem)
    assert [tuple(row) for row in labels.long().reshape(len(labels), -1).tolist()] == [label for label, _ in expected]
    torch.testing.assert_close(weights, torch.tensor([w for _, w in expected]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("impl", FAST_IMPLS)
@given(problem=problems())
def test_implementations_agree(impl, problem):
    one = pseudo_labels(*problem.args, impl="reference")
    other = pseudo_labels(*problem.args, impl=impl)
    assert torch.equal(one.labels, other.labels)
    torch.testing.assert_close(one.weights, other.weights, atol=1e-5, rtol=0)


def assert_matches(got, expected):
    assert torch.equal(got.nearest_sets.cpu(), expected.nearest_sets)
    torch.testing.assert_close(got.proximities.cpu(), expected.proximities, atol=1e-6, rtol=0)


def fused_matches(u, r, ids, k, **cut):
    device = device_of("triton")
    references = LocalReferences(r.to(device), ids.to(device), int(ids.max()) + 1)
    return match_triton(u.to(device), references, k, **cut)


# How the work is cut up: by default, in the smallest pieces, and without similarities kept for the counts.
CUTS = [{}, {"block": 7}, {"block": 64, "tile": 2500}, {"block": 64, "tile": 2500, "kept": 0}, {"kept": 0}]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@given(problem=flat_problems(ignored=False))
def test_cutting_up_the_work_changes_nothing(cut, problem):
    set_ids, set_labels = encode_label_sets(problem.y_ref)
    references = LocalReferences(problem.feat_ref, set_ids, len(set_labels))
    args = (problem.feat_u, references, min(problem.k, len(set_ids)))
    assert_matches(match_chunked(*args, **cut), match_reference(*args))


@needs_triton
@given(problem=flat_problems(ignored=False), slab=st.integers(1, 20), tile=st.sampled_from([16, 32]))
def test_cutting_up_the_work_of_the_fused_kernels_changes_nothing(problem, slab, tile):
    u, r = problem.feat_u, problem.feat_ref
    ids, set_labels = encode_label_sets(problem.y_ref)
    k = min(problem.k, len(ids))
    got = fused_matches(u, r, ids, k, slab=slab, tiles=Tiles(tile, tile, 16, warps=4, stages=1))
    assert_matches(got, match_reference(u, LocalReferences(r, ids, len(set_labels)), k))


def hard_problem(name):
    """Larger cases, each hard in its own way: features of queries and references, set ids, k."""
    m, n, d = 150, 400, 12
    u, r, ids = torch.randn(m, d), torch.randn(n, d), torch.arange(n) % 9
    if name == "many sets":
        ids = torch.arange(n) % 200
    elif name == "one set":
        ids = torch.zeros(n, dtype=torch.int64)
    elif name == "rare sets":
        ids = (torch.rand(n).pow(4) * 9).long()
        ids[:9] = torch.arange(9)
    elif name == "one reference":
        r, ids = r[:1], ids[:1]
    elif name == "all alike":  # a flat region: every proximity is 1, every set is tied
        u, r = torch.ones(m, d), torch.ones(n, d)
    elif name == "copies":  # every vector occurs in several sets
        r = r[torch.arange(n) % 40]
    elif name == "opposite":  # no positive cosine at all
        u, r = u.abs(), -r.abs()
    elif name == "zero queries":
        u[::2] = 0
    elif name == "zero references":
        r[::2] = 0
    elif name == "tiny":  # where the epsilon of Eq. 3 counts
        u, r = u * 1e-4, r * torch.logspace(-6, 0, n)[:, None]
    elif name == "huge":
        u, r = u * 1e37, r * 1e37
    elif name == "subnormal":
        r = r * 1e-42
    elif name == "wide":
        u, r = torch.randn(m, 1100), torch.randn(n, 1100)
    elif name == "double":
        u, r = u.double() * 1e200, r.double() * 1e200
    return u, r, ids


HARD = (
    "random", "many sets", "one set", "rare sets", "one reference", "all alike", "copies", "opposite", "zero queries",
    "zero references", "tiny", "huge", "subnormal", "wide",
)  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_agreement_with_the_definition_on_hard_problems(cut, name, share):
    u, r, ids = hard_problem(name)
    args = (u, LocalReferences(r, ids, int(ids.max()) + 1), max(1, round(share * len(r))))
    assert_matches(match_chunked(*args, **cut), match_reference(*args))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HARD)
def test_agreement_of_the_fused_kernels_on_hard_problems(name, dtype):
    u, r, ids = hard_problem(name)
    u, r, ids = u[:70].to(dtype), r[:150].to(dtype), torch.unique(ids[:150], return_inverse=True)[1]
    if not u.isfinite().all():
        pytest.skip("beyond the range of float16")
    for share in (0.05, 0.5):
        k = max(1, round(share * len(r)))
        expected = match_reference(u, LocalReferences(r, ids, int(ids.max()) + 1), k)
        assert_matches(fused_matches(u, r, ids, k), expected)


@needs_triton
def test_fused_counts_of_more_references_than_one_program_may_take(monkeypatch):
    """Beyond MAX_SPAN references the packed counts of a program would run over."""
    import rpg_loss.matching.kernels as kernels

    monkeypatch.setattr(kernels, "MAX_SPAN", 200)
    u, r, ids = torch.rand(40, 8), torch.rand(900, 8), torch.arange(900) % 20
    for k in (300, 600, 890):
        assert_matches(fused_matches(u, r, ids, k), match_reference(u, LocalReferences(r, ids, 20), k))


def test_similarities_that_round_to_the_same_16_bits_are_counted_exactly():
    """Angles a hundred times finer than 16 bits: which of the sets is within the k nearest takes exact counts."""
    angles = torch.linspace(0.3, 0.3003, 300, dtype=torch.float64)
    r = torch.stack([angles.cos(), angles.sin()], 1).float()
    u = torch.tensor([[1.0, 0.0]])
    ids = torch.arange(300) // 30
    for k in (1, 45, 100, 215, 299):
        assert_matches(
            match_chunked(u, LocalReferences(r, ids, 10), k), match_reference(u, LocalReferences(r, ids, 10), k)
        )


def test_float64_features_beyond_the_range_of_float32():
    u, r, ids = hard_problem("double")
    got = match_chunked(u, LocalReferences(r, ids, 9), 100)
    expected = match_reference(u / 1e200, LocalReferences(r / 1e200, ids, 9), 100)
    assert torch.equal(got.nearest_sets, expected.nearest_sets)
    torch.testing.assert_close(got.proximities, expected.proximities, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_matched_in_float32(dtype):
    u, r, ids = (torch.randn(50, 8).to(dtype), torch.randn(80, 8).to(dtype), torch.arange(80) % 5)
    got, expected = (
        match_chunked(u, LocalReferences(r, ids, 5), 20),
        match_chunked(u.float(), LocalReferences(r.float(), ids, 5), 20),
    )
    assert torch.equal(got.nearest_sets, expected.nearest_sets)
    assert torch.equal(got.proximities, expected.proximities)


@pytest.mark.parametrize("impl", IMPLS)
def test_non_contiguous_tensors(impl):
    u, r = torch.randn(5, 7, 2, 4).permute(2, 3, 1, 0), torch.randn(4, 4, 6, 10)[:, :, ::2, ::2]
    y = torch.randint(3, (6, 10, 4)).permute(2, 0, 1)[:, ::2, ::2]
    got = pseudo_labels(u, r, y, 9, impl=impl)
    expected = pseudo_labels(u.contiguous(), r.contiguous(), y.contiguous(), 9, impl=impl)
    assert torch.equal(got.labels, expected.labels)
    torch.testing.assert_close(got.weights, expected.weights)


@pytest.mark.parametrize("labels", [72, 200])
@pytest.mark.parametrize("impl", IMPLS)
def test_many_overlapping_labels(impl, labels):
    """Label vectors that differ only in their last labels, where floating point could not tell 2^i apart."""
    y = torch.zeros(6, labels, dtype=torch.uint8)
    y[:, 0] = 1
    y[1, -1] = y[2, -2] = y[3, 63] = y[4, 62] = 1
    got = pseudo_labels(torch.eye(6), torch.eye(6), y, 1, impl=impl)
    assert torch.equal(got.labels, y)
    torch.testing.assert_close(got.weights, torch.ones(6), atol=1e-5, rtol=0)


def test_ties_survive_rounding():
    """Stretched copies of one vector: rounding makes their float32 cosines differ, the lowest index still wins."""
    u, r = torch.randn(200, 1, 24), torch.randn(1, 24)
    stretched = r * torch.linspace(0.3, 7, 40)[:, None]
    for y in (torch.arange(40), torch.arange(40).flip(0)):
        labels, weights = pseudo_labels(u[:, 0] + 3 * r, stretched, y, 1, impl="chunked")
        assert (labels == y[0]).all()
        torch.testing.assert_close(weights, torch.zeros(200), atol=1e-5, rtol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_label_vector_that_is_known_in_part_is_no_reference(impl):
    y = torch.tensor([[1, -100], [0, 1]])
    labels, weights = pseudo_labels(torch.eye(2), torch.eye(2), y, 1, impl=impl)
    assert labels.tolist() == [[0, 1], [0, 1]]
    assert weights.tolist() == [1, 1]


def test_the_matrix_never_exists():
    """No tensor of the chunked implementation comes near M x N; the largest stay at a block and the features."""

    m, n, d = 4096, 12288, 8
    u, r, ids = torch.randn(m, d), torch.randn(n, d), torch.arange(n) % 9
    for sizes in ({}, {"kept": 0}):
        with Largest() as largest:
            match_chunked(u, LocalReferences(r, ids, 9), 7000, **sizes)
        assert largest.numel <= 2**22 < m * n / 10


def matmul_settings():
    backends = [getattr(torch.backends.mkldnn, "matmul", None), torch.backends.cuda.matmul]
    per_backend = [getattr(backend, "fp32_precision", None) for backend in backends]
    return torch.get_float32_matmul_precision(), *per_backend


def test_autocast_and_matmul_settings_do_not_lower_the_precision():
    u, r, y = torch.randn(40, 16), torch.randn(60, 16), torch.arange(60) % 4
    expected = pseudo_labels(u, r, y, 10)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        settings = matmul_settings()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = pseudo_labels(u, r, y, 10)
        assert matmul_settings() == settings
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got.labels, expected.labels)
    assert torch.equal(got.weights, expected.weights)


def test_matmul_precision_is_restored_with_the_older_torch_interface(monkeypatch):
    monkeypatch.delattr(torch._C, "_set_fp32_precision_setter", raising=False)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with full_float32_matmul():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scale", [1e160, 1e300, 1e-300])
def test_squares_beyond_the_range_of_floats(scale, impl):
    """Labels and weights do not change with the scale, but for the epsilon of Eq. 3 where everything is tiny."""
    u, r, y = torch.randn(20, 4).double(), torch.randn(30, 4).double(), torch.arange(30) % 4
    expected = pseudo_labels(u, r, y, 7) if scale > 1 else pseudo_labels(0 * u, r, y, 7)
    got = pseudo_labels(scale * u, scale * r, y, 7, impl=impl)
    assert torch.equal(got.labels, expected.labels)
    torch.testing.assert_close(got.weights, expected.weights, atol=1e-5, rtol=0)


def test_a_class_255_among_others_is_no_mask():
    y = torch.tensor([0, 3, 255])
    assert pseudo_labels(torch.eye(3), torch.eye(3), y, 1).labels.tolist() == [0, 3, 255]


@pytest.mark.parametrize("cut", [{}, {"kept": 0, "tile": 2**20}], ids=str)
def test_counts_beyond_what_16_bits_hold(cut):
    """One query: parts of a tile then have more rows than a sum of flags in 16 bits can hold."""
    n = 100_000
    angles = torch.linspace(0, 1.5, n)
    r, ids = torch.stack([angles.cos(), angles.sin()], 1), torch.arange(n) * 5 // n
    u = torch.tensor([[1.0, 0.0]])
    for k in (39_000, 41_000, 99_000):
        assert_matches(
            match_chunked(u, LocalReferences(r, ids, 5), k, **cut), match_reference(u, LocalReferences(r, ids, 5), k)
        )


def test_larger_groups_where_very_many_maxima_would_be_kept(monkeypatch):
    import rpg_loss.matching.chunked as chunked

    monkeypatch.setattr(chunked, "_CPU", chunked._CPU._replace(groups=500))
    u, r, ids = hard_problem("random")
    for k in (20, 200):
        assert_matches(
            match_chunked(u, LocalReferences(r, ids, 9), k), match_reference(u, LocalReferences(r, ids, 9), k)
        )


def test_the_fused_kernels_say_why_they_cannot_run(monkeypatch):
    ids = torch.zeros(1, dtype=torch.int64)
    args = (torch.ones(1, 1), LocalReferences(torch.ones(1, 1), ids, 1), 1)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"impl: got 'triton', which cannot run here: Triton is not installed"):
        match(*args, "triton")
    assert match(*args, "auto").nearest_sets.tolist() == [0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=r"it needs an NVIDIA GPU, and the features are on cpu, or use impl=\"auto\""):
        match(*args, "triton")
    assert match(*args, "auto").nearest_sets.tolist() == [0]


def test_blocks_are_smaller_where_the_counts_then_need_no_second_product():
    assert [_block_size(256, n, 2**22) for n in (0, 2**14, 2**14 + 1, 2**15, 2**16, 2**16 + 1)] == [
        256, 256, 128, 128, 64, 256
    ]  # fmt: skip
