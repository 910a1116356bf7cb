"""The weighted cross-entropy: what is left out has no part, and arguments of a wrong kind are refused."""

import pytest
import torch
import torch.nn.functional as F

from rpg_loss import segmentation_cross_entropy

INFINITE = [float("nan"), float("inf"), -float("inf")]
LOGITS = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
CLASSES, VECTORS = LOGITS.argmax(1), (LOGITS > 0).float()
PIXELS = torch.ones(2, 4, 5)


@pytest.mark.parametrize("by", ["ignore_index", "valid", "weights"])
@pytest.mark.parametrize("target", [CLASSES, VECTORS])
def test_what_is_left_out_has_no_part_whatever_its_logits(target, by):
    """Loss and gradient are the same to the bit."""
    out = torch.rand(2, 4, 5) < 0.4
    given = {"weights": torch.rand(2, 4, 5)}
    if by == "ignore_index":
        target = target.masked_fill(out if target is CLASSES else out.unsqueeze(1), -100)
    elif by == "valid":
        given["valid"] = ~out
        given["weights"] = given["weights"].masked_fill(out, float("nan"))
    else:
        given["weights"] = given["weights"].masked_fill(out, 0)
    outcomes = []
    for value in (0, *INFINITE):
        logits = LOGITS.masked_fill(out.unsqueeze(1), value).requires_grad_()
        loss = segmentation_cross_entropy(logits, target, **given)
        outcomes.append((loss.detach(), *torch.autograd.grad(loss, logits)))
    assert outcomes[0][0] > 0
    for loss, gradient in outcomes:
        assert torch.equal(loss, outcomes[0][0])
        assert torch.equal(gradient, outcomes[0][1])
        assert not gradient.movedim(1, -1)[out].any()


@pytest.mark.parametrize("value", INFINITE)
def test_what_has_a_part_is_not_hidden(value):
    logits = torch.full_like(LOGITS, value)
    assert not segmentation_cross_entropy(logits, CLASSES).isfinite()
    assert not segmentation_cross_entropy(LOGITS, CLASSES, PIXELS * torch.nan).isfinite()


REFUSED = {
    "valid uint8": ((LOGITS, CLASSES), {"valid": torch.full((2, 4, 5), 254).byte()}, r"valid: got .* uint8, expected"),
    "valid list": ((LOGITS, CLASSES), {"valid": [True]}, "valid: got list, expected a torch.Tensor"),
    "valid shape": ((LOGITS, CLASSES), {"valid": PIXELS[:1] > 0}, r"valid: got shape \(1, 4, 5\), expected \(2"),
    "float classes": ((LOGITS, CLASSES + 0.9), {}, r"target: got a class map .*float32, expected an integer dtype"),
    "bool classes": ((LOGITS, CLASSES > 0), {}, r"target: got a class map .*bool, expected an integer dtype"),
    "complex vectors": ((LOGITS, VECTORS.cfloat()), {}, r"target: got .*complex64, expected a real dtype"),
    "float8 vectors": ((LOGITS, VECTORS.to(torch.float8_e5m2)), {}, r"target: got .*float8_e5m2, expected a real"),
    "complex weights": ((LOGITS, CLASSES, PIXELS * 1j), {}, r"weights: got .*complex64, expected a real dtype"),
    "weights list": ((LOGITS, CLASSES, [1.0]), {}, "weights: got list, expected a torch.Tensor"),
    "logits list": (([], CLASSES), {}, "logits: got list"),
    "target shape": ((LOGITS, CLASSES[..., 1:]), {}, r"target: got shape .*, expected a class map \(2, 4, 5\)"),
    "weights shape": ((LOGITS, CLASSES, PIXELS[..., 0]), {}, r"weights: got shape \(2, 4\), expected \(2, 4, 5\)"),
    "weights per entry": ((LOGITS, CLASSES, LOGITS), {}, r"weights: got shape .*, expected \(2, 4, 5\)"),
    "ignore_index": ((LOGITS, CLASSES), {"ignore_index": 1.5}, "ignore_index: got 1.5, expected an int"),
    "one channel": ((LOGITS[:, :1], CLASSES), {}, r"logits: got one channel .* pass target as \(B, 1, \*S\)"),
    "no channel": ((LOGITS[:, :0], CLASSES), {}, r"logits: got shape \(2, 0, 4, 5\), expected \(B, C, \*spatial\)"),
    "no axes": ((LOGITS[0, 0, 0], CLASSES), {}, r"logits: got shape \(5,\), expected \(B, C, \*spatial\)"),
    "devices": ((LOGITS, CLASSES.to("meta")), {}, "got logits on cpu, target on meta, expected one device"),
    "meta": ((LOGITS.to("meta"), CLASSES.to("meta")), {}, "logits, target: got tensors on the meta device"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_would_mean_something_else_are_refused(case):
    args, options, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        segmentation_cross_entropy(*args, **options)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_weights_of_any_real_dtype(dtype):
    weights = torch.rand(2, 4, 5) < 0.5
    expected = segmentation_cross_entropy(LOGITS, CLASSES, weights.float())
    assert torch.equal(segmentation_cross_entropy(LOGITS, CLASSES, weights.to(dtype)), expected)


@pytest.mark.parametrize("target", [CLASSES, VECTORS])
def test_layers_get_the_gradient_in_the_layout_of_the_plain_cross_entropy(target):
    """In another layout they are slower, and sum in another order: the same training gives other weights."""

    def strides(loss_of):
        seen = []
        logits = LOGITS.to(memory_format=torch.channels_last).requires_grad_() * 1
        logits.register_hook(lambda gradient: seen.append(gradient.stride()))
        loss_of(logits).backward()
        return seen

    plain = F.binary_cross_entropy_with_logits if target is VECTORS else F.cross_entropy
    expected = strides(lambda logits: plain(logits, target, reduction="none").sum())
    for options in ({}, {"weights": PIXELS / 2, "valid": PIXELS > 0}):
        found = strides(lambda logits, given=options: segmentation_cross_entropy(logits, target, **given))
        assert found == expected, options
