"""The bank of references of past pools: laws of what it holds, and that it changes nothing but the reference set."""

import copy
import io
from collections import Counter

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from rpg_loss import ReferenceBank, RPGLoss, rpg_pseudo_labels

from .problems import IGNORED, problems

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@st.composite
def histories(draw):
    """Pushes of maps or flat pixels whose features say where they come from: (push, pixel of the push)."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    multilabel, sets = draw(st.booleans()), draw(st.integers(1, 5))
    pushes = []
    for number in range(draw(st.integers(1, 8))):
        shape = (draw(st.integers(1, 3)), *draw(st.lists(st.integers(1, 4), max_size=3)))
        pixels = torch.arange(torch.Size(shape).numel()).reshape(shape)
        feat = torch.stack([torch.full(shape, number), pixels], dim=1).float()
        # Squared: the first label sets are common, the last rare.
        y = (torch.rand(shape, generator=generator).square() * sets).long()
        unlabelled = torch.rand(shape, generator=generator) < draw(st.sampled_from([0, 0.3, 1]))
        if multilabel:
            y = torch.stack([y & 1, y >> 1 & 1, y >> 2], dim=1).masked_fill(unlabelled.unsqueeze(1), IGNORED)
        else:
            y = y.masked_fill(unlabelled, IGNORED)
        pushes.append((feat, y))
    return pushes


@st.composite
def banks(draw):
    return ReferenceBank(
        draw(st.integers(300, 3000)),
        max_age=draw(st.integers(1, 4)),
        balanced=draw(st.booleans()),
        dtype=draw(st.sampled_from(DTYPES)),
    )


def nbytes(bank):
    return sum(buffer.nbytes for buffer in bank.state_dict().values())


def content(bank):
    """(push, pixel, label) of everything in the bank, in its order."""
    references = bank.references()
    if references is None:
        return []
    rows = [tuple(int(value) for value in row) for row in references[0].float().tolist()]
    return [(*row, tuple(label)) for row, label in zip(rows, flat_labels(references[1]), strict=True)]


def room_of(bank):
    """How many references one push may bring, by the size of those that the bank holds."""
    bytes_each = 2 * bank.dtype.itemsize + (3 if bank.labels.ndim == 2 else 8)
    return (bank.max_bytes // bank.max_age - 8) // bytes_each


def flat_labels(y):
    """Flat labels as lists of integers."""
    return y.long().reshape(len(y), -1).tolist()


def flat(feat, y):
    pixels = [t.movedim(1, -1).flatten(0, -2) if t.ndim == feat.ndim else t.flatten() for t in (feat, y)]
    return pixels[0], pixels[1]


def pushed(number, feat, y):
    """(push, pixel, label) of everything in a push that is not ignored."""
    labels = flat_labels(flat(feat, y)[1])
    return [(number, pixel, tuple(label)) for pixel, label in enumerate(labels) if IGNORED not in label]


@given(bank=banks(), history=histories())
def test_never_over_budget(bank, history):
    for feat, y in history:
        bank.push(feat, y)
        assert nbytes(bank) <= bank.max_bytes


@given(bank=banks(), history=histories())
def test_holds_what_was_pushed_no_longer_than_max_age(bank, history):
    """Every reference once, with its label, in the order of insertion; nothing ignored, unfilled or stale."""
    young = []
    for number, (feat, y) in enumerate(history):
        bank.push(feat, y)
        young = [*young, pushed(number, feat, y)][-bank.max_age :]
        held = content(bank)
        assert held == sorted(held, key=lambda reference: reference[:2])
        assert set(held) <= {reference for push in young for reference in push}
        assert len(set(held)) == len(held)
        assert bank.counts.tolist() == [sum(h[0] == p[0][0] for h in held) if p else 0 for p in young]


@given(bank=banks(), history=histories())
def test_label_sets_give_way_evenly(bank, history):
    """Whole where all fits. Else a push's share is used up, by sets as even as they allow: rare ones stay whole."""
    bank.balanced = True
    for number, (feat, y) in enumerate(history):
        bank.push(feat, y)
        before = Counter(label for _, _, label in pushed(number, feat, y))
        after = Counter(label for push, _, label in content(bank) if push == number)
        room = room_of(bank)
        assert after.total() == min(before.total(), room)
        cut = [after[label] for label in before if after[label] < before[label]]
        if cut:
            assert max(cut) - min(cut) <= 1
            assert min(cut) >= max(after.values()) - 1
            assert min(cut) >= room // len(before) >= 1


