"""Logits and the features under them, from a network that only returns logits."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .checks import check_floating, describe

Layout = Literal["channels_first", "channels_last", "tokens"] | Callable[[Tensor], Tensor]

# What may lie between a layer and the logits, as autograd names it: a change of size, dtype or layout, nothing else.
_PASSED_ON = re.compile(
    r"(Upsample\w+|ToCopy|View|UnsafeView|ReshapeAlias|Permute|Transpose|T|Clone|Slice|Squeeze|Unsqueeze|Alias"
    r"|ConstantPadNd)Backward\d*"
)


class FeatureTap(nn.Module):
    """Gives ``(logits, features)`` from any network, without a change to it.

    The features are what enters the network's last layer (f_feat of Eq. 2): the convolution or linear layer whose
    output is the logits, up to a change of size, dtype or layout.  The first call finds it, by looking where the logits
    of that call come from; where no single layer gives them, an error lists the candidates, and ``layer`` names one.

    The network stays what it is: the tap holds it as ``tap.net``, shares its parameters, and leaves no hook behind,
    also when the forward raises.  Copies of a tap (a teacher, ``AveragedModel``) tap the copied network.  Every call
    returns its own features.  They are part of the graph; RPGLoss takes no gradient through them.

    - ``state_dict`` keys are the network's with ``net.`` before them; to save the network alone, save ``tap.net``.
    - DistributedDataParallel: wrap the tap, as you would the network.
    - ``torch.compile``: compile the tap, not the network in it.  With ``fullgraph=True`` name the layer, or call the
      tap once before.
    - Memory: the first call keeps the inputs and outputs of all convolutions and linear layers until it returns, unless
      ``layer`` is named.

    Args:
        net: any network.  DataParallel inside a tap is refused when called.
        layer: name of the layer whose first argument is taken, as in ``net.named_modules()``.  None: found in the first
            call, and kept in ``tap.layer``.
        logits: which part of the network's output the logits are: an index, a key or attribute, or a function of the
            output.  None: the output itself if it is a tensor; else the part named ``logits`` or ``out``; else its only
            part; else, of a list or tuple that differs in resolution alone (deep supervision), the finest.
        layout: axes of what enters the layer.  ``"channels_first"``: ``(B, D, *S)``; ``"channels_last"``: ``(B, *S,
            D)``; ``"tokens"``: ``(B, N, D)``, in row-major order one token for each of the logits' pixels, or for each
            square (cubic) patch of them; or a function that makes ``(B, D, *S)`` of it.  None: channels first,
            and an error if the layer is ``nn.Linear``, which takes its features last.
        with_output: return ``(logits, features, output)``, with all that the network returned.

    Raises:
        TypeError: ``net`` is not a module, ``layer`` is not a string.
        ValueError: ``layer`` is not in the network, an unknown ``layout``; when called: logits or layer that cannot be
            told without a word from you, a layer that runs never or more than once, features that do not go with the
            logits, a network that is compiled inside the tap.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1))
        >>> tap = FeatureTap(net)
        >>> logits, features = tap(torch.randn(2, 1, 16, 16))
        >>> logits.shape, features.shape, tap.layer
        (torch.Size([2, 3, 16, 16]), torch.Size([2, 8, 16, 16]), '2')
    """

    def __init__(
        self,
        net: nn.Module,
        layer: str | None = None,
        *,
        logits: int | str | Callable[[Any], Tensor] | None = None,
        layout: Layout | None = None,
        with_output: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"net: got {type(net).__name__}, expected a torch.nn.Module")
        if layer is not None:
            _check_name(net, layer)
        if not callable(layout) and layout not in (None, "channels_first", "channels_last", "tokens"):
            raise ValueError(
                f"layout: got {layout!r}, expected 'channels_first', 'channels_last', 'tokens' or a function"
            )
        self.net = net
        self.layer = layer
        self.logits = logits
        self.layout = layout
        self.with_output = with_output
        self.training = net.training

    def extra_repr(self) -> str:
        return f"layer={self.layer!r}, logits={self.logits!r}, layout={self.layout!r}, with_output={self.with_output}"

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """One forward of the network, with the arguments that it takes.

        Returns:
            Logits ``(B, C, *S)`` and features ``(B, D, *S')``, and with ``with_output`` the network's output.

        Raises:
            ValueError: see :class:`FeatureTap`.
        """
        if self.layer is None:
            # Not a decorator, which would load the compiler with this module.
            find: Any = self._find_layer
            if torch.compiler.is_compiling():
                find = torch.compiler.disable(find)
            output, logits, entered = find(args, kwargs)
        else:
            run = self._run_compiled if torch.compiler.is_compiling() else self._run
            output, calls = run(self.layer, args, kwargs)
            logits, entered = _select_logits(output, self.logits), _only(self.layer, calls)
        features = self._arrange(entered, logits)
        return (logits, features, output) if self.with_output else (logits, features)

    def _run(self, name: str, args: Any, kwargs: Any) -> tuple[Any, list[_Entered]]:
        """One forward: the network's output, and what entered the layer."""
        _check_not_compiled(self.net, name)
        layer = self.net.get_submodule(name)
        entered: list[_Entered] = []

        def record(module: nn.Module, args: Any, kwargs: Any) -> None:
            entered.append(_Entered.of(args, kwargs))

        with _removed_after([layer.register_forward_pre_hook(record, with_kwargs=True)]):
            output = self.net(*args, **kwargs)
        return output, entered

    def _run_compiled(self, name: str, args: Any, kwargs: Any) -> tuple[Any, list[_Entered]]:
        """The same for compilers, which do not follow hooks set while they trace: for the trace, another module
        stands in the layer's place."""
        layer = self.net.get_submodule(name)
        stand_in = _StandIn(layer)
        paths = [path for path, module in self.net.named_modules(remove_duplicate=False) if module is layer]
        places = [(self.net.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in paths]
        for parent, attribute in places:
            setattr(parent, attribute, stand_in)
        try:
            output = self.net(*args, **kwargs)
        finally:
            for parent, attribute in places:
                setattr(parent, attribute, layer)
        return output, stand_in.entered

    def _find_layer(self, args: Any, kwargs: Any) -> tuple[Any, Tensor, Tensor]:
        """One forward that also finds the layer."""
        names: dict[nn.Module, str] = {
            m: name for name, m in self.net.named_modules() if name and isinstance(m, (nn.Linear, _ConvNd))
        }
        calls: list[_Call] = []

        def record(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            entered = _Entered.of(args, kwargs)
            calls.append(_Call(names[module], module, entered, output, output.grad_fn, _version(output)))

        with _removed_after([module.register_forward_hook(record, with_kwargs=True) for module in names]):
            output = self.net(*args, **kwargs)
        logits = _select_logits(output, self.logits)
        source = _source(logits, calls)
        if source is None:
            raise ValueError(_not_found(self.net, logits, calls))
        _check_not_compiled(self.net, source.name)
        entered = _only(source.name, [call.entered for call in calls if call.name == source.name])
        self.layer = source.name
        return output, logits, entered

    def _arrange(self, entered: Tensor, logits: Tensor) -> Tensor:
        """``(B, D, *S)`` of what entered the layer."""
        is_linear = isinstance(self.net.get_submodule(str(self.layer)), nn.Linear)
        if callable(self.layout):
            features = self.layout(entered)
            check_floating("layout", features)
        elif self.layout == "channels_last":
            features = entered.movedim(-1, 1)
        elif self.layout == "tokens":
            features = _tokens_to_grid(entered, logits)
        elif self.layout is None and is_linear:
            raise ValueError(
                f"layout: got None, but layer {self.layer!r} is a Linear, which takes features last: "
                f"{describe(entered)} entered it, for logits {describe(logits)}; say 'channels_last' (B, *S, D), "
                "'tokens' (B, N, D), or pass a function that makes (B, D, *S) of it"
            )
        else:
            features = entered
        if features.ndim != logits.ndim or len(features) != len(logits):
            raise ValueError(
                f"layer: {describe(entered)} entered {self.layer!r}, features {tuple(features.shape)} with "
                f"layout={self.layout!r}, expected ({len(logits)}, D, *S) with {logits.ndim - 2} spatial axes to go "
                f"with logits {tuple(logits.shape)}; name another layer or layout, or say which output is the logits"
            )
        return features


class _StandIn(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.entered: list[_Entered] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.entered.append(_Entered((*args, *kwargs.values())[0], None))
        return self.layer(*args, **kwargs)


class _Entered(NamedTuple):
    """The first argument of a layer, and how often it had been changed in place by then."""

    value: Any
    version: int | None

    @classmethod
    def of(cls, args: Any, kwargs: Any) -> _Entered:
        value = next(iter((*args, *kwargs.values())), None)
        return cls(value, _version(value))


class _Call(NamedTuple):
    """One call of a convolution or linear layer."""

    name: str
    module: nn.Module
    entered: _Entered
    output: Tensor
    node: Any  # of the autograd graph
    version: int | None


@contextmanager
def _removed_after(handles: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _version(value: Any) -> int | None:
    """How often a tensor has been changed in place; None where torch does not count."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def _source(logits: Tensor, calls: list[_Call]) -> _Call | None:
    """The call whose output the logits are."""
    by_node: dict[Any, _Call] = {call.node: call for call in calls if call.node is not None}
    node: Any = logits.grad_fn
    while node is not None and node not in by_node and _PASSED_ON.fullmatch(node.name()):
        node = next((before for before, _ in node.next_functions if before is not None), None)
    if node in by_node:
        return by_node[node]
    # Without a graph: the same memory, unchanged since.
    memory = logits.untyped_storage().data_ptr()
    unchanged = [call for call in calls if call.version is not None and call.version == call.output._version]
    return next((call for call in unchanged if call.output.untyped_storage().data_ptr() == memory), None)


def _not_found(net: nn.Module, logits: Tensor, calls: list[_Call]) -> str:
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


def _only(name: str, entered: list[_Entered]) -> Tensor:
    """What entered the layer in the only call of it."""
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


def _check_name(net: nn.Module, name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"layer: got {type(name).__name__}, expected the name of a layer, as in net.named_modules()")
    names = [path for path, _ in net.named_modules(remove_duplicate=False) if path]
    if name not in names:
        close = get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see net.named_modules()"
        raise ValueError(f"layer: got {name!r}, which is not in {type(net).__name__}; {hint}")


def _check_not_compiled(net: nn.Module, name: str) -> None:
    """Refuse a layer within compiled code, which does not run hooks set after it was compiled."""
    parts = name.split(".")
    for depth in range(len(parts) + 1):
        module = net.get_submodule(".".join(parts[:depth]))
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"net: got a {type(module).__name__} that is compiled and holds layer {name!r}, expected a plain "
                "module; compile the tap instead, torch.compile(FeatureTap(net))"
            )


def _tokens_to_grid(tokens: Tensor, logits: Tensor) -> Tensor:
    """``(B, N, D)`` to ``(B, D, *S)``: the N patches with equal sides that the logits' pixels divide into."""
    sides = tuple(logits.shape[2:])
    if tokens.ndim == 3:
        for patch in range(1, min(sides) + 1):
            grid = [side // patch for side in sides]
            if all(side % patch == 0 for side in sides) and math.prod(grid) == tokens.shape[1]:
                return tokens.movedim(-1, 1).reshape(len(tokens), -1, *grid)
    raise ValueError(
        f"layout: got 'tokens', but into the layer came {describe(tokens)}, expected (B, N, D) with one token for each "
        f"pixel or square patch of logits {tuple(logits.shape)}; if there is a class token, pass a function that drops "
        "it"
    )


def _select_logits(output: Any, selector: int | str | Callable[[Any], Tensor] | None) -> Tensor:
    logits: Tensor
    if selector is None:
        logits = _default_logits(output)
    elif callable(selector):
        logits = selector(output)
    else:
        try:
            by_attribute = isinstance(selector, str) and not isinstance(output, Mapping)
            logits = getattr(output, str(selector)) if by_attribute else output[selector]
        except (AttributeError, LookupError, TypeError):
            raise ValueError(f"logits: got {selector!r}, but the network returned {_parts(output)}") from None
    check_floating("logits", logits)
    return logits


def _default_logits(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        part = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(part, Tensor):
            return part
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(parts, (list, tuple)) and all(isinstance(part, Tensor) and part.ndim >= 2 for part in parts):
        sizes = [part[0, 0].numel() for part in parts]
        alike = len({(part.ndim, *part.shape[:2]) for part in parts}) == 1
        if len(parts) == 1 or (alike and not isinstance(output, Mapping) and sizes.count(max(sizes)) == 1):
            return parts[sizes.index(max(sizes))]
    raise ValueError(
        f"logits: cannot tell which part of the network's output they are, {_parts(output)}; say which, "
        "FeatureTap(net, logits=...), with an index, a key or a function"
    )


def _parts(output: Any) -> str:
    def part(value: Any) -> str:
        return describe(value) if isinstance(value, Tensor) else type(value).__name__

    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of " + ", ".join(f"{key!r}: {part(value)}" for key, value in output.items())
    if isinstance(output, (list, tuple)):
        return f"a {type(output).__name__} of " + ", ".join(f"[{i}]: {part(value)}" for i, value in enumerate(output))
    return f"a {type(output).__name__}"
