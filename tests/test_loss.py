import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rpg_loss import RPGLoss, rpg_pseudo_labels, segmentation_cross_entropy

from .problems import problems


def step(*, spatial=(9, 7), classes=4, multilabel=False, dim=5, dtype=torch.float32):
    """Tensors of one training step: logits_u, feat_u, feat_ref, y_ref, logits_ref."""
    y_ref = torch.randint(2 if multilabel else classes, (3, classes, *spatial) if multilabel else (3, *spatial))
    return (
        torch.randn(2, classes, *spatial, dtype=dtype, requires_grad=True),
        torch.randn(2, dim, *spatial, dtype=dtype),
        torch.randn(3, dim, *spatial, dtype=dtype),
        y_ref,
        torch.randn(3, classes, *spatial, dtype=dtype, requires_grad=True),
    )


@pytest.mark.parametrize("multilabel", [False, True])
def test_gradcheck(multilabel):
    logits_u, feat_u, feat_ref, y_ref, logits_ref = step(spatial=(5, 3), multilabel=multilabel, dtype=torch.float64)
    criterion = RPGLoss(map_size=2)
    assert torch.autograd.gradcheck(lambda a, b: criterion(a, feat_u, feat_ref, y_ref, b), (logits_u, logits_ref))


@pytest.mark.parametrize("multilabel", [False, True])
def test_gradient_by_function_transforms(multilabel):
    logits_u, feat_u, feat_ref, y_ref, logits_ref = step(multilabel=multilabel)

    def loss(logits):
        return RPGLoss(0.3, map_size=5)(logits["u"], feat_u, feat_ref, y_ref, logits["ref"])

    loss({"u": logits_u, "ref": logits_ref}).backward()
    gradients = torch.func.grad(loss)({"u": logits_u.detach(), "ref": logits_ref.detach()})
    torch.testing.assert_close(gradients["u"], logits_u.grad)
    torch.testing.assert_close(gradients["ref"], logits_ref.grad)


def test_no_gradient_reaches_features():
    logits_u, feat_u, feat_ref, y_ref, logits_ref = step()
    feat_u.requires_grad_()
    feat_ref.requires_grad_()
    RPGLoss()(logits_u, feat_u, feat_ref, y_ref, logits_ref).backward()
    assert feat_u.grad is None
    assert feat_ref.grad is None
    assert logits_u.grad is not None
    assert logits_ref.grad is not None


@pytest.mark.parametrize(("spatial", "size"), [((5000,), 4096), ((70, 66), 64), ((17, 20, 9), (16, 16, 9))])
def test_the_map_has_no_more_pixels_in_more_dimensions(spatial, size):
    """64 x 64 as in the paper, and a volume costs no more than an image."""
    feat_u, feat_ref, y_ref = torch.randn(1, 3, *spatial), torch.randn(1, 3, *spatial), torch.randint(3, (1, *spatial))
    labels = RPGLoss().pseudo_labels(feat_u, feat_ref, y_ref).labels
    assert torch.equal(labels, RPGLoss(map_size=size).pseudo_labels(feat_u, feat_ref, y_ref).labels)
    assert labels.shape[1:] == (size if isinstance(size, tuple) else (size,) * len(spatial))
    if len(spatial) == 2:
        assert labels.shape == (1, 64, 64)


@pytest.mark.parametrize("multilabel", [False, True])
def test_unweighted_pseudo_labels_weigh_1_unless_ignored(multilabel):
    logits_u, feat_u, feat_ref, y_ref, _ = step(multilabel=multilabel)
    _, pseudo = RPGLoss(weighted=False, map_size=3)(logits_u, feat_u, feat_ref, y_ref, return_pseudo_labels=True)
    assert torch.equal(pseudo.weights, torch.ones(2, 3, 3))
    valid = torch.rand(2, 9, 7) < 0.5
    unweighted = RPGLoss(weighted=False, map_size=None).pseudo_labels(feat_u, feat_ref, y_ref, valid_u=valid)
    assert torch.equal(unweighted.weights, valid.float())


