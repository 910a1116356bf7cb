"""The nearest-neighbor part: for every query, the closest reference of each label set.

One operation, several implementations that agree: ``reference``, the definition, which the others are tested against;
``chunked`` and ``triton``, engines that answer for similarities and are asked by the same :mod:`.selection`; and
``auto``, which is ``triton`` on a GPU where its kernels passed :mod:`.self_check`, else ``chunked``.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from . import fused, self_check
from .chunked import match_chunked
from .definition import Matches, match_reference
from .fused import match_triton
from .references import LocalReferences, plain

Impl = Literal["auto", "reference", "chunked", "triton"]

IMPLEMENTATIONS: dict[str, Callable[[Tensor, LocalReferences, int], Matches]] = {
    "reference": match_reference,
    "chunked": match_chunked,
    "triton": match_triton,
}


def unavailable_reason(impl: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Return why an implementation cannot run on a device, as a clause; None if it can."""
    if impl == "reference" and device.type == "mps":
        return "it needs float64, which mps has not"
    return fused.unavailable_reason(device, dtype) if impl == "triton" else None


def resolve(impl: str, queries: Tensor, references: Tensor) -> str:
    """Return the implementation that runs where ``impl`` is asked for; raise as :func:`match` does.

    The features may be maps: axis 1 has D entries.
    """
    device, d = queries.device, fused.padded(queries.shape[1])
    dtype = fused.matched_dtype(queries.dtype, references.dtype)
    if impl == "auto":
        if not fused.is_preferred(device) or unavailable_reason("triton", device, dtype):
            return "chunked"
        failure = self_check.failure(device, dtype, d)
        if failure:
            _warn(
                f"rpg_loss: the fused kernels failed their self-check on {device} with {d} features of {dtype}: "
                f'{failure}. The slower impl="chunked" runs instead, with right results. Please report what '
                "python -m rpg_loss.doctor prints"
            )
        return "chunked" if failure else "triton"
    obstacle = unavailable_reason(impl, device, dtype)
    if impl == "triton" and obstacle is None and fused.is_preferred(device):
        failure = self_check.failure(device, dtype, d)
        obstacle = failure and f"its kernels failed their self-check with {d} features of {dtype}: {failure}"
    if obstacle:
        raise ValueError(f'impl: got {impl!r}, which cannot run here: {obstacle}, or use impl="auto"')
    return impl


@functools.cache
def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def match(queries: Tensor, references: LocalReferences, k: int, impl: str = "auto") -> Matches:
    """Return class proximities and nearest label set of every query; see :class:`Matches`.

    Args:
        queries: features of the M queries, ``(M, D)``, real floating point.
        references: the reference set, N >= 1.  Where it is shared out over processes, they call this together with
            the same queries; some may have none of the references.
        k: how many nearest references count, 1 <= k <= N.
        impl: one of the names above.

    Raises:
        ValueError: ``impl`` cannot run on the device of ``queries`` (``triton`` also: gives wrong results there).
    """
    return IMPLEMENTATIONS[resolve(impl, queries, references.features)](plain(queries), references, k)
