"""Vectors of unit length, whatever the range of the features."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_length(features: Tensor) -> tuple[Tensor, Tensor]:
    """Unit-length float32 copies of ``(n, D)`` and the lengths; a zero vector stays zero and is given length 1.

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
    """Half-precision ``(n, D)`` times a power of two each, so that no dot product overflows and nothing is rounded.

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
