"""Logits and the features under them, from a network that only returns logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .checks import check_floating, describe
from .layer_search import (
    Call,
    Entered,
    check_layer_name,
    check_not_compiled,
    check_plain_module,
    check_same_pixels,
    hooked,
    logits_apart,
    look_like_probabilities,
    not_found,
    only_entry,
    record_calls,
    source_of,
)

_COMPILE_THE_TAP = "compile the tap instead, torch.compile(FeatureTap(net))"


class FeatureTap(nn.Module):
    """Return ``(logits, features)`` from any network, without a change to it.

    The features are what enters the network's last layer (f_feat of Eq. 2): the convolution or linear layer whose
    output is the logits, up to a change of size, dtype or layout.  The first call finds it, by looking where the logits
    of that call come from; where no single layer makes them, an error lists the candidates, and ``layer`` names one.

    The network stays what it is: the tap holds it as ``tap.net``, shares its parameters, and leaves no hook behind,
    also when the forward raises.  Copies of a tap (a teacher, ``AveragedModel``) tap the copied network.  Every call
    returns its own features.  They are part of the graph; RPGLoss takes no gradient through them.

    - ``state_dict`` has the network's keys with ``net.`` before them, and the layer's name (``_extra_state``), which a
      tap without a layer takes over; to save the network alone, save ``tap.net``.
    - DistributedDataParallel, DataParallel: wrap the tap, as you would the network.  (Name the layer for DataParallel:
      its replicas forget what they find.)
    - ``torch.compile``: compile the tap, not the network in it.  With ``fullgraph=True`` name the layer, or call the
      tap once before.  That logits are cut out of a larger map, or have its spatial axes in another order, is noticed
      in eager calls with gradients alone.
    - The first call, unless the layer is named: it keeps the inputs and outputs of all convolutions and linear layers
      until it returns.  Compiled, or where logits have no gradient and are not a layer's very output, it runs the
      network once more to find the layer, with gradients, on copies of its buffers and of the random streams.

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
            an error if the layer is ``nn.Linear``, which takes its features last, or they lie over the logits' pixels
            as ``(B, *S, D)`` alone.

    Raises:
        TypeError: ``net`` is no module, or one of TorchScript, ``layer`` is not a string, ``layout`` is not a function.
        ValueError: ``layer`` is not in the network; when called: logits or a layer that must be named, a layer that
            runs never or more than once, features that do not go with the logits, logits that the network cuts out of
            a larger map than the features' or whose spatial axes it moves, a network that is compiled inside the tap.

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
        check_plain_module("net", net)
        if layer is not None:
            check_layer_name("layer", net, layer)
        if layout is not None and not callable(layout):
            raise TypeError(
                f"layout: got {layout!r}, expected a function that makes (B, D, *S) of what enters the layer"
            )
        self.net = net
        self.layer = layer
        self.logits = logits
        self.layout = layout
        self.training = net.training
        self._logits_checked = False

    def get_extra_state(self) -> Tensor:
        """Return the layer's name for ``state_dict``, as bytes in a tensor, which every format of checkpoints takes."""
        return torch.tensor(list((self.layer or "").encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take the layer of a checkpoint, unless one is known or the network has none of that name."""
        name = bytes(state.tolist()).decode()
        if self.layer is None and name in dict(self.net.named_modules(remove_duplicate=False)):
            self.layer = name or None

    def extra_repr(self) -> str:
        return f"layer={self.layer!r}, logits={self.logits!r}, layout={self.layout!r}"

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return logits and features of one forward of the network, which takes the arguments.

        Returns:
            Logits ``(B, C, *S)`` and features ``(B, D, *S')``.

        Warns:
            UserWarning: once, where logits look like probabilities: the losses take what comes before a softmax or
                sigmoid.

        Raises:
            ValueError: see :class:`FeatureTap`.
        """
        compiling = torch.compiler.is_compiling()
        if compiling and self.layer is None:
            # Not a decorator, which would load the compiler with this module.
            torch.compiler.disable(self._find_apart)(args, kwargs)
        if self.layer is None:
            logits, entered = self._find(args, kwargs)
        else:
            run = self._run_compiled if compiling else self._run
            output, calls = run(self.layer, args, kwargs)
            logits, entered = self._select(output), only_entry(self.layer, calls)
        if not compiling and not self._logits_checked:
            self._check_logits(logits)
        features = self._arrange(entered, logits)
        if not compiling:
            check_same_pixels(logits, features, arranged=self.layout is not None)
        return logits, features

    def _run(self, name: str, args: Any, kwargs: Any) -> tuple[Any, list[Entered]]:
        """Return the network's output, and what entered the layer."""
        check_not_compiled("net", self.net, name, _COMPILE_THE_TAP)
        entered: list[Entered] = []

        def record(module: nn.Module, args: Any, kwargs: Any) -> None:
            entered.append(Entered.of(args, kwargs))

        with hooked([self.net.get_submodule(name)], record, before=True):
            return self.net(*args, **kwargs), entered

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

    def _find(self, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        """Find the layer in a forward, and return its logits and what entered the layer."""
        output, calls = record_calls(self.net, lambda: self.net(*args, **kwargs))
        logits = self._select(output)
        if source_of(logits, calls) is None and not logits.requires_grad:
            self._find_apart(args, kwargs)
            name = str(self.layer)
            return logits, only_entry(name, [call.entered for call in calls if call.name == name])
        return logits, self._keep_source(logits, calls)

    def _find_apart(self, args: Any, kwargs: Any) -> None:
        """Find the layer in a forward of its own, with gradients."""
        logits, calls = record_calls(self.net, lambda: logits_apart(self.net, self._select, args, kwargs))
        self._keep_source(logits, calls)

    def _keep_source(self, logits: Tensor, calls: list[Call]) -> Tensor:
        """Keep the layer that made the logits, and return what entered it."""
        source = source_of(logits, calls)
        if source is None:
            raise ValueError(not_found(self.net, logits, calls))
        check_not_compiled("net", self.net, source.name, _COMPILE_THE_TAP)
        entered = only_entry(source.name, [call.entered for call in calls if call.name == source.name])
        self.layer, self._logits_checked = source.name, True
        return entered

    def _check_logits(self, logits: Tensor) -> None:
        """Warn of probabilities, in the first call: on a GPU every look at values waits for the device."""
        self._logits_checked = logits.numel() > 0
        if look_like_probabilities(logits):
            warnings.warn(
                f"logits: all values of {describe(logits)} lie in [0, 1], as after a softmax or sigmoid, which the "
                "losses apply themselves; let the network return what comes before, or say which part of its output "
                "the logits are",
                stacklevel=3,
            )

    def _select(self, output: Any) -> Tensor:
        """Return the logits in the network's output."""
        logits: Tensor
        if self.logits is None:
            logits = _default_logits(output)
        elif callable(self.logits):
            logits = self.logits(output)
        else:
            try:
                by_attribute = isinstance(self.logits, str) and not isinstance(output, Mapping)
                logits = getattr(output, str(self.logits)) if by_attribute else output[self.logits]
            except (AttributeError, LookupError, TypeError):
                raise ValueError(f"logits: got {self.logits!r}, but the network returned {_parts(output)}") from None
        check_floating("logits", logits)
        return logits

    def _arrange(self, entered: Tensor, logits: Tensor) -> Tensor:
        """Return features ``(B, D, *S)`` of what entered the layer."""
        features = entered
        if self.layout is not None:
            features = self.layout(entered)
            check_floating("layout", features)
        elif _takes_features_last(self.net.get_submodule(str(self.layer)), entered, logits):
            raise ValueError(
                f"layout: got None, but layer {self.layer!r} takes features last: {describe(entered)} entered it, for "
                f"logits {describe(logits)}; pass a function that makes (B, D, *S) of it, as "
                "lambda x: x.movedim(-1, 1) does of (B, *S, D)"
            )
        if features.ndim != logits.ndim or len(features) != len(logits):
            raise ValueError(
                f"layer: {describe(entered)} entered {self.layer!r}, which makes features {tuple(features.shape)}, "
                f"expected ({len(logits)}, D, *S) with {logits.ndim - 2} spatial axes to go with logits "
                f"{tuple(logits.shape)}; name another layer, pass another layout, or say which output is the logits"
            )
        return features


def _takes_features_last(layer: nn.Module, entered: Tensor, logits: Tensor) -> bool:
    """Return whether a layer is a Linear, or may stand before one: then ``(B, *S, D)`` alone goes with the logits."""
    if isinstance(layer, (nn.Linear, _ConvNd)) or entered.ndim != logits.ndim:
        return isinstance(layer, nn.Linear)
    return entered.shape[2:] != logits.shape[2:] == entered.shape[1:-1]


class _StandIn(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.entered: list[Entered] = []

    def __getattr__(self, name: str) -> Any:
        # Networks look at their last layer: at its weight's dtype, say.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.entered.append(Entered((*args, *kwargs.values())[0], None))
        return self.layer(*args, **kwargs)


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
