"""Errors that name the argument, what came, what was expected and what to do."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def describe(tensor: Tensor) -> str:
    """Shape and dtype, as they appear in error messages."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def check_tensor(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is a real floating-point tensor."""
    check_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name}: got {describe(tensor)}, expected a real floating-point dtype; convert it with .float()"
        )


def check_mask(name: str, mask: Any, shape: tuple[int, ...], goes_with: str) -> None:
    """Raise unless ``mask`` is None or a bool tensor of the given shape."""
    if mask is None:
        return
    check_tensor(name, mask)
    if tuple(mask.shape) != shape or mask.dtype != torch.bool:
        raise ValueError(f"{name}: got {describe(mask)}, expected {shape} bool to go with {goes_with}")


def check_same_device(**tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors that are given lie on one device."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    devices = {tensor.device for tensor in present.values()}
    if len(devices) > 1:
        listing = ", ".join(f"{name} on {tensor.device}" for name, tensor in present.items())
        raise ValueError(f"{', '.join(present)}: got {listing}, expected one device; move them with .to(device)")


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
    """Labels in a dtype that every torch kernel takes: uint16, uint32 and uint64 become int64."""
    return labels.long() if labels.dtype in (torch.uint16, torch.uint32, torch.uint64) else labels


def is_ignored(labels: Tensor, ignore_index: int) -> Tensor:
    """Where labels equal ``ignore_index``, also if their dtype cannot hold it (in torch, uint8 156 == -100)."""
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
    num_classes = None if multilabel else num_classes
    ignored = is_ignored(labels, ignore_index)
    if multilabel:
        outside = (labels != 0) & (labels != 1)
    else:
        outside = (labels < 0) | (labels >= (num_classes or math.inf))
    # Sorting out which values there are is left to the error: it is slow on full-size maps.
    perhaps_255 = not multilabel and num_classes is None and bool(((labels == 255) & ~ignored).any())
    if not perhaps_255 and not bool((outside & ~ignored).any()):
        return
    values = torch.unique(labels[~ignored])
    is_mask_255 = int(values.max()) == 255 and bool(((values == 0) | (values == 255)).all())
    hint = "this looks like a mask of 0/255: use mask // 255" if is_mask_255 else ""
    if multilabel:
        wrong = values[(values != 0) & (values != 1)]
        expected = "0 or 1 in every entry"
        hint = hint or "pass one 0/1 channel per label"
    else:
        wrong = values[(values < 0) | (values >= (num_classes or math.inf))]
        if is_mask_255 and num_classes is None:
            wrong = values[values == 255]
        expected = f"class indices in [0, {num_classes})" if num_classes else "class indices of 0 and up"
        hint = hint or "renumber the classes, or name the value that marks unlabelled pixels as ignore_index"
    if wrong.numel():
        listing = ", ".join(f"{value:g}" for value in wrong[:8].tolist()) + (", ..." if wrong.numel() > 8 else "")
        raise ValueError(
            f"{name}: got the values {listing}, expected {expected} (or ignore_index={ignore_index}); {hint}"
        )


def resolve_k(k: Any, n: int | None = None) -> int:
    """Number of nearest references for a set of ``n``; with ``n=None`` only check ``k``."""
    expected = "an int >= 1 (a number of references) or a float in (0, 1] (a share of them)"
    if isinstance(k, bool) or not isinstance(k, numbers.Real):
        raise TypeError(f"k: got {k!r} of type {type(k).__name__}, expected {expected}")
    if isinstance(k, numbers.Integral):
        if k < 1:
            raise ValueError(f"k: got {k}, expected {expected}")
        return min(int(k), n) if n is not None else int(k)
    if not 0 < float(k) <= 1:  # also refuses NaN
        raise ValueError(f"k: got the float {float(k)}, expected {expected}; a number of references must be an int")
    return max(1, round(float(k) * n)) if n is not None else 1


def share_k(k: int | float, n: int) -> float:
    """``k``, checked by :func:`resolve_k`, as a share of ``n`` references in (0, 1]."""
    return resolve_k(k, n) / n if isinstance(k, numbers.Integral) else float(k)


def check_temperature(temperature: object) -> None:
    """Raise unless it is a finite number above 0."""
    if isinstance(temperature, bool) or not isinstance(temperature, numbers.Real):
        raise TypeError(f"temperature: got {temperature!r}, expected a number above 0 (the paper: 1)")
    if not 0 < float(temperature) < math.inf:
        raise ValueError(f"temperature: got {temperature!r}, expected a finite number above 0 (the paper: 1)")


def check_bool(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}, expected True or False")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")
