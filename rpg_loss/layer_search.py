"""Which layer of a network made its logits: the calls of its layers, and the way back from the logits."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map_only

from .checks import check_floating, describe

# What may lie between a layer and the logits, as autograd names it: a change of size, dtype or layout, nothing else.
_PASSED_ON = re.compile(
    r"(Upsample\w+|ToCopy|View|UnsafeView|ReshapeAlias|Permute|Transpose|T|Clone|Slice|Squeeze|Unsqueeze|Alias"
    r"|ConstantPadNd|Split\w*)Backward\d*"
)
_PICKED = re.compile(r"(Select|Unbind)Backward\d*")  # one of several stacked outputs
_LAYERS = re.compile(r"(\w*Convolution\w*|Addmm|Mm|Linear|Bmm|Baddbmm)Backward\d*")

# Hooks are registered under a lock: torch numbers them without one.
_LOCK = threading.RLock()


def check_plain_module(argument: str, net: Any) -> None:
    """Raise unless ``net`` is a module whose layers can be named and hooked."""
    if not isinstance(net, nn.Module) or isinstance(net, torch.jit.ScriptModule):
        advice = "; pass the module that it was made of" if isinstance(net, nn.Module) else ""
        raise TypeError(f"{argument}: got {type(net).__name__}, expected a torch.nn.Module that is no script{advice}")


def check_layer_name(argument: str, net: nn.Module, name: Any) -> None:
    """Raise unless ``name`` is that of a layer in ``net``."""
    if not isinstance(name, str):
        raise TypeError(
            f"{argument}: got {type(name).__name__}, expected the name of a layer, as in net.named_modules()"
        )
    names = [path for path, _ in net.named_modules(remove_duplicate=False) if path]
    if name not in names:
        close = get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see net.named_modules()"
        raise ValueError(f"{argument}: got {name!r}, which is not in {type(net).__name__}; {hint}")


def check_not_compiled(argument: str, net: nn.Module, name: str, advice: str) -> None:
    """Refuse a layer within compiled code, which does not run hooks set after it was compiled."""
    parts = name.split(".")
    for depth in range(len(parts) + 1):
        module = net.get_submodule(".".join(parts[:depth]))
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"{argument}: got a {type(module).__name__} that is compiled and holds layer {name!r}, expected a "
                f"plain module; {advice}"
            )


class Entered(NamedTuple):
    """The first argument of a layer, and how often it had been changed in place by then."""

    value: Any
    version: int | None

    @classmethod
    def of(cls, args: Any, kwargs: Any) -> Entered:
        value = next(iter((*args, *kwargs.values())), None)
        return cls(value, _version_of(value))


class Call(NamedTuple):
    """One call of a convolution or linear layer."""

    name: str
    module: nn.Module
    entered: Entered
    output: Tensor
    node: Any  # of the autograd graph
    version: int | None


def record_calls(net: nn.Module, forward: Callable[[], Any]) -> tuple[Any, list[Call]]:
    """Return what ``forward()`` returns, and the calls of all convolutions and linear layers of ``net``."""
    names: dict[nn.Module, str] = {
        m: name for name, m in net.named_modules() if name and isinstance(m, (nn.Linear, _ConvNd))
    }
    calls: list[Call] = []

    def record(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        calls.append(Call(names[module], module, Entered.of(args, kwargs), output, output.grad_fn, _version_of(output)))

    with hooked(names, record, before=False):
        output = forward()
    return output, calls


@contextmanager
def hooked(modules: Iterable[nn.Module], record: Callable[..., None], *, before: bool) -> Iterator[None]:
    """Call ``record`` before or after each call of the modules by this thread; no hook stays, also after an error."""
    thread = threading.get_ident()

    def hook(module: nn.Module, *call: Any) -> None:
        # Other threads run the same layers, or replicas that share their hooks (DataParallel).
        if threading.get_ident() == thread:
            record(module, *call)

    with _LOCK:
        handles = [
            module.register_forward_pre_hook(hook, with_kwargs=True)
            if before
            else module.register_forward_hook(hook, with_kwargs=True)
            for module in modules
        ]
    try:
        yield
    finally:
        with _LOCK:
            for handle in handles:
                handle.remove()


def logits_apart(net: nn.Module, select: Callable[[Any], Tensor], args: Any, kwargs: Any) -> Tensor:
    """Return logits with their graph, of a forward that leaves no trace in buffers or random streams."""
    state = itertools.chain(net.parameters(), net.buffers())
    devices = {tensor.device for tensor in state if tensor.is_cuda}
    with _LOCK, torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        copies = {name: buffer.detach().clone() for name, buffer in net.named_buffers()}
        # What was made in inference mode cannot be part of a graph.
        copies |= {name: _copy_with_gradient(p) for name, p in net.named_parameters() if p.is_inference()}
        args, kwargs = tree_map_only(Tensor, _copy_with_gradient, (args, kwargs))
        return select(torch.func.functional_call(net, copies, args, kwargs))


def _copy_with_gradient(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    # No leaf, so that the network may change it in place.
    return copy.requires_grad_().clone() if copy.is_floating_point() else copy


def source_of(logits: Tensor, calls: list[Call]) -> Call | None:
    """Return the call whose output the logits are."""
    by_node: dict[Any, Call] = {call.node: call for call in calls if call.node is not None}
    for node in _way_back(logits):
        if node in by_node:
            return by_node[node]
    # Without a graph, or with one that checkpoints hide: the same memory, unchanged since.
    memory = _memory_of(logits)
    unchanged = [call for call in calls if call.version is not None and call.version == call.output._version]
    return next((call for call in unchanged if memory and _memory_of(call.output) == memory), None)


def _way_back(logits: Tensor) -> Iterator[Any]:
    """Yield the nodes of the graph from the logits back to the first that does more than to pass values on."""
    node, number = logits.grad_fn, logits.output_nr
    while node is not None:
        yield node
        edges = node.next_functions
        if _PASSED_ON.fullmatch(node.name()):
            node, number = next((edge for edge in edges if edge[0] is not None), (None, 0))
        elif _PICKED.fullmatch(node.name()):
            node, number = _picked(node, number)
        else:
            return


def _picked(node: Any, number: int) -> tuple[Any, int]:
    """Return the edge of what ``stack(outputs, axis).select(axis, index)`` or ``.unbind(axis)[index]`` took."""
    stack: Any = node.next_functions[0][0]
    # Without metadata (torch 2.4) the layer has to be named: the error says so.
    if stack is None or not stack.name().startswith("StackBackward") or not hasattr(stack, "_input_metadata"):
        return None, 0
    axes, outputs = len(stack._input_metadata[0].shape), stack.next_functions
    # Negative numbers are saved modulo 2^64.
    if _signed(node._saved_dim) % axes != _signed(stack._saved_dim) % axes:
        return None, 0
    index = _signed(node._saved_index) % len(outputs) if node.name().startswith("Select") else number
    edge: tuple[Any, int] = outputs[index]
    return edge


def check_same_pixels(logits: Tensor, features: Tensor, *, arranged: bool) -> None:
    """Refuse logits that do not lie over the pixels of the features, as far as the graph tells.

    They may be cut out of a larger map, or have its axes in another order.  ``arranged`` features have been through a
    layout, which may do the same to them.
    """
    # Of each axis of the logits: where it is in the map, how long there, and how much of the map is left.
    axes, sizes, share = list(range(logits.ndim)), list(logits.shape), [1.0] * logits.ndim
    for node in _way_back(logits) if logits.numel() else ():
        before, kind = list(sizes), node.name()
        if kind.startswith(("Permute", "Transpose")):
            order = _order(node, logits.ndim)
            axes = [order[axis] for axis in axes]
        elif kind.startswith("ConstantPad"):
            for place, pixels in enumerate(node._saved_pad):  # of the last axis first, before and behind
                before[axes.index(logits.ndim - 1 - place // 2)] -= _signed(pixels)
        elif kind.startswith(("Slice", "Split", "Upsample")):
            before = [node._saved_self_sym_sizes[axis] for axis in axes]
        elif not kind.startswith(("Alias", "Clone", "ToCopy")):
            break  # a layer, or another number of axes
        if not kind.startswith("Upsample") and getattr(node, "_saved_step", 1) == 1:
            share = [part * now / then for part, now, then in zip(share, sizes, before, strict=True)]
        sizes = before
    # Of odd sizes less than a pixel of features is cut.
    cut = any(abs(1 - part) * side > 1 for part, side in zip(share[2:], features.shape[2:], strict=True))
    if cut and not (arranged and list(features.shape[2:]) != sizes[2:]):
        raise ValueError(
            f"logits: got {tuple(logits.shape)}, which the network cut out of a larger map (or padded), while the "
            f"features {tuple(features.shape)} lie over all of it, expected both over the same pixels; give the "
            "network images of a size that it need not pad, or cut the features alike, FeatureTap(net, "
            "layout=lambda x: x[..., 4:-4, 4:-4])"
        )
    order = [2 + sorted(axes[2:]).index(axis) for axis in axes[2:]]
    if order != sorted(order) and not arranged:
        raise ValueError(
            f"logits: got {tuple(logits.shape)}, whose spatial axes the network moved after its last layer, while the "
            f"features {tuple(features.shape)} have them as in that layer, expected both in one order; move the "
            f"features' alike, FeatureTap(net, layout=lambda x: x.permute{(0, 1, *order)})"
        )


def _order(node: Any, axes: int) -> list[int]:
    """Return which axis of what enters a permutation or transposition each axis of its result is."""
    if node.name().startswith("Permute"):
        return [_signed(axis) % axes for axis in node._saved_dims]
    order = list(range(axes))
    first, second = _signed(node._saved_dim0) % axes, _signed(node._saved_dim1) % axes
    order[first], order[second] = second, first
    return order


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _version_of(value: Any) -> int | None:
    """Return how often a tensor has been changed in place; None where torch does not count."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def _memory_of(tensor: Tensor) -> int:
    """Return the address of a tensor's memory, 0 where it has none."""
    return 0 if not _has_values(tensor) else tensor.untyped_storage().data_ptr()


