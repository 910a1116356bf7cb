"""Laws of the pseudo-labels and weights: class maps and label vectors, any number of axes, every implementation."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rpg_loss import entropy_weights
from rpg_loss.matching import match
from rpg_loss.matching.references import LocalReferences, encode_label_sets

from .problems import IGNORED, IMPLS, device_of, flat_problems, problems, pseudo_labels

pytestmark = pytest.mark.parametrize("impl", IMPLS)
seeds = st.integers(0, 2**32)


@pytest.fixture(autouse=True)
def _fewer_examples_in_the_interpreter(request, impl, monkeypatch):
    # Which is a hundred times slower.  Hypothesis has no public way to settle this for one parameter of a test.
    if impl == "triton" and device_of(impl).type == "cpu" and hasattr(request.function, "hypothesis"):
        monkeypatch.setattr(request.function, "_hypothesis_internal_use_settings", settings(max_examples=12))


def assert_same(got, expected, *, labels=True):
    if labels:
        assert torch.equal(got.labels, expected.labels)
    torch.testing.assert_close(got.weights, expected.weights, atol=2e-5, rtol=0)


def flat(tensor):
    """(B, D, *S) to (pixels, D)."""
    return tensor.movedim(1, -1).flatten(0, -2)


def proximities_to(problem):
    """Clipped cosine of every query to every reference that is not ignored, float64, and their labels."""
    u, r = flat(problem.feat_u).double(), flat(problem.feat_ref).double()
    y = flat(problem.y_ref) if problem.multilabel else problem.y_ref.flatten()
    used = (y != IGNORED).all(1) if problem.multilabel else y != IGNORED
    cosine = u @ r.T / (u.norm(dim=1)[:, None] * r.norm(dim=1) + 1e-8)
    return cosine.clamp(min=0)[:, used], y[used]


def clear_winner(problem):
    """Queries, as one flat mask, whose nearest reference is nearer than those of every other label."""
    proximity, y = proximities_to(problem)
    best, nearest = proximity.max(1)
    same = (y[nearest][:, None] == y).all(-1) if problem.multilabel else y[nearest][:, None] == y
    return best - proximity.masked_fill(same, -1).amax(1) > 1e-4


@given(problem=problems())
def test_shapes_and_dtypes(impl, problem):
    labels, weights = pseudo_labels(*problem.args, impl=impl)
    pixels = (problem.feat_u.shape[0], *problem.feat_u.shape[2:])
    assert weights.shape == pixels
    assert weights.dtype == torch.float32
    if problem.multilabel:
        assert labels.shape == (pixels[0], problem.y_ref.shape[1], *pixels[1:])
        assert labels.dtype == problem.y_ref.dtype
        assert ((labels == 0) | (labels == 1)).all()
    else:
        assert labels.shape == pixels
        assert labels.dtype == torch.int64


def test_no_proximity_is_above_1(impl):
    """Cosines of what points the same way are, in float32, now and then."""
    features = torch.randn(64, 7, device=device_of(impl))
    ids = torch.zeros(64, dtype=torch.int64, device=features.device)
    assert match(3 * features, LocalReferences(features, ids, 1), 64, impl).proximities.max() <= 1


@given(problem=problems())
def test_labels_are_those_of_a_nearest_reference(impl, problem):
    labels, _ = pseudo_labels(*problem.args, impl=impl)
    proximity, y = proximities_to(problem)
    nearest = proximity >= proximity.amax(1, keepdim=True) - 1e-6
    mine = flat(labels) if problem.multilabel else labels.flatten()
    agrees = (mine[:, None] == y).all(-1) if problem.multilabel else mine[:, None] == y
    assert (nearest & agrees).any(1).all()


@given(problem=problems())
def test_weights_lie_between_0_and_1(impl, problem):
    _, weights = pseudo_labels(*problem.args, impl=impl)
    assert ((weights >= 0) & (weights <= 1)).all()


@given(problem=problems())
def test_one_label_set_gives_weight_1(impl, problem):
    y = torch.ones_like(problem.y_ref)
    _, weights = pseudo_labels(*problem.with_(y_ref=y).args, impl=impl)
    assert torch.equal(weights, torch.ones_like(weights))


@given(problem=problems())
def test_equal_proximities_give_weight_0(impl, problem):
    _, y = proximities_to(problem)
    assume(len(torch.unique(y, dim=0)) > 1)
    feat_ref = torch.ones_like(problem.feat_ref)
    _, weights = pseudo_labels(*problem.with_(feat_ref=feat_ref).args, impl=impl)
    torch.testing.assert_close(weights, torch.zeros_like(weights), atol=2e-6, rtol=0)


@given(problem=problems(), seed=seeds)
def test_invariant_to_positive_scaling_of_any_vector(impl, problem, seed):
    """As far as Eq. 3 is: its epsilon of 1e-8 in the denominator is felt by vectors much shorter than these."""
    generator = torch.Generator().manual_seed(seed)

    def scaled(features):
        factors = torch.rand(features.shape[0], 1, *features.shape[2:], generator=generator)
        return features * (1 + 100 * factors)

    problem = problem.with_(feat_u=1e4 * problem.feat_u, feat_ref=1e4 * problem.feat_ref)
    other = problem.with_(feat_u=scaled(problem.feat_u), feat_ref=scaled(problem.feat_ref))
    assert_same(pseudo_labels(*other.args, impl=impl), pseudo_labels(*problem.args, impl=impl))


@given(problem=problems(), seed=seeds)
def test_invariant_to_a_rotation_of_feature_space(impl, problem, seed):
    dim = problem.feat_u.shape[1]
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]

    def rotated(features):
        return (features.double().movedim(1, -1) @ rotation).movedim(-1, 1).float()

    other = problem.with_(feat_u=rotated(problem.feat_u), feat_ref=rotated(problem.feat_ref))
    assert_same(pseudo_labels(*other.args, impl=impl), pseudo_labels(*problem.args, impl=impl))


@given(problem=flat_problems(), seed=seeds)
def test_invariant_to_the_order_of_references(impl, problem, seed):
    order = torch.randperm(len(problem.y_ref), generator=torch.Generator().manual_seed(seed))
    other = problem.with_(feat_ref=problem.feat_ref[order], y_ref=problem.y_ref[order])
    got, expected = pseudo_labels(*other.args, impl=impl), pseudo_labels(*problem.args, impl=impl)
    assert_same(got, expected, labels=False)
    clear = clear_winner(problem)
    assert torch.equal(got.labels[clear], expected.labels[clear])


@given(problem=flat_problems())
def test_invariant_to_doubling_every_reference_and_k(impl, problem):
    twice = problem.with_(
        feat_ref=problem.feat_ref.repeat(2, 1),
        y_ref=torch.cat([problem.y_ref, problem.y_ref]),
        k=2 * problem.k,
    )
    assert_same(pseudo_labels(*twice.args, impl=impl), pseudo_labels(*problem.args, impl=impl))


@given(problem=problems(multilabel=False, ignored=False), seed=seeds)
def test_equivariant_to_permuting_classes(impl, problem, seed):
    renamed = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    expected = pseudo_labels(*problem.args, impl=impl)
    got = pseudo_labels(*problem.with_(y_ref=renamed[problem.y_ref.long()]).args, impl=impl)
    assert torch.equal(got.labels, renamed[expected.labels])
    torch.testing.assert_close(got.weights, expected.weights, atol=2e-5, rtol=0)


@given(problem=problems(multilabel=True), seed=seeds)
def test_equivariant_to_permuting_labels(impl, problem, seed):
    order = torch.randperm(problem.y_ref.shape[1], generator=torch.Generator().manual_seed(seed))
    expected = pseudo_labels(*problem.args, impl=impl)
    got = pseudo_labels(*problem.with_(y_ref=problem.y_ref[:, order]).args, impl=impl)
    assert torch.equal(got.labels, expected.labels[:, order])
    torch.testing.assert_close(got.weights, expected.weights, atol=2e-5, rtol=0)


@given(problem=flat_problems(), seed=seeds)
def test_equivariant_to_permuting_queries(impl, problem, seed):
    order = torch.randperm(len(problem.feat_u), generator=torch.Generator().manual_seed(seed))
    expected = pseudo_labels(*problem.args, impl=impl)
    got = pseudo_labels(*problem.with_(feat_u=problem.feat_u[order]).args, impl=impl)
    assert torch.equal(got.labels, expected.labels[order])
    torch.testing.assert_close(got.weights, expected.weights[order], atol=2e-5, rtol=0)


@given(problem=problems(flat=False))
def test_spatial_axes_are_only_a_layout(impl, problem):
    got = pseudo_labels(*problem.args, impl=impl)
    y = flat(problem.y_ref) if problem.multilabel else problem.y_ref.flatten()
    expected = pseudo_labels(flat(problem.feat_u), flat(problem.feat_ref), y, problem.k, impl=impl)
    assert torch.equal(flat(got.labels) if problem.multilabel else got.labels.flatten(), expected.labels)
    torch.testing.assert_close(got.weights.flatten(), expected.weights, atol=2e-5, rtol=0)
    mixed = pseudo_labels(problem.feat_u, flat(problem.feat_ref), y, problem.k, impl=impl)
    assert_same(mixed, got)
    assert mixed.labels.shape == got.labels.shape


@given(problem=flat_problems(ignored=False))
def test_a_reference_beyond_the_kth_changes_nothing(impl, problem):
    one = problem.with_(feat_u=problem.feat_u[:1])
    proximity, _ = proximities_to(one)
    assume(problem.k < len(problem.y_ref))
    kth = proximity[0].topk(problem.k).values[-1]
    beyond = proximity[0] < kth - 1e-4
    moved = torch.where(beyond[:, None], -one.feat_u, problem.feat_ref)
    assert_same(pseudo_labels(*one.with_(feat_ref=moved).args, impl=impl), pseudo_labels(*one.args, impl=impl))


@given(problem=flat_problems(ignored=False))
def test_growing_k_never_removes_a_label_set(impl, problem):
    set_ids, set_labels = encode_label_sets(problem.y_ref)
    references = LocalReferences(problem.feat_ref, set_ids, len(set_labels))
    before = None
    for k in range(1, len(set_ids) + 1):
        _, proximities = match(problem.feat_u, references, k, impl)
        assert before is None or (proximities >= before - 1e-6).all()
        before = proximities


@given(problem=problems())
def test_k_beyond_the_references_is_all_of_them(impl, problem):
    n = len(proximities_to(problem)[1])
    everything = pseudo_labels(*problem.with_(k=n).args, impl=impl)
    for k in (n + 1, 10**9, 1.0):
        assert_same(pseudo_labels(*problem.with_(k=k).args, impl=impl), everything)


@given(problem=problems(), share=st.floats(0, 1, exclude_min=True))
def test_k_as_a_share_counts_the_references_that_are_not_ignored(impl, problem, share):
    n = len(proximities_to(problem)[1])
    expected = pseudo_labels(*problem.with_(k=max(1, round(share * n))).args, impl=impl)
    assert_same(pseudo_labels(*problem.with_(k=share).args, impl=impl), expected)


@given(problem=problems())
def test_the_nearest_alone_gives_weight_1_unless_tied_or_at_proximity_0(impl, problem):
    _, weights = pseudo_labels(*problem.with_(k=1).args, impl=impl)
    proximity, y = proximities_to(problem)
    sure = clear_winner(problem) & (proximity.amax(1) > 0.05)
    torch.testing.assert_close(weights.flatten()[sure], torch.ones(int(sure.sum())), atol=2e-5, rtol=0)
    if len(torch.unique(y, dim=0)) > 1:
        nowhere = proximity.amax(1) == 0
        torch.testing.assert_close(weights.flatten()[nowhere], torch.zeros(int(nowhere.sum())), atol=2e-5, rtol=0)


@given(near=st.floats(0.1, 0.7), step=st.floats(0.1, 0.5))
def test_weight_falls_as_two_sets_come_equally_near(impl, near, step):
    """One set at angle `near`, another further away: moving the second closer lowers the weight."""

    def weight(angle):
        references = torch.tensor([[math.cos(near), math.sin(near)], [math.cos(angle), -math.sin(angle)]])
        return pseudo_labels(torch.tensor([[1.0, 0.0]]), references, torch.tensor([0, 1]), 2, impl=impl).weights

    assert weight(near) < 1e-5
    assert weight(near + step) > weight(near + step / 2) > weight(near)


@given(problem=problems(ignored=False), seed=seeds)
def test_ignored_references_are_as_good_as_absent(impl, problem, seed):
    assume(problem.y_ref.dtype.is_signed)
    y = flat(problem.y_ref) if problem.multilabel else problem.y_ref.flatten()
    gone = torch.rand(len(y), generator=torch.Generator().manual_seed(seed)) < 0.5
    gone[0] = False
    kept = pseudo_labels(flat(problem.feat_u), flat(problem.feat_ref)[~gone], y[~gone], problem.k, impl=impl)
    marked = y.masked_fill(gone[:, None] if problem.multilabel else gone, IGNORED)
    got = pseudo_labels(flat(problem.feat_u), flat(problem.feat_ref), marked, problem.k, impl=impl)
    assert_same(got, kept)


@given(problem=problems(), seed=seeds)
def test_ignored_queries_change_no_other(impl, problem, seed):
    expected = pseudo_labels(*problem.args, impl=impl)
    valid = torch.rand(expected.weights.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    labels, weights = pseudo_labels(*problem.args, valid_u=valid, impl=impl)
    assert torch.equal(weights, expected.weights * valid)
    inside = valid.unsqueeze(1).expand_as(labels) if problem.multilabel else valid
    assert torch.equal(labels[inside], expected.labels[inside])
    assert (labels[~inside] == (0 if problem.multilabel else IGNORED)).all()


@given(problem=problems())
def test_no_gradient_reaches_features(impl, problem):
    feat_u, feat_ref = problem.feat_u.clone().requires_grad_(), problem.feat_ref.clone().requires_grad_()
    labels, weights = pseudo_labels(feat_u, feat_ref, problem.y_ref, problem.k, impl=impl)
    assert not labels.requires_grad
    assert not weights.requires_grad


@given(
    proximities=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=80),
    seed=seeds,
)
def test_entropy_weights(impl, proximities, seed):
    """W of Eq. 6-7 against its formula, in [0, 1], blind to the order of sets."""
    values = torch.tensor(proximities)
    shares = [(p + 1e-8) / sum(q + 1e-8 for q in proximities) for p in proximities]
    expected = 1 + sum(p * math.log(p) for p in shares) / math.log(len(shares))
    weight = entropy_weights(values)
    assert 0 <= weight <= 1
    assert weight.item() == pytest.approx(expected, abs=1e-5)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(entropy_weights(values[order]), weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy_weights(torch.stack([values, values])), weight.expand(2))


def test_entropy_weights_in_half_precision(impl):
    """With eps below the smallest half, 0 log 0 would be NaN."""
    weights = entropy_weights(torch.tensor([[0.5, 0.0], [0.0, 0.0]], dtype=torch.float16))
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0]), atol=1e-5, rtol=0)