@given(bank=banks(), history=histories())
def test_label_sets_keep_their_proportions(bank, history):
    """Unbalanced: whole where all fits, else at least one of each set and its share of the rest."""
    bank.balanced = False
    for number, (feat, y) in enumerate(history):
        bank.push(feat, y)
        before = Counter(label for _, _, label in pushed(number, feat, y))
        after = Counter(label for push, _, label in content(bank) if push == number)
        room = room_of(bank)
        if before.total() <= room:
            assert after == before
            continue
        assert room - len(before) <= after.total() <= room
        for label, size in before.items():
            assert after[label] >= 1
            proportional = 1 + size * (room - len(before)) / before.total()
            assert proportional - 1 < after[label] <= proportional


@given(bank=banks(), history=histories(), at=st.integers(0, 7))
def test_resumed_equals_uninterrupted(bank, history, at):
    resumed = copy.deepcopy(bank)
    for number, (feat, y) in enumerate(history):
        if number == at:
            file = io.BytesIO()
            torch.save(nn.ModuleDict({"bank": resumed}).state_dict(), file)
            resumed = ReferenceBank(bank.max_bytes, max_age=bank.max_age, balanced=bank.balanced, dtype=bank.dtype)
            file.seek(0)
            nn.ModuleDict({"bank": resumed}).load_state_dict(torch.load(file, weights_only=True))
        bank.push(feat, y)
        resumed.push(feat, y)
        for name, buffer in bank.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], buffer)
            assert resumed.state_dict()[name].dtype == buffer.dtype


def test_a_set_is_thinned_evenly_over_its_pixels():
    bank = ReferenceBank(10 * (4 * 1 + 8) + 8, max_age=1)
    y = torch.zeros(100, dtype=torch.int64)
    y[50:54] = 1
    bank.push(torch.arange(100.0)[:, None], y)
    # Six places for the 96 pixels of set 0 (the middle ones of six parts of 16), and all four of set 1.
    assert bank.features.flatten().tolist() == [8, 24, 40, 50, 51, 52, 53, 60, 76, 92]


@pytest.mark.parametrize("multilabel", [False, True])
def test_no_gradient_and_no_share_in_the_memory_of_others(multilabel):
    bank = ReferenceBank()
    feat = torch.randn(2, 4, 3, 3, requires_grad=True)
    y = torch.randint(2, (2, 3, 3, 3) if multilabel else (2, 3, 3))
    bank.push(feat * 1, y)
    features, labels = bank.references()
    assert not features.requires_grad
    expected, expected_labels = features.clone(), labels.clone()
    with torch.no_grad():
        feat.zero_()
        y.zero_()
    twin = copy.deepcopy(bank)
    twin.push(torch.ones(2, 4, 3, 3), y)
    assert torch.equal(bank.features, expected)
    bank.push(torch.ones(2, 4, 3, 3), y)
    assert torch.equal(features, expected)
    assert torch.equal(labels, expected_labels)


