"""Features of unit length, whatever their range, and products of them in true float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    length = (norm.double() * largest.double()).clamp(limits.tiny, limits.max)
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


@contextmanager
def full_float32_matmul() -> Iterator[None]:
    """Suspend TF32 and bfloat16 shortcuts in float32 products; a cosine of 0.999 needs all its digits.

    Restores what was set.  Since torch 2.9 the setting is per backend, before it is one for all; the
    old and the new interface must not be mixed, so each is used only where it is the current one.
    """
    mkldnn: Any = torch.backends.mkldnn
    if hasattr(mkldnn, "matmul"):
        backends: list[Any] = [torch.backends.cuda.matmul, mkldnn.matmul]
        before = [backend.fp32_precision for backend in backends]
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision
    else:
        legacy = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(legacy)
