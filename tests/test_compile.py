"""The library under torch.compile: one graph, the same numbers, the same errors."""

import itertools
import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from rpg_loss import FixMatchSegLoss, RPGLoss, rpg_pseudo_labels
from rpg_loss.loss import _checked_copy
from rpg_loss.options import Options
from rpg_loss.pseudo_labels import _operator

needs_a_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler (c++)")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what compilers of old and new torch versions warn of is not ours
        yield


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_operator_is_registered_as_compilers_need_it(multilabel):
    feat_u, feat_ref = torch.randn(2, 5, 4, 6), torch.randn(3, 5, 4, 4)
    y = torch.randint(2, (3, 70, 4, 4)).float() if multilabel else torch.randint(3, (3, 4, 4))
    y[0, ..., :2] = -100
    valid = torch.rand(2, 4, 6) > 0.2
    for k in (0.5, 1.0, 1, 20):
        torch.library.opcheck(_operator, (feat_u, feat_ref, y, valid, *Options(k).values))
    options = Options(20, impl="chunked", check_values=False)
    torch.library.opcheck(_operator, (feat_u, feat_ref, y, None, *options.values))
    torch.library.opcheck(_operator, (feat_u.half(), feat_ref.half(), y, None, *options.values))
    torch.library.opcheck(_checked_copy, (y, multilabel, -100, 70 if multilabel else 3))


def test_a_share_of_all_is_not_taken_for_one_reference():
    """The operator tells 1.0 from 1, also where ``k`` changes between calls."""
    feat_u, feat_ref, y = torch.randn(20, 4), torch.randn(30, 4), torch.arange(30) % 3
    compiled = torch.compile(rpg_pseudo_labels, fullgraph=True, backend="aot_eager")
    for k in (1.0, 1, 7, 8, 0.2, 0.9):
        expected = rpg_pseudo_labels(feat_u, feat_ref, y, k)
        assert torch.equal(compiled(feat_u, feat_ref, y, k).weights, expected.weights)


@pytest.mark.parametrize("k", [np.int64(5), np.float64(0.5), np.float32(0.5)])
def test_numbers_of_numpy(k):
    """A module takes them as any number; in a compiled call they are arrays to the compiler, and no k."""
    feat_u, feat_ref, y = torch.randn(2, 4, 3, 3), torch.randn(3, 4, 3, 3), torch.randint(3, (3, 3, 3))
    criterion = RPGLoss(k, ignore_index=np.int64(-100))
    expected = RPGLoss(k.item()).pseudo_labels(feat_u, feat_ref, y).weights
    compiled = torch.compile(criterion.pseudo_labels, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(feat_u, feat_ref, y).weights, expected)
    compiled = torch.compile(rpg_pseudo_labels, fullgraph=True, backend="aot_eager")
    # Older compilers refuse it, too, and do not say why.
    message = "k: got ndarray, expected an int >= 1" if hasattr(torch._C, "_set_fp32_precision_setter") else None
    with pytest.raises(torch._dynamo.exc.Unsupported, match=message):
        compiled(feat_u, feat_ref, y, k)


class Step(nn.Module):
    """The unlabeled and the supervised loss of one training step."""

    def __init__(self, multilabel, **options):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 3, 1)
        self.rpg = RPGLoss(0.5, map_size=4, **options)
        self.fixmatch = FixMatchSegLoss(0.4, multilabel=multilabel)

    def forward(self, images, y, images_u, valid_u):
        feat, feat_u, feat_strong = (self.body(x).relu() for x in (images, images_u, images_u * 0.9))
        logits_u = self.head(feat_u)
        loss = self.rpg(logits_u, feat_u, feat, y, self.head(feat), valid_u=valid_u)
        return loss + self.fixmatch(logits_u, self.head(feat_strong), valid_weak=valid_u)


def step_and_data(multilabel, **options):
    step = Step(multilabel, **options)
    y = torch.randint(2, (3, 3, 8, 8)).float() if multilabel else torch.randint(3, (3, 8, 8))
    y[..., :2] = -100
    return step, (torch.randn(3, 1, 8, 8), y, torch.randn(2, 1, 8, 8), torch.rand(2, 8, 8) > 0.3)


def loss_and_gradients(step, module, data):
    module.zero_grad()
    loss = step(*data)
    loss.backward()
    return loss.detach(), *(parameter.grad.clone() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("backend", "options", "multilabel"),
    [
        *itertools.product(["aot_eager"], [{}, {"weighted": False}, {"check_values": False}], [False, True]),
        pytest.param("inductor", {}, True, marks=needs_a_compiler),
    ],
    ids=str,
)
def test_a_compiled_training_step_equals_the_eager_one(backend, options, multilabel):
    """With ignored references, ignored pixels and ignored queries, and in one graph."""
    module, data = step_and_data(multilabel, **options)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    expected, got = loss_and_gradients(module, module, data), loss_and_gradients(compiled, module, data)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("multilabel", [False, True])
def test_an_exported_step_takes_batches_of_any_size(multilabel):
    step, data = step_and_data(multilabel)
    pool, batch = torch.export.Dim("pool", min=2, max=64), torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(step, data, dynamic_shapes=({0: pool}, {0: pool}, {0: batch}, {0: batch})).module()
    for sizes in (slice(0, 3), slice(0, 5)):
        now = [torch.cat([tensor, tensor.flip(-1), tensor])[sizes] for tensor in data]
        torch.testing.assert_close(exported(*now), step(*now))


def test_everything_ignored_is_zero_when_compiled_too():
    module, (images, y, images_u, valid_u) = step_and_data(False, check_values=False)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    y[0, 4, 4] = 1  # one reference must be left
    loss, *gradients = loss_and_gradients(compiled, module, (images, y, images_u, torch.zeros_like(valid_u)))
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_compiled_code_refuses_bad_values_as_eager_code_does():
    module, (images, y, images_u, valid_u) = step_and_data(False)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    compiled(images, y, images_u, valid_u)
    # 8 x 8 labels and a map of 4 x 4: the pixel in the corner is supervised but no reference.
    y[0, 7, 7] = 9
    with pytest.raises(ValueError, match=r"y_ref: got the values 9, expected class indices in \[0, 3\)"):
        compiled(images, y, images_u, valid_u)
    with pytest.raises(ValueError, match=r"feat_u: .* NaN or infinite"):
        compiled(images, y.clamp(max=2), images_u * torch.nan, valid_u)


def test_compiled_code_keeps_the_precision_under_autocast():
    module, _ = step_and_data(False)
    feat_u, feat_ref, y = torch.randn(2, 6, 4, 4), torch.randn(3, 6, 4, 4), torch.randint(3, (3, 4, 4))
    compiled = torch.compile(module.rpg.pseudo_labels, fullgraph=True, backend="aot_eager")
    expected = module.rpg.pseudo_labels(feat_u, feat_ref, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels, weights = compiled(feat_u, feat_ref, y)
    assert torch.equal(labels, expected.labels)
    assert torch.equal(weights, expected.weights)
