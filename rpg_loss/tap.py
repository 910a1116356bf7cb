"""Logits and the features under them, from a network that only returns logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .checks import check_floating, describe
from .layer_search import Call, Entered, not_found, only_entry, removed_after, source_of, version_of


class FeatureTap(nn.Module):
    """Return ``(logits, features)`` from any network, without a change to it.

    The features are what enters the network's last layer (f_feat of Eq. 2): the convolution or linear layer whose
    output is the logits, up to a change of size, dtype or layout.  The first call finds it, by looking where the logits
    of that call come from; where no single layer makes them, an error lists the candidates, and ``layer`` names one.

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
        layout: function that makes features ``(B, D, *S)`` of what enters the layer, for layers that take them in
            another layout: ``lambda x: x.movedim(-1, 1)`` of ``(B, *S, D)``, ``lambda x: x.transpose(1, 2).unflatten(2,
            (height, width))`` of the tokens ``(B, N, D)`` of a transformer.  None: it is ``(B, D, *S)`` already, and
            an error if the layer is ``nn.Linear``, which takes its features last.

    Raises:
        TypeError: ``net`` is not a module, ``layer`` is not a string, ``layout`` is not a function.
        ValueError: ``layer`` is not in the network; when called: logits or a layer that must be named, a layer that
            runs never or more than once, features that do not go with the logits, a network that is compiled inside
            the tap.

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
        layout: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"net: got {type(net).__name__}, expected a torch.nn.Module")
        if layer is not None:
            _check_name(net, layer)
        if layout is not None and not callable(layout):
            raise TypeError(
                f"layout: got {layout!r}, expected a function that makes (B, D, *S) of what enters the layer"
            )
        self.net = net
        self.layer = layer
        self.logits = logits
        self.layout = layout
        self.training = net.training

    def extra_repr(self) -> str:
        return f"layer={self.layer!r}, logits={self.logits!r}, layout={self.layout!r}"

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return logits and features of one forward of the network, which takes the arguments.

        Returns:
            Logits ``(B, C, *S)`` and features ``(B, D, *S')``.

        Raises:
            ValueError: see :class:`FeatureTap`.
        """
        if self.layer is None:
            # Not a decorator, which would load the compiler with this module.
            find: Any = self._find_layer
            if torch.compiler.is_compiling():
                find = torch.compiler.disable(find)
            logits, entered = find(args, kwargs)
        else:
            run = self._run_compiled if torch.compiler.is_compiling() else self._run
            output, calls = run(self.layer, args, kwargs)
            logits, entered = _select_logits(output, self.logits), only_entry(self.layer, calls)
        return logits, self._arrange(entered, logits)

    def _run(self, name: str, args: Any, kwargs: Any) -> tuple[Any, list[Entered]]:
        """Return the network's output, and what entered the layer."""
        _check_not_compiled(self.net, name)
        layer = self.net.get_submodule(name)
        entered: list[Entered] = []

        def record(module: nn.Module, args: Any, kwargs: Any) -> None:
            entered.append(Entered.of(args, kwargs))

        with removed_after([layer.register_forward_pre_hook(record, with_kwargs=True)]):
            output = self.net(*args, **kwargs)
        return output, entered

    def _run_compiled(self, name: str, args: Any, kwargs: Any) -> tuple[Any, list[Entered]]:
        """Return the same under a compiler, which does not follow hooks set while it traces.

        For the trace, another module stands in the layer's place.
        """
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

    def _find_layer(self, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        """Find the layer in a forward, and return its logits and what entered the layer."""
        names: dict[nn.Module, str] = {
            m: name for name, m in self.net.named_modules() if name and isinstance(m, (nn.Linear, _ConvNd))
        }
        calls: list[Call] = []

        def record(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            entered = Entered.of(args, kwargs)
            calls.append(Call(names[module], module, entered, output, output.grad_fn, version_of(output)))

        with removed_after([module.register_forward_hook(record, with_kwargs=True) for module in names]):
            output = self.net(*args, **kwargs)
        logits = _select_logits(output, self.logits)
        source = source_of(logits, calls)
        if source is None:
            raise ValueError(not_found(self.net, logits, calls))
        _check_not_compiled(self.net, source.name)
        entered = only_entry(source.name, [call.entered for call in calls if call.name == source.name])
        self.layer = source.name
        return logits, entered

    def _arrange(self, entered: Tensor, logits: Tensor) -> Tensor:
        """Return features ``(B, D, *S)`` of what entered the layer."""
        features = entered
        if self.layout is not None:
            features = self.layout(entered)
            check_floating("layout", features)
        elif isinstance(self.net.get_submodule(str(self.layer)), nn.Linear):
            raise ValueError(
                f"layout: got None, but layer {self.layer!r} is a Linear, which takes features last: "
                f"{describe(entered)} entered it, for logits {describe(logits)}; pass a function that makes (B, D, *S) "
                "of it, as lambda x: x.movedim(-1, 1) does of (B, *S, D)"
            )
        if features.ndim != logits.ndim or len(features) != len(logits):
            raise ValueError(
                f"layer: {describe(entered)} entered {self.layer!r}, which makes features {tuple(features.shape)}, "
                f"expected ({len(logits)}, D, *S) with {logits.ndim - 2} spatial axes to go with logits "
                f"{tuple(logits.shape)}; name another layer, pass another layout, or say which output is the logits"
            )
        return features


class _StandIn(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.entered: list[Entered] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.entered.append(Entered((*args, *kwargs.values())[0], None))
        return self.layer(*args, **kwargs)


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
