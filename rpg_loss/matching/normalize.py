"""Features of unit length, whatever their range, and products of them in true float32."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def unit_length(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit-length float32 copies of ``(n, D)`` and the lengths; a zero vector stays zero and has length 1.

    Scaling by the largest entry first keeps the squares of very large and very small features finite.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    largest = features.abs().amax(1, keepdim=True)
    largest.masked_fill_(largest == 0, 1)
    scaled = features / largest
    norm = scaled.norm(dim=1, keepdim=True)
    norm.masked_fill_(norm == 0, 1)
    limits = torch.finfo(torch.float32)
    length = (norm * largest).clamp(limits.tiny, limits.max)  # no float64: not all devices have it
    return scaled.div_(norm).float(), length.squeeze(1).float()


def rescaled(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale half-precision ``(n, D)`` by a power of two each, so that no dot product overflows and nothing is rounded.

    Returns:
        The vectors, in their dtype, with float32 factors that bring them to unit length (0 for a zero
        vector), and the lengths that they had (1 for a zero vector).
    """
    # Of the narrow range of float16 most lies below 1; bfloat16 has the range of float32.
    target = 15 if features.dtype == torch.float16 else 0
    exponent = torch.frexp(features.float().abs().amax(1)).exponent.double()
    values = (features.double() * torch.exp2(target - exponent)[:, None]).to(features.dtype)
    norm = values.float().norm(dim=1)
    zero = norm == 0
    limits = torch.finfo(torch.float32)
    length = (norm.double() * torch.exp2(exponent - target)).clamp(limits.tiny, limits.max).float()
    return values, torch.where(zero, 0, 1 / norm), length.masked_fill_(zero, 1)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Suspend autocast on the device; not every kind of device has it."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


_lock = threading.Lock()
_inside = 0  # products under way, in whatever threads
_before: dict[tuple[str, str], str] | str = {}


@contextmanager
def full_float32_matmul() -> Iterator[None]:
    """Suspend TF32 and bfloat16 shortcuts in float32 products; a cosine of 0.999 needs all its digits.

    The setting is the process's: the first thread that enters sets it, and the last that leaves restores what was set.
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = _suspend_shortcuts()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _restore(_before)


# Since torch 2.9 there is a setting per backend and operation; what is "none" there is inherited from the next above.
_INHERITS = {
    ("cuda", "matmul"): ("cuda", "all"),
    ("mkldnn", "matmul"): ("mkldnn", "all"),
    ("cuda", "all"): ("generic", "all"),
    ("mkldnn", "all"): ("generic", "all"),
}


def _suspend_shortcuts() -> dict[tuple[str, str], str] | str:
    """Return what was set.  The interfaces of torch before and since 2.9 must not be mixed."""
    if not hasattr(torch._C, "_set_fp32_precision_setter"):
        legacy = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return legacy
    products = [key for key in _INHERITS if key[1] == "matmul" and _get(key) not in ("none", "ieee")]
    before = {key: _own(key) for key in products}
    for key in products:
        _set(key, "ieee")
    return before


def _restore(before: dict[tuple[str, str], str] | str) -> None:
    if isinstance(before, str):
        torch.set_float32_matmul_precision(before)
    else:
        for key, precision in before.items():
            _set(key, precision)


def _own(key: tuple[str, str]) -> str:
    """Return what is set for just this, "none" where it is inherited: torch tells what holds, not where it is from."""
    precision, above = _get(key), _INHERITS.get(key)
    if above is None or _get(above) != precision:
        return precision
    above_own = _own(above)
    _set(above, "ieee")
    inherited = _get(key) == "ieee"
    _set(above, above_own)
    return "none" if inherited else precision


def _get(key: tuple[str, str]) -> str:
    return str(torch._C._get_fp32_precision_getter(*key))


def _set(key: tuple[str, str], precision: str) -> None:
    torch._C._set_fp32_precision_setter(*key, precision)