def test_an_inference_mode_step_can_fill_it():
    bank = ReferenceBank()
    with torch.inference_mode():
        bank.push(torch.ones(3, 2), torch.tensor([0, 1, 1]))
    logits_u = torch.randn(1, 2, 2, 2, requires_grad=True)
    maps, y = torch.rand(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    RPGLoss(0.5)(logits_u, maps, maps, y, extra_ref=bank.references()).backward()
    bank.push(torch.ones(3, 2), torch.tensor([0, 1, 1]))
    assert len(bank.features) == 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_are_stored_in_the_dtype_asked_for(dtype):
    bank = ReferenceBank(dtype=dtype)
    feat = torch.randn(6, 4)
    bank.push(feat.double(), torch.arange(6))
    bank.half()  # as a module around it might be
    bank.push(feat.bfloat16(), torch.arange(6))
    assert bank.features.dtype == dtype
    torch.testing.assert_close(bank.features[:6].float(), feat, atol=2e-2, rtol=0)


def test_half_precision_holds_twice_as_many():
    y = torch.zeros(10_000, dtype=torch.int64)
    held = []
    for dtype in (torch.float32, torch.float16):
        bank = ReferenceBank(2**16, max_age=1, dtype=dtype)
        bank.push(torch.randn(10_000, 64), y)
        held.append(len(bank.features))
    assert 1.9 < held[1] / held[0] < 2


def test_labels_on_a_finer_grid_than_the_features():
    feat, y = torch.randn(2, 4, 3, 3), torch.randint(3, (2, 6, 6))
    bank, expected = ReferenceBank(), ReferenceBank()
    bank.push(feat, y)
    expected.push(feat, y[:, ::2, ::2])
    assert torch.equal(bank.features, expected.features)
    assert torch.equal(bank.labels, expected.labels)


def test_all_ignored_brings_nothing_but_age():
    bank = ReferenceBank(max_age=2)
    nothing = torch.full((3,), IGNORED)
    bank.push(torch.ones(3, 2), nothing)
    assert bank.references() is None
    bank.push(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))
    for left in (3, 0):
        bank.push(torch.ones(3, 2), nothing)
        assert len(bank.features) == left
    assert bank.references() is None
    # Emptied, it takes features and labels of another kind.
    bank.push(torch.ones(3, 5), torch.ones(3, 2))
    assert bank.labels.shape == (3, 2)


def test_cleared_is_as_new():
    bank = ReferenceBank(max_age=3)
    bank.push(torch.ones(3, 2), torch.tensor([0, 1, 1]))
    bank.clear()
    assert bank.references() is None
    bank.push(torch.ones(3, 5), torch.tensor([0, 1, 1]))
    assert bank.counts.tolist() == [3]
    assert "max_age=3" in repr(bank)
    assert "references=3" in repr(bank)


@given(problem=problems(flat=False), seed=st.integers(0, 2**32), share=st.booleans())
def test_extra_references_are_part_of_the_reference_set(problem, seed, share):
    """Pool and extra references in one call, as one reference set would be in rpg_pseudo_labels."""
    cut = len(problem.feat_ref) // 2
    assume(cut > 0)
    k = 0.4 if share else problem.k
    extra = flat(problem.feat_ref[cut:], problem.y_ref[cut:])
    criterion = RPGLoss(k, map_size=None)
    pool = problem.feat_u, problem.feat_ref[:cut], problem.y_ref[:cut]
    expected = rpg_pseudo_labels(problem.feat_u, *flat(problem.feat_ref, problem.y_ref), k)
    got = criterion.pseudo_labels(*pool, extra_ref=extra)
    assert got.labels.dtype == (problem.y_ref.dtype if problem.multilabel else torch.int64)
    for labels, weights in (got, rpg_pseudo_labels(problem.feat_u, problem.feat_ref, problem.y_ref, k)):
        assert torch.equal(labels, expected.labels)
        torch.testing.assert_close(weights, expected.weights, atol=2e-5, rtol=0)
    classes = problem.y_ref.shape[1] if problem.multilabel else 4
    logits_u = torch.randn(len(problem.feat_u), classes, *problem.feat_u.shape[2:])
    _, pseudo = criterion(logits_u, *pool, extra_ref=extra, return_pseudo_labels=True)
    assert torch.equal(pseudo.labels, got.labels)
    assert torch.equal(pseudo.weights, got.weights)


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_bank_stands_in_for_a_pool_without_a_class(multilabel):
    """Queries like the past pool's get its label, which the current pool does not have."""
    bank, criterion = ReferenceBank(), RPGLoss(0.5, map_size=2)
    before, now = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    before[:, 0], now[:, 1] = 1, 1
    labels = [torch.tensor([0, 1]), torch.tensor([1, 0])] if multilabel else [torch.tensor(2), torch.tensor(0)]
    y = [label.reshape(1, *label.shape, 1, 1).expand(1, *label.shape, 4, 4) for label in labels]
    bank.push(before, y[0])
    got = criterion.pseudo_labels(before, now, y[1], extra_ref=bank.references())
    assert torch.equal(got.labels, y[0][..., ::2, ::2])
    assert got.weights.min() > 0.9
    ties = criterion.pseudo_labels(now, now, y[1], extra_ref=(now.flatten(2)[0].T, flat(now, y[0])[1]))
    assert torch.equal(ties.labels, y[1][..., ::2, ::2])


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("narrow", [torch.uint8, torch.int8])
def test_labels_of_another_dtype_than_the_pools(multilabel, narrow):
    feat_u, feat_ref = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    y = torch.randint(2, (1, 2, 3, 3) if multilabel else (1, 3, 3))
    extra, y_extra = torch.randn(9, 4), torch.randint(2, (9, 2)) if multilabel else torch.full((9,), 300)
    expected = RPGLoss(5).pseudo_labels(feat_u, feat_ref, y, extra_ref=(extra, y_extra))
    got = RPGLoss(5).pseudo_labels(feat_u, feat_ref, y.to(narrow), extra_ref=(extra, y_extra))
    assert got.labels.dtype == (narrow if multilabel else torch.int64)
    assert torch.equal(got.labels.long(), expected.labels)
    assert multilabel or (got.labels == 300).any()


