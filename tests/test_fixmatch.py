import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rpg_loss import FixMatchSegLoss, fixmatch_targets


def views(multilabel=False, scale=4.0):
    """Logits of a weak and a strong view, (2, 3, 6, 5), confident enough that a threshold keeps some and drops some."""
    return scale * torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5, requires_grad=True)


def shift_right(maps):
    """A warp by one pixel: uncovers the first column."""
    return F.pad(maps, (1, 0))[..., :-1]


@given(seed=st.integers(0, 2**32), threshold=st.floats(0, 1))
def test_equation_9(seed, threshold):
    logits = 3 * torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(seed))
    labels, weights = fixmatch_targets(logits, threshold)
    p = logits.softmax(1)
    assert torch.equal(labels, p.argmax(1))
    assert torch.equal(weights, (p.amax(1) > threshold).float())


@given(seed=st.integers(0, 2**32), threshold=st.floats(0, 1))
def test_equation_10(seed, threshold):
    logits = 3 * torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(seed))
    labels, weights = fixmatch_targets(logits, threshold, multilabel=True)
    p = logits.sigmoid()
    assert torch.equal(labels, (p > 0.5).float())
    assert torch.equal(weights, ((p - 0.5).abs() > abs(0.5 - threshold)).float())
    assert torch.equal(weights, fixmatch_targets(logits, 1 - threshold, multilabel=True).weights)


@given(seed=st.integers(0, 2**32), multilabel=st.booleans())
def test_a_higher_threshold_keeps_no_more(seed, multilabel):
    logits = 3 * torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(seed))
    kept = [fixmatch_targets(logits, tau, multilabel=multilabel).weights for tau in (0.5, 0.8, 0.95, 1.0)]
    for low, high in itertools.pairwise(kept):
        assert (low >= high).all()
    assert not kept[-1].any()


@pytest.mark.parametrize("multilabel", [False, True])
def test_gradient(multilabel):
    weak, _ = views()
    weak.requires_grad_()
    strong = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    criterion = FixMatchSegLoss(0.9, multilabel=multilabel)
    assert torch.autograd.gradcheck(lambda s: criterion(weak, s), (strong,))
    criterion(weak, strong).backward()
    assert weak.grad is None


@pytest.mark.parametrize("warp", [None, shift_right])
@pytest.mark.parametrize("multilabel", [False, True])
def test_a_weak_view_that_is_not_finite_is_not_hidden(multilabel, warp):
    """As nothing would be kept, the loss of a diverged network would be 0."""
    weak, strong = views()
    weak[0, :, 2, 2] = torch.nan
    criterion = FixMatchSegLoss(0.9, multilabel=multilabel, cutout="ignore")
    assert criterion(weak, strong, warp=warp).isnan()
    valid = torch.ones(2, 6, 5, dtype=torch.bool)
    valid[0, 2, 2] = False
    assert criterion(weak, strong, warp=warp, valid_weak=valid).isfinite()
    moved = valid if warp is None else valid.roll(1, -1)
    assert criterion(weak, strong, warp=warp, cutout_mask=~moved).isfinite()
    background = FixMatchSegLoss(0.9, multilabel=multilabel)
    assert background(weak, strong, warp=warp, cutout_mask=~moved).isfinite()


@pytest.mark.parametrize("multilabel", [False, True])
def test_nothing_kept_is_zero_with_a_live_graph(multilabel):
    weak, strong = views()
    loss = FixMatchSegLoss(1.0, multilabel=multilabel)(weak, strong)
    loss.backward()
    assert loss == 0
    assert torch.equal(strong.grad, torch.zeros_like(strong))


def test_an_interpolating_warp_invents_no_class():
    """Half a pixel between class 0 and class 2 must not come out as class 1."""
    weak = torch.full((1, 3, 1, 4), -9.0)
    weak[:, 0, :, :2] = weak[:, 2, :, 2:] = 9.0

    def blur(maps):
        return (maps + maps.roll(1, -1)) / 2

    _, (labels, weights) = FixMatchSegLoss(0.9)(weak, weak, warp=blur, return_pseudo_labels=True)
    assert set(labels[weights > 0].tolist()) <= {0, 2}


def test_one_channel_is_refused_unless_it_is_a_label():
    """The softmax over one channel is 1 everywhere: the loss would be 0 whatever the network says."""
    weak, strong = 9 * torch.ones(2, 1, 6, 5), torch.zeros(2, 1, 6, 5)
    for call in (lambda: FixMatchSegLoss()(weak, strong), lambda: fixmatch_targets(weak)):
        with pytest.raises(ValueError, match=r"logits.*: got one channel \(2, 1, 6, 5\), .* say multilabel=True"):
            call()
    torch.testing.assert_close(FixMatchSegLoss(multilabel=True)(weak, strong), torch.tensor(2.0).log())


@pytest.mark.parametrize("multilabel", [False, True])
def test_warps_are_called_with_float32_whatever_the_default_is(multilabel):
    weak, strong = views()
    dtypes = []

    def warp(maps):
        dtypes.append(maps.dtype)
        return maps

    expected = FixMatchSegLoss(0.9, multilabel=multilabel)(weak, strong)
    torch.set_default_dtype(torch.float64)
    try:
        loss = FixMatchSegLoss(0.9, multilabel=multilabel)(weak, strong, warp=warp)
    finally:
        torch.set_default_dtype(torch.float32)
    assert dtypes == [torch.float32]
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FixMatchSegLoss("0.9"), r"threshold: got '0.9', expected a number, a probability in \[0, 1\]"),
        (lambda: FixMatchSegLoss(True), "threshold: got True, expected a number"),
        (lambda: fixmatch_targets(torch.zeros(1, 2, 3), None), "threshold: got None, expected a number"),
        (lambda: FixMatchSegLoss(multilabel="no"), "multilabel: got 'no', expected True"),
        (lambda: FixMatchSegLoss()(*views(), warp=lambda maps: None), "warp: got NoneType, expected a torch.Tensor"),
        (
            lambda: FixMatchSegLoss()(*views(), warp=lambda maps: maps > 0),
            r"warp: got .* bool, expected a real",
        ),
    ],
)
def test_arguments_of_a_wrong_type_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_repr():
    assert repr(FixMatchSegLoss(0.8, cutout="ignore")) == (
        "FixMatchSegLoss(threshold=0.8, multilabel=False, cutout='ignore')"
    )
