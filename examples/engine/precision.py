"""Faster arithmetic for the network: --precision."""

from __future__ import annotations

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def network_precision(precision: str, device: str) -> torch.dtype:
    """Return the type the network computes in."""
    gpu = torch.device(device).type == "cuda"
    if precision == "bf16" and gpu and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(
            f"precision: bf16, but {torch.cuda.get_device_name(device)} does not compute in it (from Ampere on, GPUs"
            " do); leave --precision out"
        )
    return PRECISIONS[precision]
