"""Matrix products in true float32, whatever the process allows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
