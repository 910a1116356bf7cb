"""Images as an encoder takes them, what its layers give in a forward, and a fingerprint of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from .checks import describe
from .layer_search import hooked


class _AllSeen(BaseException):
    """Ends a forward after the last layer that is needed; no Exception, which networks may catch."""


def as_numbers(name: str, values: float | Sequence[float]) -> tuple[float, ...]:
    """Return one number or several as a tuple, or raise."""
    try:
        numbers = tuple(map(float, values if isinstance(values, Iterable) else (values,)))
    except (TypeError, ValueError):
        raise TypeError(f"{name}: got {values!r}, expected a number, or one per channel") from None
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}: got {values!r}, expected a finite number, or one per channel")
    return numbers


def prepared(
    encoder: nn.Module, images: Tensor, channels: int | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Return images with the channels, the scale and the dtype that the encoder takes."""
    images = images.expand(-1, channels or -1, *[-1] * (images.ndim - 2))
    if mean != (0,) or std != (1,):
        count = images.shape[1]
        mean, std = (values * count if len(values) == 1 else values for values in (mean, std))
        if not len(mean) == len(std) == count:
            raise ValueError(f"mean, std: got {mean}, {std}, expected one number, or one for each of {count} channels")
        # Channel by channel, with numbers: a tensor of them would have to go to the device, which waits.
        images = torch.cat([(x - m) / s for x, m, s in zip(images.split(1, 1), mean, std, strict=True)], dim=1)
    weight = next((p for p in encoder.parameters() if p.is_floating_point()), images)
    return images.to(weight.dtype)


def outputs_of(
    encoder: nn.Module, layers: Sequence[str], images: Tensor, make: Callable[[str, Any], Tensor], *, stop: bool
) -> list[Tensor]:
    """Return what ``make(name, output)`` makes of the output of every layer, in a forward that may stop at the last."""
    names = {encoder.get_submodule(name): name for name in layers}
    made: dict[str, list[Tensor]] = {name: [] for name in layers}

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # At once: the network may change its output in place.
        made[names[module]].append(make(names[module], output))
        if stop and all(made.values()):
            raise _AllSeen

    with suppress(_AllSeen), hooked(names, record, before=False):
        encoder(images)
    for name, found in made.items():
        if len(found) != 1:
            raise ValueError(
                f"layers: {name!r} ran {len(found)} times in one forward, expected once; name a layer that runs once, "
                "within no compiled code or DataParallel"
            )
    return [part for (part,) in made.values()]


def first_tensor(output: Any) -> Any:
    """Return a tensor, or the first in a tuple, list or dict; None if there is none."""
    if isinstance(output, Tensor) or not isinstance(output, Iterable):
        return output
    parts = output.values() if isinstance(output, Mapping) else output
    return next((part for part in parts if isinstance(part, Tensor)), None)


def fingerprint_of(encoder: nn.Module) -> bytes:
    """Return a hash of all weights, the same on every device."""
    digest = sha256()
    for name, value in encoder.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {describe(value)}".encode())
            digest.update(content_of(value))
    return digest.digest()


def content_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in the order of its elements, whatever its device and strides."""
    in_order = tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
    return in_order.view(torch.uint8).cpu().numpy().data
