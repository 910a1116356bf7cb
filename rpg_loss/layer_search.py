"""Which layer of a network made its logits: the calls of its layers, and the way back from the logits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from .checks import check_floating, describe

# What may lie between a layer and the logits, as autograd names it: a change of size, dtype or layout, nothing else.
_PASSED_ON = re.compile(
    r"(Upsample\w+|ToCopy|View|UnsafeView|ReshapeAlias|Permute|Transpose|T|Clone|Slice|Squeeze|Unsqueeze|Alias"
    r"|ConstantPadNd)Backward\d*"
)


class Entered(NamedTuple):
    """The first argument of a layer, and how often it had been changed in place by then."""

    value: Any
    version: int | None

    @classmethod
    def of(cls, args: Any, kwargs: Any) -> Entered:
        value = next(iter((*args, *kwargs.values())), None)
        return cls(value, version_of(value))


class Call(NamedTuple):
    """One call of a convolution or linear layer."""

    name: str
    module: nn.Module
    entered: Entered
    output: Tensor
    node: Any  # of the autograd graph
    version: int | None


@contextmanager
def removed_after(handles: Sequence[Any]) -> Iterator[None]:
    """Remove hooks at the end, also when the forward raises."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def version_of(value: Any) -> int | None:
    """Return how often a tensor has been changed in place; None where torch does not count."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def source_of(logits: Tensor, calls: list[Call]) -> Call | None:
    """Return the call whose output the logits are."""
    by_node: dict[Any, Call] = {call.node: call for call in calls if call.node is not None}
    node: Any = logits.grad_fn
    while node is not None and node not in by_node and _PASSED_ON.fullmatch(node.name()):
        node = next((before for before, _ in node.next_functions if before is not None), None)
    if node in by_node:
        return by_node[node]
    # Without a graph: the same memory, unchanged since.
    memory = logits.untyped_storage().data_ptr()
    unchanged = [call for call in calls if call.version is not None and call.version == call.output._version]
    return next((call for call in unchanged if call.output.untyped_storage().data_ptr() == memory), None)


def not_found(net: nn.Module, logits: Tensor, calls: list[Call]) -> str:
    """Return the message for logits that no single layer made, with the layers that may be meant."""

    def width(module: Any) -> int:
        return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)

    fitting = [call for call in calls if width(call.module) == logits.shape[1]] or calls[-3:]
    lines = {f"\n  {call.name!r}: {call.module}, {describe(call.entered.value)} entered it" for call in fitting}
    untraced = (
        "" if logits.requires_grad else "without gradients, logits that were resized cannot be traced to their layer; "
    )
    return (
        f"layer: the logits {describe(logits)} that {type(net).__name__} returned are not the output of one "
        f"convolution or linear layer; {untraced}name the layer whose input to take, FeatureTap(net, layer=...). "
        "Candidates:" + ("".join(sorted(lines)) or " none, no such layer ran")
    )


def only_entry(name: str, entered: list[Entered]) -> Tensor:
    """Return what entered the layer in the only call of it."""
    if len(entered) != 1:
        raise ValueError(
            f"layer: {name!r} ran {len(entered)} times in one forward, expected once; name a layer that runs once "
            "(layers within DataParallel or compiled code run hidden: wrap or compile the tap instead)"
        )
    value, version = entered[0]
    check_floating(f"layer: what entered {name!r}", value)
    if version is not None and version != value._version:
        raise ValueError(
            f"layer: what entered {name!r} was changed in place afterwards, expected it to stay; name the layer after "
            "the one that changes it"
        )
    tensor: Tensor = value
    return tensor
