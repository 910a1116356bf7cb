"""Errors that name the argument, what came, what was expected and what to do."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64
)  # fmt: skip

FRACTIONS = (
    "fractions come of loading masks as images are (ToTensor divides by 255), or of resizing them by interpolation; "
    "load them as integers, and resize with nearest neighbors"
)


def describe(tensor: Tensor) -> str:
    """Return shape and dtype, as they appear in error messages."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def check_tensor(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")
    if value.layout != torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name}: got a {kind} tensor, expected a dense one; make one of equal shapes, or .to_dense()")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is a real floating-point tensor."""
    check_tensor(name, tensor)
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name}: got {describe(tensor)}, expected a real floating-point dtype of 16 bits or more; convert it with "
            ".float()"
        )


def check_label_dtype(name: str, labels: Tensor, multilabel: bool) -> None:
    """Raise TypeError unless ``labels`` are a class map of integers, or label vectors of a real dtype."""
    check_tensor(name, labels)
    if not multilabel and labels.dtype not in INTEGER:
        raise TypeError(
            f"{name}: got a class map {describe(labels)}, expected an integer dtype; convert whole numbers with "
            ".long(), or pass 0/1 label vectors with a channel axis"
        )
    check_real(name, labels)


def check_real(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless torch computes with the dtype of ``tensor`` as with real numbers."""
    if tensor.dtype not in (*FLOATING, *INTEGER, torch.bool):
        raise TypeError(f"{name}: got {describe(tensor)}, expected a real dtype, of floats one of 16 bits or more")


def check_int(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is an int."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: got {value!r}, expected an int")


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}, expected True or False")


def as_sides(name: str, value: Any, or_else: str = "") -> tuple[int, ...]:
    """Return the sides of a grid, one or one per axis, or raise; ``or_else`` says what else is allowed."""
    sides = value if isinstance(value, tuple) else (value,)
    if any(isinstance(side, bool) or not isinstance(side, numbers.Integral) for side in sides):
        raise TypeError(f"{name}: got {value!r}, expected an int, or a tuple of ints{or_else}")
    if not sides or min(sides) < 1:
        raise ValueError(f"{name}: got {value!r}, expected sides of 1 or more{or_else}")
    return tuple(map(int, sides))


def check_mask(name: str, mask: Any, shape: tuple[int, ...], goes_with: str) -> None:
    """Raise unless ``mask`` is None or a bool tensor of the given shape."""
    if mask is None:
        return
    check_tensor(name, mask)
    if tuple(mask.shape) != shape or mask.dtype != torch.bool:
        raise ValueError(f"{name}: got {describe(mask)}, expected {shape} bool to go with {goes_with}")


def check_same_device(**tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors that are given lie on one device, and hold values there."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    devices = {tensor.device for tensor in present.values()}
    if len(devices) > 1:
        listing = ", ".join(f"{name} on {tensor.device}" for name, tensor in present.items())
        raise ValueError(f"{', '.join(present)}: got {listing}, expected one device; move them with .to(device)")
    if any(device.type == "meta" for device in devices):
        raise ValueError(f"{', '.join(present)}: got tensors on the meta device, expected one where they have values")


def check_finite(**tensors: Tensor | None) -> None:
    """Raise ValueError that names the first tensor with NaN or infinite values."""
    for name, tensor in tensors.items():
        if tensor is not None and not bool(torch.isfinite(tensor.detach()).all()):
            bad = int((~torch.isfinite(tensor.detach())).sum())
            raise ValueError(
                f"{name}: got {describe(tensor)} with {bad} NaN or infinite values, expected finite values; look for "
                "a diverged network or a half-precision overflow upstream (check_values=False skips this check)"
            )


def upcast_unsigned(labels: Tensor) -> Tensor:
    """Return labels in a dtype that every torch kernel takes: uint16, uint32 and uint64 become int64."""
    return labels.long() if labels.dtype in (torch.uint16, torch.uint32, torch.uint64) else labels


def is_ignored(labels: Tensor, ignore_index: int) -> Tensor:
    """Return where labels equal ``ignore_index``, also if their dtype cannot hold it (in torch, uint8 156 == -100)."""
    if labels.dtype == torch.bool:
        return torch.zeros_like(labels)
    if not labels.is_floating_point():
        limits = torch.iinfo(labels.dtype)
        if not limits.min <= ignore_index <= limits.max:
            return torch.zeros_like(labels, dtype=torch.bool)
    return labels == ignore_index


def check_labels(
    name: str, labels: Tensor, *, multilabel: bool, ignore_index: int, num_classes: int | None = None
) -> None:
    """Check the values of a class map or of 0/1 label vectors; ``ignore_index`` is always allowed."""

    def outside(values: Tensor) -> Tensor:
        if multilabel:
            return (values != 0) & (values != 1)
        return (values < 0) | (values >= (num_classes or math.inf))

    ignored, any_class = is_ignored(labels, ignore_index), not multilabel and num_classes is None
    doubtful = outside(labels) | (labels == 255) if any_class else outside(labels)
    if not bool((doubtful & ~ignored).any()):
        return
    # Sorting out which values there are is left to the error: it is slow on full-size maps.
    values = torch.unique(labels[~ignored])
    is_mask_255 = float(values.max()) == 255 and bool(((values == 0) | (values == 255)).all())
    wrong = values[values == 255] if is_mask_255 and any_class else values[outside(values)]
    if wrong.numel() == 0:
        return
    if is_mask_255:
        hint = "this looks like a mask of 0/255: use mask // 255"
    elif not multilabel:
        hint = "renumber the classes, or name the value that marks unlabeled pixels as ignore_index"
    elif bool(((values > 0) & (values < 1)).any()):
        hint = FRACTIONS
    else:
        hint = "pass one 0/1 channel per label"
    classes = f"class indices in [0, {num_classes})" if num_classes else "class indices of 0 and up"
    expected = "0 or 1 in every entry" if multilabel else classes
    texts = list(dict.fromkeys(f"{value:g}" for value in wrong.tolist()))  # no NaN equals another
    listing = ", ".join(texts[:8]) + (", ..." if len(texts) > 8 else "")
    raise ValueError(f"{name}: got the values {listing}, expected {expected} (or ignore_index={ignore_index}); {hint}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")


def check_inputs(
    feat_u: Tensor,
    feat_ref: Tensor,
    y_ref: Tensor,
    valid_u: Tensor | None = None,
    logits_u: Tensor | None = None,
    logits_ref: Tensor | None = None,
    *,
    maps: bool,
) -> None:
    """Check the types, shapes and devices of what the loss and the pseudo-labels take, and no values.

    With ``maps`` features must have spatial axes, and labels, masks and logits may be on a finer grid than they are.
    """
    required, optional = {"feat_u": feat_u, "feat_ref": feat_ref}, {"logits_u": logits_u, "logits_ref": logits_ref}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    for name, tensor in {**given, **required}.items():
        check_floating(name, tensor)
        if tensor.ndim < (3 if maps else 2) or tensor.numel() == 0:
            flat = "; for flat pixels call rpg_pseudo_labels" if maps else " or flat (pixels, D)"
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)}, expected a non-empty (images, channels, *spatial){flat}"
            )
    if feat_u.shape[1] != feat_ref.shape[1]:
        raise ValueError(
            f"feat_ref: got {feat_ref.shape[1]} features per pixel (axis 1 of {tuple(feat_ref.shape)}), expected the "
            f"{feat_u.shape[1]} of feat_u {tuple(feat_u.shape)}; both must come from the same layer"
        )
    _check_reference_labels(feat_ref, y_ref, maps)
    if logits_u is not None:
        _check_logits(logits_u, logits_ref, feat_u, feat_ref, y_ref)
    if valid_u is not None:
        name, like = ("feat_u", feat_u) if logits_u is None else ("logits_u", logits_u)
        check_tensor("valid_u", valid_u)
        finer = maps and logits_u is None and valid_u.ndim == feat_u.ndim - 1
        check_mask("valid_u", valid_u, (like.shape[0], *(valid_u.shape[1:] if finer else like.shape[2:])), name)
    check_same_device(
        logits_u=logits_u, feat_u=feat_u, feat_ref=feat_ref, y_ref=y_ref, logits_ref=logits_ref, valid_u=valid_u
    )


def _check_reference_labels(feat_ref: Tensor, y_ref: Tensor, maps: bool) -> None:
    check_tensor("y_ref", y_ref)
    images, axes = feat_ref.shape[0], feat_ref.ndim - 2  # len would fix the size in exported graphs
    multilabel = y_ref.ndim == feat_ref.ndim
    grid = tuple(y_ref.shape[-axes:] if maps else feat_ref.shape[2:])
    if tuple(y_ref.shape) != (images, *(y_ref.shape[1:2] if multilabel else ()), *grid) or y_ref.numel() == 0:
        pixels = ", *R" if maps else "".join(f", {size}" for size in grid)
        class_map = f"({images}{pixels or ','})"
        advice = f"{axes} spatial axes" if maps else "sub-sample labels and features alike"
        raise ValueError(
            f"y_ref: got shape {tuple(y_ref.shape)}, expected a class map {class_map} or label vectors "
            f"({images}, C{pixels}) to go with feat_ref {tuple(feat_ref.shape)}; {advice}"
        )
    check_label_dtype("y_ref", y_ref, multilabel)


def _check_logits(logits_u: Tensor, logits_ref: Tensor | None, feat_u: Tensor, feat_ref: Tensor, y_ref: Tensor) -> None:
    if feat_u.ndim != logits_u.ndim or feat_u.shape[0] != logits_u.shape[0]:
        raise ValueError(
            f"feat_u: got shape {tuple(feat_u.shape)}, expected ({logits_u.shape[0]}, D, *spatial) with "
            f"{logits_u.ndim - 2} spatial axes to go with logits_u {tuple(logits_u.shape)}"
        )
    num_classes = logits_u.shape[1]
    multilabel = y_ref.ndim == feat_ref.ndim
    if multilabel and y_ref.shape[1] != num_classes:
        hint = "; for a class map with a channel axis, as MONAI loads it, pass y[:, 0].long() of whole numbers"
        raise ValueError(
            f"y_ref: got {y_ref.shape[1]} labels (axis 1 of {tuple(y_ref.shape)}), expected one per channel of "
            f"logits_u {tuple(logits_u.shape)}{hint if y_ref.shape[1] == 1 else ''}"
        )
    if not multilabel and num_classes == 1:
        raise ValueError(
            f"logits_u: got one channel {tuple(logits_u.shape)} and y_ref as a class map {tuple(y_ref.shape)}; for "
            "one binary label pass y_ref as (P, 1, *R) 0/1, for classes give logits one channel per class"
        )
    size = tuple(y_ref.shape[-(feat_ref.ndim - 2) :])
    expected = (y_ref.shape[0], num_classes, *size)
    if logits_ref is not None and tuple(logits_ref.shape) != expected:
        hint = f"; F.interpolate(logits, {size}) makes them that size, in FeatureTap(net, logits=a function) of all"
        raise ValueError(
            f"logits_ref: got shape {tuple(logits_ref.shape)}, expected {expected} to go with y_ref "
            f"{tuple(y_ref.shape)} and the {num_classes} channels of logits_u"
            f"{hint if tuple(logits_ref.shape[2:]) != size else ''}"
        )
