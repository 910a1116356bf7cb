"""The weight of a pseudo-label: one minus the normalized entropy of its class proximities (Eq. 6-7)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import check_floating
from .matching.definition import EPS


def entropy_weights(proximities: Tensor) -> Tensor:
    r"""Return the weight of every query from its class proximities (Eq. 6 and 7).

    .. math::
        P_S = \frac{1 - \delta_S + \epsilon}{\sum_{S'} (1 - \delta_{S'} + \epsilon)}, \qquad
        W = 1 + \frac{\sum_S P_S \log P_S}{\log |S|}

    W is 1 where one label set alone is near, 0 where all are equally near (or none is at all).  With
    a single label set there is nothing to confuse: W = 1.

    Args:
        proximities: class proximities 1 - delta, ``(*, |S|)``, floating point, each in [0, 1].

    Returns:
        Weights in [0, 1], ``(*)``, in float32, or float64 for float64 input.

    Raises:
        TypeError: ``proximities`` is not floating point.
        ValueError: ``proximities`` has no axis or no label set.

    Example:
        >>> import torch
        >>> entropy_weights(torch.tensor([[0.9, 0.0], [0.9, 0.9]]))
        tensor([1.0000, 0.0000])
    """
    check_floating("proximities", proximities)
    if proximities.ndim == 0 or proximities.shape[-1] == 0:
        raise ValueError(
            f"proximities: got shape {tuple(proximities.shape)}, expected (*, |S|) with at least one label set"
        )
    # In half precision EPS would be 0, and 0 log 0 is NaN.
    p = proximities.to(torch.promote_types(proximities.dtype, torch.float32)) + EPS
    num_sets = p.shape[-1]
    if num_sets == 1:
        return torch.ones_like(p[..., 0])
    p = p / p.sum(-1, keepdim=True)
    return (1 + (p * p.log()).sum(-1) / math.log(num_sets)).clamp(0, 1)
