"""Dense features of a frozen network: for references in a space that the trained network has no part in."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from .checks import as_sides, check_bool, check_finite, check_floating, check_int, check_same_device
from .encoding import as_numbers, fingerprint_of, first_tensor, outputs_of, prepared
from .layer_search import check_layer_name, check_not_compiled, check_plain_module
from .maps import places, resize, tokens_to_map

Layout = Callable[[Tensor], Tensor] | Literal["tokens"] | None


class FrozenFeatures(nn.Module):
    r"""Make dense features ``(B, D, *size)`` of any pretrained network, which stays as it is.

        features = FrozenFeatures(encoder, ["layer1", "layer3"], size=64)
        loss = criterion(logits_u, features(images_u), features(images), labels, logits)

    The outputs of the named layers are brought to one grid, averaged where they are finer (so that no pixel is passed
    over) and interpolated linearly where they are coarser; scaled to unit length at every pixel, so that each layer has
    one vote in a cosine; and concatenated.  With ``positions`` the pixel's place is a further part, of that length.

    The encoder is a copy, ``features.encoder``, always in evaluation mode, without gradients, and outside autocast,
    so that features are the same everywhere: for speed pass an encoder in half precision.  It is no submodule: it
    follows the host's ``.to(device)`` and copies, and optimizers, ``.train()``, ``.apply()``, ``state_dict`` and
    DistributedDataParallel do not see it.  What ``state_dict`` holds is a fingerprint of the weights
    (``_extra_state``).  After the first call a forward ends with the last layer that is needed.  Compiled code calls
    it as it is, with a break in the graph; for ``fullgraph=True`` make features outside.

    Args:
        encoder: any network that takes images ``(B, C, *S)`` as its only argument, on any number of spatial axes.
        layers: names of layers that run once in a forward, as in ``encoder.named_modules()``.  Of an output with
            several parts (a tuple, list or dict) the first tensor is taken.
        size: sides of the grid, one int or one per spatial axis.  As ``map_size`` of :class:`RPGLoss`, or finer.
        positions: length of the place's part, beside 1 for each layer; 0: none.  Along each axis the place is an angle,
            from 0 at one border to half a turn at the other: the cosine of two places falls with their distance.
        layout: function that makes ``(B, D, *S)`` of outputs in another layout, as in :class:`FeatureTap`; or
            ``"tokens"``, for ``(B, N, D)`` of a vision transformer: row-major, of the patches that its first
            convolution cuts (where that overlaps, or there is none: of equal sides), behind up to five tokens of the
            whole image, which are left out.  None: they are ``(B, D, *S)`` already.
        in_channels: channels that the encoder takes.  One-channel images are repeated to so many.  None: those of the
            first convolution; any if there is none.
        mean: subtracted from images before they enter, one number or one per channel; of the data that the encoder was
            trained on, for images scaled as those were.
        std: what they are divided by then.
        check_values: look for NaN and infinities in images; on a GPU each look waits for the device.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a layer that is not in the encoder, an argument out of range, an encoder that is compiled; when
            called: images that do not fit, a layer that runs never or more than once, an output that is no map.
            ``load_state_dict``: the checkpoint was written with other weights in the encoder.

    Example:
        >>> encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, 2))
        >>> features = FrozenFeatures(encoder, ["1", "2"], size=16, positions=0.5)
        >>> features(torch.randn(2, 1, 64, 64)).shape
        torch.Size([2, 28, 16, 16])
        >>> list(features.parameters()), list(features.state_dict())
        ([], ['_extra_state'])
    """

    encoder: nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        layers: str | Sequence[str],
        *,
        size: int | tuple[int, ...],
        positions: float = 0.0,
        layout: Layout = None,
        in_channels: int | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        check_values: bool = True,
    ) -> None:
        super().__init__()
        check_plain_module("encoder", encoder)
        if any(map(is_lazy, encoder.parameters())):
            raise ValueError("encoder: got a network with lazy layers, expected all weights; call it on images once")
        # What is no name, either, is refused by the check below.
        self.layers: tuple[str, ...] = (
            (layers,) if isinstance(layers, str) or not isinstance(layers, Iterable) else tuple(layers)
        )
        for name in self.layers:
            check_layer_name("layers", encoder, name)
            check_not_compiled("encoder", encoder, name, "compile what calls FrozenFeatures instead")
        if not self.layers or len({encoder.get_submodule(name) for name in self.layers}) < len(self.layers):
            raise ValueError(f"layers: got {self.layers}, expected one layer or more, each once")
        self.size = as_sides("size", size)
        if not (isinstance(positions, (int, float)) and 0 <= positions < math.inf):
            raise ValueError(f"positions: got {positions!r}, expected a length of 0 or more")
        if not (layout is None or layout == "tokens" or callable(layout)):
            raise TypeError(
                f"layout: got {layout!r}, expected 'tokens', None, or a function that makes (B, D, *S) of an output"
            )
        self.positions = float(positions)
        self.layout = layout
        convolutions = [module for module in encoder.modules() if isinstance(module, _ConvNd)]
        self.in_channels = convolutions[0].in_channels if in_channels is None and convolutions else in_channels
        # What makes tokens of patches: a convolution that looks at every pixel once.
        self._patch = next(
            (m.stride for m in convolutions[:1] if m.kernel_size == m.stride and max(m.stride) > 1), None
        )
        if self.in_channels is not None:
            check_int("in_channels", self.in_channels)
            if self.in_channels < 1:
                raise ValueError(f"in_channels: got {in_channels!r}, expected 1 or more, or None")
        self.mean, self.std = as_numbers("mean", mean), as_numbers("std", std)
        if 0 in self.std:
            raise ValueError(f"std: got {std!r}, expected no zeros")
        check_bool("check_values", check_values)
        self.check_values = check_values
        self._stops = False
        self._fingerprint = fingerprint_of(encoder)
        # A copy, because the original may go on being trained; and no assignment, which would make it a submodule.
        object.__setattr__(self, "encoder", _copied(encoder).requires_grad_(False))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the encoder along with the host."""
        self.encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def get_extra_state(self) -> Tensor:
        """Return the fingerprint for ``state_dict``, as bytes in a tensor, which every format of checkpoints takes."""
        return torch.tensor(list(self._fingerprint), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Compare the fingerprint of a checkpoint, and raise ValueError where it is another."""
        saved = bytes(state.tolist())
        if saved != self._fingerprint:
            raise ValueError(
                f"_extra_state: got fingerprint {saved.hex()[:8]}, expected {self._fingerprint.hex()[:8]}: the encoder "
                f"({type(self.encoder).__name__}) has other weights than when the checkpoint was written, so that its "
                "features are others; load the weights it had, or delete this key of the checkpoint to go on with these"
            )

    def extra_repr(self) -> str:
        return f"{type(self.encoder).__name__}, {self.layers}, size={self.size}, positions={self.positions:g}"

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images.

        Args:
            images: ``(B, C, *S)`` floating point, scaled as the encoder expects it or as ``mean`` and ``std`` do.

        Returns:
            ``(B, D, *size)`` float32 without gradient: every layer's part of unit length (0 where its output is 0),
            in the order of ``layers``, and the place's part of length ``positions``.

        Raises:
            TypeError, ValueError: see :class:`FrozenFeatures`.
        """
        if torch.compiler.is_compiling():
            # Not a decorator, which would load the compiler with this module.
            features: Tensor = torch.compiler.disable(self._make)(images)
            return features
        return self._make(images)

    @torch.no_grad()
    def _make(self, images: Tensor) -> Tensor:
        size = self._check(images)
        self.encoder.eval()
        make = partial(self._part, images=images, size=size)
        with torch.autocast(images.device.type, enabled=False):
            entering = prepared(self.encoder, images, self.in_channels, self.mean, self.std)
            parts = outputs_of(self.encoder, self.layers, entering, make, stop=self._stops)
        self._stops = True  # every layer ran once: from now on it is enough to have seen them
        if self.positions:
            place = self.positions * places(size, images.device)
            parts.append(place.expand(len(images), *place.shape))
        return torch.cat(parts, dim=1)

    def _check(self, images: Tensor) -> tuple[int, ...]:
        """Check the images, and return the grid's size."""
        check_floating("images", images)
        channels, takes = images.shape[1:2], self.in_channels
        if images.ndim < 3 or images.numel() == 0 or (takes and channels[0] not in (1, takes)):
            wanted = f"(B, {takes}, *S), or (B, 1, *S) to be repeated" if takes else "(B, C, *S)"
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, expected non-empty {wanted}; if the encoder takes another "
                "number of channels than its first convolution, say in_channels"
            )
        check_same_device(images=images, encoder=next(self.encoder.parameters(), None))
        if self.check_values:
            check_finite(images=images)
        size = self.size * (images.ndim - 2) if len(self.size) == 1 else self.size
        if len(size) != images.ndim - 2:
            raise ValueError(
                f"size: got {self.size} for images with {images.ndim - 2} spatial axes {tuple(images.shape)}, expected "
                "one int, or one per axis"
            )
        return size

    def _part(self, name: str, output: Any, *, images: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return what a layer gave on the grid, at unit length."""
        maps = first_tensor(output)
        check_floating(f"layers: the output of {name!r}", maps)
        shape = tuple(maps.shape)
        if callable(self.layout):
            maps = self.layout(maps)
            check_floating("layout", maps)
        elif self.layout == "tokens" and maps.ndim == 3:
            maps = tokens_to_map(maps, tuple(images.shape[2:]), self._patch)
        if maps.ndim != images.ndim or len(maps) != len(images):
            raise ValueError(
                f"layers: {name!r} gave {shape}, which makes features {tuple(maps.shape)}, expected ({len(images)}, D, "
                f"*S) with {images.ndim - 2} spatial axes; name another layer, or pass layout='tokens' for (B, N, D), "
                "or a function that makes (B, D, *S) of what it gives"
            )
        return F.normalize(resize(maps.float(), size), dim=1)


def _copied(encoder: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(encoder)
    except RuntimeError as error:
        raise ValueError(
            f"encoder: got a {type(encoder).__name__} that cannot be copied ({error}), expected one that copy.deepcopy "
            "takes; old weight and spectral norms hold tensors of a graph: take them out with torch.nn.utils."
            "remove_weight_norm or remove_spectral_norm, or use those in torch.nn.utils.parametrizations"
        ) from error
