"""The RPG loss (Eq. 8): weighted cross-entropy against reference-guided pseudo-labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .checks import as_sides, check_bool, check_floating, check_inputs, check_labels, upcast_unsigned
from .cross_entropy import mean_cross_entropy
from .maps import subsample
from .matching import Impl
from .options import WAITS, Options
from .pseudo_labels import PseudoLabels, label_queries
from .union import GroupModule, raise_on_all_ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MapSize = int | tuple[int, ...] | Literal["auto"] | None

AUTO_PIXELS = 64**2
"""Pixels of a map of the default size: the paper's 64 x 64."""


class RPGLoss(GroupModule):
    r"""Reference-guided pseudo-label loss (Eq. 8), for any network that gives logits and features.

    .. math::
        L = \text{mean}(\text{CE}(\text{logits}_\text{ref}, y_\text{ref}))
            + \text{mean}(W \cdot \text{CE}(\text{logits}_u, l(\text{feat}_u)))

    Logits, features and labels are sub-sampled to a map of ``map_size`` with nearest neighbors, every query is
    given the label of its nearest reference and a weight (:func:`rpg_pseudo_labels`), and the weighted
    cross-entropy is taken there.  Whether it is multi-class or binary per label follows from ``y_ref``.
    Labels and weights carry no gradient; the module has no parameters and no state.

    Args:
        k: number of nearest references that count for the weight: an int (the paper: 7000), or a float in (0, 1], a
            share of the reference set (the paper's best: 0.5, Table 3).
        map_size: side of the map, one int or one per spatial axis; ``"auto"``: as many pixels as the paper's 64 x 64,
            so that time and memory do not grow with the axes: 64 in 2-D, 16 in 3-D, 4096 in 1-D.  None: no
            sub-sampling.  An axis that is already shorter is left as it is.
        weighted: False sets every weight to 1 (the paper's nearest-neighbor baseline).
        ignore_index: value of ``y_ref`` at pixels that are neither references nor supervised.
        impl: see :func:`rpg_pseudo_labels`.
        group: processes whose pools together are the reference set, see :func:`rpg_pseudo_labels`, and whose pixels
            together the means are taken over, see :func:`segmentation_cross_entropy`: with a share of the images on
            each process, the mean over processes is the loss of one process with all.
        check_values: look for NaN, infinities and labels out of range; on a GPU each look waits for the device.

    Raises:
        TypeError: ``k`` is not a number, ``map_size`` is not made of ints, a flag is not a bool.
        ValueError: an argument out of range.

    Example:
        >>> criterion = RPGLoss(k=0.5, map_size=16)
        >>> logits_u, feat_u = torch.randn(2, 3, 32, 32, requires_grad=True), torch.randn(2, 8, 32, 32)
        >>> feat_ref, y_ref = torch.randn(3, 8, 32, 32), torch.randint(3, (3, 32, 32))
        >>> criterion(logits_u, feat_u, feat_ref, y_ref).backward()
    """

    def __init__(
        self,
        k: int | float = 0.5,
        *,
        map_size: MapSize = "auto",
        weighted: bool = True,
        ignore_index: int = -100,
        impl: Impl = "auto",
        group: ProcessGroup | None = None,
        check_values: bool = True,
    ) -> None:
        super().__init__()
        self.options = Options(k, ignore_index, impl, check_values)
        if map_size not in ("auto", None):
            sides = as_sides("map_size", map_size, ' (or "auto", or None for no sub-sampling)')
            map_size = sides if isinstance(map_size, tuple) else sides[0]
        check_bool("weighted", weighted)
        self.map_size = map_size
        self.weighted = weighted
        self.group = group

    def extra_repr(self) -> str:
        shown = {**vars(self.options), "map_size": self.map_size, "weighted": self.weighted}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    @torch.no_grad()
    def pseudo_labels(
        self, feat_u: Tensor, feat_ref: Tensor, y_ref: Tensor, *, valid_u: Tensor | None = None
    ) -> PseudoLabels:
        """Return the pseudo-labels on the map, without a loss: for pictures, logs, or a loss of your own.

        Args:
            feat_u: ``(B, D, *S)`` floating point.
            feat_ref: ``(P, D, *R)``.
            y_ref: ``(P, *R')`` integers or ``(P, C, *R')`` 0/1; R' may be a finer grid than R.
            valid_u: ``(B, *S')`` bool, False where a query is to be ignored; S' may be a finer grid than S.

        Returns:
            :class:`PseudoLabels` on the map: every axis ``min(map_size, size)``.

        Raises:
            TypeError, ValueError: as :func:`rpg_pseudo_labels` does.
        """
        with raise_on_all_ranks(self.group):
            check_inputs(feat_u, feat_ref, y_ref, valid_u, maps=True)
            grid_u, grid_ref = self._grid(feat_u, valid_u), self._grid(feat_ref, y_ref)
        return self._on_map(feat_u, feat_ref, upcast_unsigned(y_ref), valid_u, grid_u, grid_ref, {})

    def forward(
        self,
        logits_u: Tensor,
        feat_u: Tensor,
        feat_ref: Tensor,
        y_ref: Tensor,
        logits_ref: Tensor | None = None,
        *,
        valid_u: Tensor | None = None,
        return_pseudo_labels: bool = False,
    ) -> Tensor | tuple[Tensor, PseudoLabels]:
        """Return the loss of one step.

        Args:
            logits_u: ``(B, C, *S)`` of the unlabeled images, floating point.
            feat_u: their features, ``(B, D, *S')``; S' may differ from S.
            feat_ref: features of the reference pool, ``(P, D, *R')``.
            y_ref: labels of the pool: ``(P, *R)`` integers in [0, C), or ``(P, C, *R)`` 0/1.
            logits_ref: ``(P, C, *R)`` of the pool: adds the supervised term of Eq. 8.
            valid_u: ``(B, *S)`` bool, False where a pixel is to be ignored (padding, uncovered by a rotation).
            return_pseudo_labels: also return what the loss was taken against.

        Returns:
            The loss, a scalar; with ``return_pseudo_labels`` the pair of it and :class:`PseudoLabels` on the map.

        Raises:
            TypeError, ValueError: as :func:`rpg_pseudo_labels` does, and for logits that do not go with the features
                or labels.
        """
        with raise_on_all_ranks(self.group):
            check_floating("logits_u", logits_u)
            check_inputs(feat_u, feat_ref, y_ref, valid_u, logits_u, logits_ref, maps=True)
            grid_u, grid_ref = self._grid(feat_u, logits_u), self._grid(feat_ref, y_ref)
            y_ref = upcast_unsigned(y_ref)
            # At full size: the supervised term sees pixels that the map leaves out.
            if self.options.check_values:
                multilabel = y_ref.ndim == feat_ref.ndim
                y_ref = _checked_labels(y_ref, multilabel, self.options.ignore_index, logits_u.shape[1])
        settings = {"channels of logits_u": logits_u.shape[1], "logits_ref": logits_ref is not None}
        pseudo = self._on_map(feat_u, feat_ref, y_ref, valid_u, grid_u, grid_ref, settings)
        valid = None if valid_u is None else subsample(valid_u, grid_u)
        ignore_index, group = self.options.ignore_index, self.group
        loss = mean_cross_entropy(subsample(logits_u, grid_u), *pseudo, valid, ignore_index, group)
        if logits_ref is not None:
            loss = loss + mean_cross_entropy(logits_ref, y_ref, None, None, ignore_index, group)
        return (loss, pseudo) if return_pseudo_labels else loss

    @torch.no_grad()
    def _on_map(
        self,
        feat_u: Tensor,
        feat_ref: Tensor,
        y_ref: Tensor,
        valid_u: Tensor | None,
        grid_u: tuple[int, ...],
        grid_ref: tuple[int, ...],
        settings: dict[str, Any],
    ) -> PseudoLabels:
        feat_u, feat_ref, y_ref = subsample(feat_u, grid_u), subsample(feat_ref, grid_ref), subsample(y_ref, grid_ref)
        valid_u = None if valid_u is None else subsample(valid_u, grid_u)
        settings = {"map_size": self.map_size, "weighted": self.weighted, **settings}
        labels, weights = label_queries(feat_u, feat_ref, y_ref, valid_u, self.options, self.group, settings)
        if not self.weighted:
            weights = torch.ones_like(weights) if valid_u is None else valid_u.to(weights.dtype)
        return PseudoLabels(labels, weights)

    def _grid(self, features: Tensor, finer: Tensor | None) -> tuple[int, ...]:
        """Return the size of the map: no axis longer than ``map_size`` or than the tensors that it is taken from."""
        sizes = [tensor.shape[2 - features.ndim :] for tensor in (features, finer) if tensor is not None]
        smallest = tuple(min(axis) for axis in zip(*sizes, strict=True))
        if self.map_size is None:
            return smallest
        usual = round(AUTO_PIXELS ** (1 / len(smallest))) if self.map_size == "auto" else self.map_size
        sides = usual if isinstance(usual, tuple) else (usual,) * len(smallest)
        if len(sides) != len(smallest):
            raise ValueError(
                f"map_size: got {self.map_size} for tensors with {len(smallest)} spatial axes {smallest}, expected one "
                "int, or one per axis"
            )
        return tuple(min(side, size) for side, size in zip(sides, smallest, strict=True))


def _checked_labels(y_ref: Tensor, multilabel: bool, ignore_index: int, num_classes: int) -> Tensor:
    """Return ``y_ref``, after :func:`check_labels`."""
    if torch.compiler.is_compiling():
        checked: Tensor = _checked_copy(y_ref, multilabel, ignore_index, num_classes)
        return checked
    check_labels("y_ref", y_ref, multilabel=multilabel, ignore_index=ignore_index, num_classes=num_classes)
    return y_ref


@torch.library.custom_op(
    "rpg_loss::checked_labels",
    mutates_args=(),
    **WAITS,
    schema="(Tensor y_ref, bool multilabel, int ignore_index, int num_classes) -> Tensor",
)
def _checked_copy(y_ref: Tensor, multilabel: bool, ignore_index: int, num_classes: int) -> Tensor:
    # A copy: compilers keep the check, and keep it first, because what follows depends on its result.
    checked = _checked_labels(y_ref, multilabel, ignore_index, num_classes)
    return checked.clone(memory_format=torch.contiguous_format)


@_checked_copy.register_fake
def _(y_ref: Tensor, multilabel: bool, ignore_index: int, num_classes: int) -> Tensor:
    return torch.empty_like(y_ref, memory_format=torch.contiguous_format)