@pytest.mark.parametrize("multilabel", [False, True])
def test_compiled_equals_eager(multilabel):
    torch.compiler.reset()
    criterion = RPGLoss(0.5, map_size=4)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    bank = ReferenceBank(2000, max_age=2)
    y_shape = (2, 3, 8, 8) if multilabel else (2, 8, 8)
    for _ in range(4):
        logits_u, feat_u, feat_ref = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 8, 8), torch.randn(2, 5, 8, 8)
        args = (logits_u, feat_u, feat_ref, torch.randint(2, y_shape))
        expected = criterion(*args, extra_ref=bank.references())
        torch.testing.assert_close(compiled(*args, extra_ref=bank.references()), expected)
        bank.push(*args[2:])
    with pytest.raises(ValueError, match=r"extra_ref\[1\]: got the values"):
        compiled(*args, extra_ref=(bank.features, bank.labels.long() + 4))


F, Y, V = torch.randn(2, 4, 5, 6), torch.randint(3, (2, 5, 6)), torch.randint(2, (2, 3, 5, 6))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_bytes": 2.5}, TypeError, r"max_bytes: got 2.5, expected an int"),
        ({"max_bytes": 0}, ValueError, r"max_bytes: got 0, expected 1 or more"),
        ({"max_age": True}, TypeError, r"max_age: got True"),
        ({"max_age": -1}, ValueError, r"max_age: got -1"),
        ({"dtype": torch.int8}, TypeError, r"dtype: got torch.int8, expected a real floating-point dtype"),
        ({"dtype": "half"}, TypeError, r"dtype: got 'half'"),
        ({"balanced": 1}, TypeError, r"balanced: got 1, expected True or False"),
    ],
)
def test_refuses_options(options, error, message):
    with pytest.raises(error, match=message):
        ReferenceBank(**options)