def _has_values(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and not tensor.is_meta and not hasattr(tensor, "fake_mode")


def look_like_probabilities(logits: Tensor) -> bool:
    """Return whether logits are not the output of a layer and all lie in [0, 1]; waits for the device if need be."""
    nodes = list(_way_back(logits))
    if not _has_values(logits) or (nodes and _LAYERS.fullmatch(nodes[-1].name())):
        return False
    low, high = torch.stack(logits.detach().aminmax()).tolist()
    return bool(0 <= low < high <= 1)


def not_found(net: nn.Module, logits: Tensor, calls: list[Call]) -> str:
    """Return the message for logits that no single layer made, with the layers that may be meant."""

    def width(module: Any) -> int:
        return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)

    fitting = [call for call in calls if width(call.module) == logits.shape[1]]
    hints = ""
    if look_like_probabilities(logits):
        hints += "they all lie in [0, 1]: if the network ends in a softmax or sigmoid, take it out; "
    if logits.ndim > max((call.output.ndim for call in calls), default=logits.ndim):
        hints += "if these are several outputs in one tensor, say which, FeatureTap(net, logits=lambda o: o[:, 0]); "
    if not logits.requires_grad:
        hints += "no gradient leads from them to a layer, they may be detached; "
    lines = {
        f"\n  {call.name!r}: {call.module}, {describe(call.entered.value)} entered it" for call in fitting or calls[-3:]
    }
    return (
        f"layer: the logits {describe(logits)} that {type(net).__name__} returned are not the output of one "
        f"convolution or linear layer; {hints}name the layer whose input to take, FeatureTap(net, layer=...). "
        "Candidates:" + ("".join(sorted(lines)) or " none, no such layer ran")
    )


def only_entry(name: str, entered: list[Entered]) -> Tensor:
    """Return what entered the layer in the only call of it."""
    if len(entered) != 1:
        advice = "name a layer that runs once"
        if not entered:
            advice += "; layers within DataParallel or compiled code run hidden: wrap or compile the tap instead"
        raise ValueError(f"layer: {name!r} ran {len(entered)} times in one forward, expected once; {advice}")
    value, version = entered[0]
    check_floating(f"layer: what entered {name!r}", value)
    if version is not None and version != value._version:
        raise ValueError(
            f"layer: what entered {name!r} was changed in place afterwards, expected it to stay; name the layer after "
            "the one that changes it"
        )
    tensor: Tensor = value
    return tensor
