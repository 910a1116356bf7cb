"""Faster arithmetic for the network: --precision and --compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from examples.models.unet import UNet

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def network_precision(precision: str, device: str) -> torch.dtype:
    """The type the network computes in.

    Raises:
        ValueError: the GPU would only imitate it.
    """
    if (
        precision == "bf16"
        and torch.device(device).type == "cuda"
        and torch.cuda.get_device_capability(device) < (8, 0)
    ):
        raise ValueError(
            f"precision: bf16, but {torch.cuda.get_device_name(device)} does not compute in it (from Ampere on, GPUs"
            " do); leave --precision out"
        )
    return PRECISIONS[precision]


def compile_networks(*modules: nn.Module) -> None:
    """Has every UNet in the modules, a teacher's too, compiled at its first forward in training mode.

    Evaluation is not compiled: it is rare, and every mode and batch size is compiled by itself. Keys of the
    ``state_dict`` stay what they are; a copy of a compiled network is not compiled.
    """
    for net in {part for module in modules for part in module.modules() if isinstance(part, UNet)}:
        net.levels = in_training(net, net.levels)  # type: ignore[method-assign]


def in_training(net: UNet, levels: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(levels)

    def call(*args: Any) -> Any:
        try:
            return (compiled if net.training else levels)(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())  # advice for developers of compilers follows
            raise ValueError(f"compile: torch.compile cannot do it here ({reason}); leave --compile out") from error

    return call