WRONG = {
    "no tensor": ((F.numpy(), Y), TypeError, r"feat_ref: got ndarray"),
    "no labels": ((F, None), TypeError, r"y_ref: got NoneType"),
    "integer features": ((F.long(), Y), TypeError, r"feat_ref: got .*int64"),
    "images": ((F, Y[:1]), ValueError, r"y_ref: got shape \(1, 5, 6\), expected a class map \(2, 5, 6\)"),
    "rank": ((F, Y[0, 0]), ValueError, r"y_ref: got shape \(6,\), expected"),
    "empty": ((F[..., :0], Y), ValueError, r"feat_ref: got shape \(2, 4, 5, 0\), expected a non-empty"),
    "0/255": ((F, 255 * (Y > 0)), ValueError, r"y_ref: .*use mask // 255"),
    "NaN": ((F * torch.nan, Y), ValueError, r"feat_ref: got .* NaN or infinite as torch.float16"),
    "overflow": ((F * 1e6, Y), ValueError, r"up to 65504; .* dtype=torch.bfloat16"),
    "devices": ((F, Y.to("meta")), ValueError, r"y_ref on meta, expected one device"),
    "width": ((F[:, :3], Y), ValueError, r"feat_ref: got 3 features .*expected the 4 that the bank holds"),
    "kind": ((F, V), ValueError, r"y_ref: got vectors of 3 labels .*expected class indices as the bank holds"),
    "label sets": (
        (F, torch.arange(60).reshape(2, 5, 6)),
        ValueError,
        r"max_bytes: got 1000, room for 30 references of 4 features in each of 2 pushes, .* the 60 label sets in this "
        r"push: 1936 bytes; raise it",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_refuses_and_stays_as_it_was(case):
    args, error, message = WRONG[case]
    bank = ReferenceBank(1000, max_age=2, dtype=torch.float16)
    bank.push(F, Y)
    before = copy.deepcopy(bank.state_dict())
    with pytest.raises(error, match=message):
        bank.push(*args)
    for name, buffer in bank.state_dict().items():
        assert torch.equal(buffer, before[name])


def test_the_budget_that_the_error_asks_for_is_enough():
    y = torch.arange(60).reshape(2, 5, 6)
    with pytest.raises(ValueError, match=r"1936 bytes"):
        ReferenceBank(1935, max_age=2, dtype=torch.float16).push(F, y)
    ReferenceBank(1936, max_age=2, dtype=torch.float16).push(F, y)


def test_vectors_of_another_number_of_labels():
    bank = ReferenceBank()
    bank.push(F, V)
    for other, got in ((V[:, :2], "vectors of 2 labels"), (Y, "class indices")):
        with pytest.raises(ValueError, match=rf"y_ref: got {got} .*expected vectors of 3 labels"):
            bank.push(F, other)


@pytest.mark.parametrize(("smaller"), [{"max_bytes": 700}, {"max_age": 1}])
def test_refuses_the_state_of_a_larger_bank(smaller):
    bank = ReferenceBank(1000, max_age=2)
    bank.push(F, Y)
    bank.push(F, Y)
    other = ReferenceBank(**({"max_bytes": 1000, "max_age": 2} | smaller))
    with pytest.raises(RuntimeError, match=r"bank: got \d+ bytes and 2 pushes, expected at most max_bytes="):
        other.load_state_dict(bank.state_dict())
    assert other.references() is None


def test_says_what_a_state_lacks():
    state = ReferenceBank().state_dict()
    del state["counts"]
    with pytest.raises(RuntimeError, match="counts"):
        ReferenceBank().load_state_dict(state)


EXTRA = {
    "no pair": (F, TypeError, r"extra_ref: got Tensor, expected a pair"),
    "no features": ((None, Y), TypeError, r"extra_ref\[0\]: got NoneType"),
    "no labels": ((F[..., 0, 0], None), TypeError, r"extra_ref\[1\]: got NoneType"),
    "maps": ((F, Y), ValueError, r"extra_ref\[0\]: got shape \(2, 4, 5, 6\), expected flat pixels \(N, 4\)"),
    "width": ((F[:, :3, 0, 0], Y[:, 0, 0]), ValueError, r"extra_ref\[0\]: got shape \(2, 3\), expected"),
    "vectors": ((F[..., 0, 0], V[..., 0, 0]), ValueError, r"extra_ref\[1\]: got shape \(2, 3\), expected \(2,\)"),
    "float": ((F[..., 0, 0], Y[:, 0, 0].float()), TypeError, r"extra_ref\[1\]: got .*float32, expected class indices"),
    "devices": ((F[..., 0, 0].to("meta"), Y[:, 0, 0]), ValueError, r"extra_ref\[0\] on meta"),
}


@pytest.mark.parametrize("case", EXTRA)
def test_refuses_extra_references(case):
    extra_ref, error, message = EXTRA[case]
    with pytest.raises(error, match=message):
        RPGLoss()(torch.randn(2, 3, 5, 6), F, F, Y, extra_ref=extra_ref)
    with pytest.raises(error, match=message):
        RPGLoss().pseudo_labels(F, F, Y, extra_ref=extra_ref)


def test_refuses_extra_classes_beyond_the_logits():
    extra = F[..., 0, 0], torch.tensor([0, 3])
    with pytest.raises(ValueError, match=r"extra_ref\[1\]: got the values 3, expected class indices in \[0, 3\)"):
        RPGLoss()(torch.randn(2, 3, 5, 6), F, F, Y, extra_ref=extra)