@pytest.mark.parametrize("multilabel", [False, True])
def test_all_ignored_is_zero_with_a_live_graph(multilabel):
    logits_u, feat_u, feat_ref, y_ref, logits_ref = step(multilabel=multilabel)
    loss = RPGLoss()(logits_u, feat_u, feat_ref, y_ref, valid_u=torch.zeros(2, 9, 7, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits_u.grad, torch.zeros_like(logits_u))
    nothing = segmentation_cross_entropy(logits_ref, torch.full_like(y_ref, -100))
    nothing.backward()
    assert nothing == 0
    assert torch.equal(logits_ref.grad, torch.zeros_like(logits_ref))


def test_zero_weights_are_zero_with_a_live_graph():
    """Every reference alike, several classes: nothing can be told apart, so nothing is learnt."""
    logits_u, feat_u, feat_ref, y_ref, _ = step()
    loss = RPGLoss(k=1.0)(logits_u, torch.ones_like(feat_u), torch.ones_like(feat_ref), y_ref)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits_u.grad.abs().max() < 1e-6


@given(problem=problems(multilabel=None, flat=False), seed=st.integers(0, 2**32))
def test_module_equals_functions(problem, seed):
    generator = torch.Generator().manual_seed(seed)
    classes = problem.y_ref.shape[1] if problem.multilabel else 4
    logits_u = torch.randn(len(problem.feat_u), classes, *problem.feat_u.shape[2:], generator=generator)
    loss, pseudo = RPGLoss(problem.k, map_size=None)(
        logits_u, problem.feat_u, problem.feat_ref, problem.y_ref, return_pseudo_labels=True
    )
    expected = rpg_pseudo_labels(*problem.args)
    assert torch.equal(pseudo.labels, expected.labels)
    assert torch.equal(pseudo.weights, expected.weights)
    torch.testing.assert_close(loss, segmentation_cross_entropy(logits_u, *expected))


@given(seed=st.integers(0, 2**32), multilabel=st.booleans())
def test_reduction_identities(seed, multilabel):
    """Weights of one change nothing, weights scale the loss, ignored entries are as good as absent."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 5, generator=generator)
    target = torch.randint(2 if multilabel else 4, (3, 4, 5) if multilabel else (3, 5), generator=generator)
    weights = torch.rand(3, 5, generator=generator)
    plain = segmentation_cross_entropy(logits, target)
    reference = (
        F.binary_cross_entropy_with_logits(logits, target.float()) if multilabel else F.cross_entropy(logits, target)
    )
    torch.testing.assert_close(plain, reference)
    torch.testing.assert_close(segmentation_cross_entropy(logits, target, torch.ones(3, 5)), plain)
    weighted = segmentation_cross_entropy(logits, target, weights)
    torch.testing.assert_close(segmentation_cross_entropy(logits, target, 0.5 * weights), 0.5 * weighted)
    if multilabel:
        per_entry = weights.unsqueeze(1).expand(3, 4, 5)
        torch.testing.assert_close(segmentation_cross_entropy(logits, target, per_entry), weighted)
    ignored = target.clone()
    ignored[0] = -100
    torch.testing.assert_close(
        segmentation_cross_entropy(logits, ignored, weights),
        segmentation_cross_entropy(logits[1:], target[1:], weights[1:]),
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int8, torch.int32, torch.bool, torch.float32])
def test_any_label_dtype(dtype):
    logits_u, feat_u, feat_ref, y_ref, logits_ref = step(multilabel=True)
    expected = RPGLoss()(logits_u, feat_u, feat_ref, y_ref, logits_ref)
    torch.testing.assert_close(RPGLoss()(logits_u, feat_u, feat_ref, y_ref.to(dtype), logits_ref), expected)
    labels, _ = rpg_pseudo_labels(feat_u, feat_ref, y_ref.to(dtype), 5)
    assert labels.dtype == dtype
    if not dtype.is_floating_point and dtype != torch.bool:
        classes = torch.randint(4, (3, 9, 7))
        expected = RPGLoss()(logits_u, feat_u, feat_ref, classes, logits_ref)
        torch.testing.assert_close(RPGLoss()(logits_u, feat_u, feat_ref, classes.to(dtype), logits_ref), expected)
        assert torch.equal(
            RPGLoss().pseudo_labels(feat_u, feat_ref, classes.to(dtype)).labels,
            RPGLoss().pseudo_labels(feat_u, feat_ref, classes).labels,
        )


class Unsliceable(torch.Tensor):
    """As MONAI's MetaTensor is, where the images of a batch went through different transforms."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        assert func is not torch.Tensor.__getitem__ or not isinstance(args[1], slice)
        return super().__torch_function__(func, types, args, kwargs)


def test_subclasses_of_tensors_are_not_sliced():
    logits_u, feat_u, feat_ref, logits_ref = torch.randn(4, 2, 3, 8, 8)
    batch = logits_u.requires_grad_(), feat_u, feat_ref, torch.randint(3, (2, 8, 8)), logits_ref
    expected = RPGLoss()(*batch)
    loss = RPGLoss()(*(tensor.as_subclass(Unsliceable) for tensor in batch))
    torch.testing.assert_close(loss.as_subclass(torch.Tensor), expected)


def test_a_class_that_wraps_round_to_the_ignore_index_is_not_ignored():
    """In torch a uint8 of 156 equals -100."""
    y = torch.tensor([156, 3], dtype=torch.uint8)
    labels, _ = rpg_pseudo_labels(torch.eye(2), torch.eye(2), y, 1)
    assert labels.tolist() == [156, 3]


def test_the_module_has_no_state_and_says_what_it_is():
    criterion = RPGLoss(7000, map_size=(32, 16), weighted=False)
    assert not criterion.state_dict()
    assert repr(criterion) == (
        "RPGLoss(k=7000, ignore_index=-100, impl='auto', check_values=True, map_size=(32, 16), weighted=False)"
    )


def test_labels_that_sub_sampling_loses_are_told_from_none():
    """Scribbles one pixel wide can fall between the pixels of the map."""
    y_ref = torch.full((1, 8, 8), -100)
    y_ref[:, 1::2] = 1
    logits, feat = torch.randn(1, 2, 8, 8), torch.randn(1, 4, 8, 8)
    with pytest.raises(ValueError, match=r"y_ref: got \(1, 4, 4\) .* every reference, .* or raise map_size"):
        RPGLoss(map_size=4)(logits, feat, feat, y_ref)
    assert RPGLoss(map_size=8)(logits, feat, feat, y_ref).isfinite()
