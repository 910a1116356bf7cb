"""The RPG loss (Eq. 8): weighted cross-entropy against reference-guided pseudo-labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import (
    check_bool,
    check_choice,
    check_floating,
    check_labels,
    check_mask,
    check_same_device,
    check_temperature,
    check_tensor,
    describe,
    is_ignored,
    resolve_k,
    upcast_unsigned,
)
from .maps import flatten, subsample
from .matching import IMPLEMENTATIONS, Impl
from .pseudo_labels import ENTROPY_OVER, EntropyOver, PseudoLabels, rpg_pseudo_labels
from .union import mean_over, raise_on_all_ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MapSize = int | tuple[int, ...] | None
NormalizeBy = Literal["entries", "weights"]
_NORMALIZE_BY: tuple[NormalizeBy, ...] = get_args(NormalizeBy)


def segmentation_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    ignore_index: int = -100,
    normalize_by: NormalizeBy = "entries",
    group: ProcessGroup | None = None,
) -> Tensor:
    """Mean of W * CE over all entries that are not ignored; multi-class or binary per label, as ``target`` is.

    By default not divided by the sum of the weights: doubtful pixels weigh less, they do not make others weigh more
    (the expectation in Eq. 8).  Where everything is ignored the loss is 0, with a graph that gives zero gradients.

    Args:
        logits: ``(B, C, *S)`` floating point; half precision is computed in float32.
        target: class map ``(B, *S)`` of integers in [0, C), or label vectors ``(B, C, *S)`` in [0, 1].
        weights: ``(B, *S)``, or ``(B, C, *S)`` for label vectors; all 1 if None.
        valid: bool of one of these two shapes, False where an entry is to be ignored.
        ignore_index: entries of ``target`` with this value are ignored.
        normalize_by: ``"entries"`` divides the sum of W * CE by the number of entries, ``"weights"`` by the sum of
            their weights: a weighted mean, which keeps its scale where most weights are small.  Where all weights are
            0 it is 0, with a live graph.
        group: processes whose entries together the mean is taken over, however many each has: the mean of what they
            return is the loss of one process with all entries, and so are the gradients that DistributedDataParallel
            averages.  Every process of it must call this.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        TypeError: ``logits`` is not floating point, or ``target`` is not a tensor.
        ValueError: shapes that do not fit, or an unknown ``normalize_by``.  (The values of ``target`` are not looked
            at: that would make a GPU wait.)

    Example:
        >>> logits, target, weights = torch.zeros(1, 2, 2), torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.0]])
        >>> segmentation_cross_entropy(logits, target, weights)  # 0.5 log 2 / 2
        tensor(0.1733)
        >>> segmentation_cross_entropy(logits, target, weights, normalize_by="weights")  # 0.5 log 2 / 0.5
        tensor(0.6931)
    """
    check_choice("normalize_by", normalize_by, _NORMALIZE_BY)
    check_floating("logits", logits)
    check_tensor("target", target)
    class_map = (logits.shape[0], *logits.shape[2:])
    multilabel = target.ndim == logits.ndim
    if tuple(target.shape) != (tuple(logits.shape) if multilabel else class_map):
        raise ValueError(
            f"target: got shape {tuple(target.shape)}, expected a class map {class_map} or label vectors "
            f"{tuple(logits.shape)} to go with the logits"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = upcast_unsigned(target)
    used = ~is_ignored(target, ignore_index)
    if multilabel:
        entries = F.binary_cross_entropy_with_logits(
            logits, target.masked_fill(~used, 0).to(logits.dtype), reduction="none"
        )
    else:
        entries = F.cross_entropy(logits, target.long().masked_fill(~used, 0), reduction="none")
    if valid is not None:
        used = used & _per_entry("valid", valid, entries, multilabel=multilabel)
    factor = used.to(entries.dtype)
    if weights is not None:
        factor = factor * _per_entry("weights", weights, entries, multilabel=multilabel).to(entries.dtype)
    total = factor.sum() if normalize_by == "weights" else used.sum()
    if group is not None:
        total = mean_over(group, total)
    return (entries * factor).sum() / total.masked_fill(total == 0, 1)


class RPGLoss(nn.Module):
    r"""Reference-guided pseudo-label loss (Eq. 8), for any network that gives logits and features.

    .. math::
        L = \text{mean}(\text{CE}(\text{logits}_\text{ref}, y_\text{ref}))
            + \text{mean}(W \cdot \text{CE}(\text{logits}_u, l(\text{feat}_u)))

    Logits, features and labels are sub-sampled to a map of ``map_size`` with nearest neighbours, every query is
    given the label of its nearest reference and a weight (:func:`rpg_pseudo_labels`), and the weighted
    cross-entropy is taken there.  Whether it is multi-class or binary per label follows from ``y_ref``.
    Labels and weights carry no gradient; the module has no parameters and no state.

    Args:
        k: number of nearest references that count for the weight: an int (the paper: 7000), or a float in (0, 1], a
            share of the reference set (the paper's best: 0.5, Table 3).
        balanced_k: give rare and frequent label sets the same say in where the k nearest end, see
            :func:`rpg_pseudo_labels`; ``k`` should then be below one over the number of label sets.  Not in the paper.
        entropy_over: ``"sets"`` (the paper), or ``"labels"``: see :func:`rpg_pseudo_labels`.
        temperature: sharpens (below 1) or blurs the proximities before their entropy, see :func:`entropy_weights`.
        map_size: side of the map, one int or one per spatial axis; None: no sub-sampling.  An axis that is already
            shorter is left as it is.  The paper: 64.
        weighted: False sets every weight to 1 (the paper's nearest-neighbour baseline).
        resolution: ``"map"`` takes the loss on the map (the paper), ``"full"`` up-samples labels and weights to
            the logits' size.
        normalize_by: ``"entries"`` takes the mean of W * CE over all pixels (Eq. 8), ``"weights"`` divides by the sum
            of W instead (see :func:`segmentation_cross_entropy`): not in the paper, for data where W is small almost
            everywhere.  Every call divides by its own sum, with ``group`` by that of all processes.
        ignore_index: value of ``y_ref`` at pixels that are neither references nor supervised.
        impl: see :func:`rpg_pseudo_labels`.
        group: processes whose pools together are the reference set, see :func:`rpg_pseudo_labels`, and whose pixels
            together the means are taken over, see :func:`segmentation_cross_entropy`: with a share of the images on
            each process, the mean over processes is the loss of one process with all.
        check_values: look for NaN, infinities and labels out of range; on a GPU each look waits for the device.

    Raises:
        TypeError: ``k`` or ``temperature`` is not a number, ``balanced_k`` not a bool, ``map_size`` is not made of
            ints.
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
        balanced_k: bool = False,
        entropy_over: EntropyOver = "sets",
        temperature: float = 1.0,
        map_size: MapSize = 64,
        weighted: bool = True,
        resolution: Literal["map", "full"] = "map",
        normalize_by: NormalizeBy = "entries",
        ignore_index: int = -100,
        impl: Impl = "auto",
        group: ProcessGroup | None = None,
        check_values: bool = True,
    ) -> None:
        super().__init__()
        resolve_k(k)
        check_bool("balanced_k", balanced_k)
        check_choice("entropy_over", entropy_over, ENTROPY_OVER)
        check_temperature(temperature)
        check_choice("resolution", resolution, ("map", "full"))
        check_choice("normalize_by", normalize_by, _NORMALIZE_BY)
        check_choice("impl", impl, ("auto", *IMPLEMENTATIONS))
        sides = map_size if isinstance(map_size, tuple) else (map_size,) if map_size is not None else ()
        if any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
            raise TypeError(f"map_size: got {map_size!r}, expected an int, a tuple of ints or None")
        if any(side < 1 for side in sides):
            raise ValueError(f"map_size: got {map_size!r}, expected sides of 1 or more (None for no sub-sampling)")
        self.k = k
        self.balanced_k = balanced_k
        self.entropy_over: EntropyOver = entropy_over
        self.temperature = temperature
        self.map_size = map_size
        self.weighted = weighted
        self.resolution = resolution
        self.normalize_by: NormalizeBy = normalize_by
        self.ignore_index = ignore_index
        self.impl: Impl = impl
        self.group = group
        self.check_values = check_values

    def extra_repr(self) -> str:
        return (
            f"k={self.k}, balanced_k={self.balanced_k}, entropy_over={self.entropy_over!r}, "
            f"temperature={self.temperature}, map_size={self.map_size}, weighted={self.weighted}, "
            f"resolution={self.resolution!r}, normalize_by={self.normalize_by!r}, ignore_index={self.ignore_index}, "
            f"impl={self.impl!r}, check_values={self.check_values}"
        )

    @torch.no_grad()
    def pseudo_labels(
        self,
        feat_u: Tensor,
        feat_ref: Tensor,
        y_ref: Tensor,
        *,
        extra_ref: tuple[Tensor, Tensor] | None = None,
        valid_u: Tensor | None = None,
    ) -> PseudoLabels:
        """Pseudo-labels on the map, without a loss: for pictures, logs, or a loss of your own.

        Args:
            feat_u: ``(B, D, *S)`` floating point.
            feat_ref: ``(P, D, *R)``.
            y_ref: ``(P, *R')`` integers or ``(P, C, *R')`` 0/1; R' may be a finer grid than R.
            extra_ref: further references, as in a call.
            valid_u: ``(B, *S')`` bool, False where a query is to be ignored; S' may be a finer grid than S.

        Returns:
            :class:`PseudoLabels` on the map: every axis ``min(map_size, size)``.

        Raises:
            TypeError, ValueError: as :func:`rpg_pseudo_labels` does.
        """
        with raise_on_all_ranks(self.group):
            for name, tensor in (("feat_u", feat_u), ("feat_ref", feat_ref)):
                check_floating(name, tensor)
                if tensor.ndim < 3:
                    raise ValueError(
                        f"{name}: got shape {tuple(tensor.shape)}, expected (images, D, *spatial); for flat pixels "
                        "call rpg_pseudo_labels"
                    )
            check_tensor("y_ref", y_ref)
            y_ref = upcast_unsigned(y_ref)
            grid_u = self._grid(feat_u.shape[2:])
            if valid_u is not None:
                check_tensor("valid_u", valid_u)
                if valid_u.ndim != feat_u.ndim - 1:
                    raise ValueError(
                        f"valid_u: got shape {tuple(valid_u.shape)}, expected ({len(feat_u)}, *spatial) with "
                        f"{feat_u.ndim - 2} spatial axes to go with feat_u {tuple(feat_u.shape)}"
                    )
                grid_u = self._grid(feat_u.shape[2:], valid_u.shape[1:])
            _check_extra(extra_ref, feat_ref, y_ref)
        return self._pseudo_labels(feat_u, feat_ref, y_ref, extra_ref, valid_u, grid_u)

    def _pseudo_labels(
        self,
        feat_u: Tensor,
        feat_ref: Tensor,
        y_ref: Tensor,
        extra_ref: tuple[Tensor, Tensor] | None,
        valid_u: Tensor | None,
        grid_u: tuple[int, ...],
    ) -> PseudoLabels:
        spatial = feat_ref.ndim - 2
        with raise_on_all_ranks(self.group):
            if y_ref.ndim not in (feat_ref.ndim, feat_ref.ndim - 1):
                raise ValueError(
                    f"y_ref: got shape {tuple(y_ref.shape)}, expected (P, *R) class indices or (P, C, *R) 0/1 with "
                    f"{spatial} spatial axes to go with feat_ref {tuple(feat_ref.shape)}"
                )
            grid_ref = self._grid(feat_ref.shape[2:], y_ref.shape[-spatial:])
            feat_ref, y_ref = subsample(feat_ref, grid_ref), subsample(y_ref, grid_ref)
            label_dtype = y_ref.dtype
            if extra_ref is not None:
                feat_ref, y_ref = _joined(feat_ref, y_ref, extra_ref)
        labels, weights = rpg_pseudo_labels(
            subsample(feat_u, grid_u),
            feat_ref,
            y_ref,
            self.k,
            balanced_k=self.balanced_k,
            entropy_over=self.entropy_over,
            temperature=self.temperature,
            valid_u=None if valid_u is None else subsample(valid_u, grid_u),
            ignore_index=self.ignore_index,
            impl=self.impl,
            group=self.group,
            check_values=self.check_values,
        )
        if not self.weighted:
            weights = torch.ones_like(weights)
            if valid_u is not None:
                weights.masked_fill_(~subsample(valid_u, grid_u), 0)
        return PseudoLabels(labels.to(label_dtype) if labels.ndim > weights.ndim else labels, weights)

    @overload
    def forward(
        self,
        logits_u: Tensor,
        feat_u: Tensor,
        feat_ref: Tensor,
        y_ref: Tensor,
        logits_ref: Tensor | None = None,
        *,
        extra_ref: tuple[Tensor, Tensor] | None = None,
        valid_u: Tensor | None = None,
        return_pseudo_labels: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        logits_u: Tensor,
        feat_u: Tensor,
        feat_ref: Tensor,
        y_ref: Tensor,
        logits_ref: Tensor | None = None,
        *,
        extra_ref: tuple[Tensor, Tensor] | None = None,
        valid_u: Tensor | None = None,
        return_pseudo_labels: Literal[True],
    ) -> tuple[Tensor, PseudoLabels]: ...

    def forward(
        self,
        logits_u: Tensor,
        feat_u: Tensor,
        feat_ref: Tensor,
        y_ref: Tensor,
        logits_ref: Tensor | None = None,
        *,
        extra_ref: tuple[Tensor, Tensor] | None = None,
        valid_u: Tensor | None = None,
        return_pseudo_labels: bool = False,
    ) -> Tensor | tuple[Tensor, PseudoLabels]:
        """Loss of one step.

        Args:
            logits_u: ``(B, C, *S)`` of the unlabelled images, floating point.
            feat_u: their features, ``(B, D, *S')``; S' may differ from S.
            feat_ref: features of the reference pool, ``(P, D, *R')``.
            y_ref: labels of the pool: ``(P, *R)`` integers in [0, C), or ``(P, C, *R)`` 0/1.
            logits_ref: ``(P, C, *R)`` of the pool: adds the supervised term of Eq. 8.
            extra_ref: further references as flat pixels, features ``(N, D)`` and labels ``(N,)`` or ``(N, C)`` as in
                ``y_ref``, for instance those of past pools (:meth:`ReferenceBank.references`).  They come after the
                pool's, which win ties, and ``k`` counts in all.  They are neither sub-sampled nor supervised.
            valid_u: ``(B, *S)`` bool, False where a pixel is to be ignored (padding, uncovered by a rotation).
            return_pseudo_labels: also return what the loss was taken against.

        Returns:
            The loss, a scalar; with ``return_pseudo_labels`` the pair of it and :class:`PseudoLabels`, on the map or,
            with ``resolution="full"``, at the logits' size.

        Raises:
            TypeError, ValueError: as :func:`rpg_pseudo_labels` does, and for logits that do not go with the features
                or labels.
        """
        check_tensor("y_ref", y_ref)
        y_ref = upcast_unsigned(y_ref)
        with raise_on_all_ranks(self.group):
            self._check(logits_u, feat_u, feat_ref, y_ref, logits_ref, valid_u)
            _check_extra(extra_ref, feat_ref, y_ref)
            # At full size: the supervised term sees pixels that the map leaves out.
            if self.check_values:
                multilabel, num_classes = y_ref.ndim == feat_ref.ndim, logits_u.shape[1]
                y_ref = _checked_labels(y_ref, multilabel, self.ignore_index, num_classes)
                if extra_ref is not None:
                    labels = _checked_labels(extra_ref[1], multilabel, self.ignore_index, num_classes, "extra_ref[1]")
                    extra_ref = extra_ref[0], labels
        grid_u = self._grid(feat_u.shape[2:], logits_u.shape[2:])
        pseudo = self._pseudo_labels(feat_u, feat_ref, y_ref, extra_ref, valid_u, grid_u)
        if self.resolution == "full":
            grid_u = tuple(logits_u.shape[2:])
            pseudo = PseudoLabels(subsample(pseudo.labels, grid_u), subsample(pseudo.weights, grid_u))
        loss = segmentation_cross_entropy(
            subsample(logits_u, grid_u),
            pseudo.labels,
            pseudo.weights,
            valid=None if valid_u is None else subsample(valid_u, grid_u),
            ignore_index=self.ignore_index,
            normalize_by=self.normalize_by,
            group=self.group,
        )
        if logits_ref is not None:
            loss = loss + segmentation_cross_entropy(
                logits_ref, y_ref, ignore_index=self.ignore_index, group=self.group
            )
        return (loss, pseudo) if return_pseudo_labels else loss

    def _grid(self, *sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the map: no axis longer than ``map_size`` or than the coarsest tensor that it is taken from."""
        smallest = tuple(min(axis) for axis in zip(*sizes, strict=True))
        if self.map_size is None:
            return smallest
        sides = self.map_size if isinstance(self.map_size, tuple) else (self.map_size,) * len(smallest)
        if len(sides) != len(smallest):
            raise ValueError(
                f"map_size: got {self.map_size} for tensors with {len(smallest)} spatial axes {smallest}, expected one "
                "int, or one per axis"
            )
        return tuple(min(side, size) for side, size in zip(sides, smallest, strict=True))

    def _check(
        self,
        logits_u: Tensor,
        feat_u: Tensor,
        feat_ref: Tensor,
        y_ref: Tensor,
        logits_ref: Tensor | None,
        valid_u: Tensor | None,
    ) -> None:
        for name, tensor in (("logits_u", logits_u), ("feat_u", feat_u), ("feat_ref", feat_ref)):
            check_floating(name, tensor)
            if tensor.ndim < 3 or tensor.numel() == 0:
                raise ValueError(
                    f"{name}: got shape {tuple(tensor.shape)}, expected a non-empty (images, channels, *spatial)"
                )
        if feat_u.ndim != logits_u.ndim or len(feat_u) != len(logits_u):
            raise ValueError(
                f"feat_u: got shape {tuple(feat_u.shape)}, expected ({len(logits_u)}, D, *spatial) with "
                f"{logits_u.ndim - 2} spatial axes to go with logits_u {tuple(logits_u.shape)}"
            )
        num_classes = logits_u.shape[1]
        multilabel = y_ref.ndim == feat_ref.ndim
        if multilabel and y_ref.shape[1] != num_classes:
            raise ValueError(
                f"y_ref: got {y_ref.shape[1]} labels (axis 1 of {tuple(y_ref.shape)}), expected one per channel of "
                f"logits_u {tuple(logits_u.shape)}"
            )
        if not multilabel and num_classes == 1:
            raise ValueError(
                f"logits_u: got one channel {tuple(logits_u.shape)} and y_ref as a class map {tuple(y_ref.shape)}; for "
                "one binary label pass y_ref as (P, 1, *R) 0/1, for classes give logits one channel per class"
            )
        if logits_ref is not None:
            check_floating("logits_ref", logits_ref)
            expected = (len(y_ref), num_classes, *y_ref.shape[-(feat_ref.ndim - 2) :])
            if tuple(logits_ref.shape) != expected:
                raise ValueError(
                    f"logits_ref: got shape {tuple(logits_ref.shape)}, expected {expected} to go with y_ref "
                    f"{tuple(y_ref.shape)} and the {num_classes} channels of logits_u"
                )
        check_mask("valid_u", valid_u, (len(logits_u), *logits_u.shape[2:]), "logits_u")
        check_same_device(logits_u=logits_u, feat_u=feat_u, feat_ref=feat_ref, y_ref=y_ref, logits_ref=logits_ref)


def _joined(feat_ref: Tensor, y_ref: Tensor, extra_ref: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The pool and further references as flat pixels, the pool first."""
    features, labels = extra_ref
    if y_ref.ndim == feat_ref.ndim:
        together = [flatten(y_ref), upcast_unsigned(labels)]
    else:  # a narrower dtype could not hold the others' classes
        together = [y_ref.flatten().long(), labels.long()]
    return torch.cat([flatten(feat_ref), features]), torch.cat(together)


def _check_extra(extra_ref: Any, feat_ref: Tensor, y_ref: Tensor) -> None:
    if extra_ref is None:
        return
    if not isinstance(extra_ref, tuple) or len(extra_ref) != 2:
        raise TypeError(
            f"extra_ref: got {type(extra_ref).__name__}, expected a pair of features (N, D) and labels (N,) or (N, C), "
            "as ReferenceBank.references() gives it"
        )
    features, labels = extra_ref
    check_floating("extra_ref[0]", features)
    check_tensor("extra_ref[1]", labels)
    if features.ndim != 2 or features.shape[1] != feat_ref.shape[1]:
        raise ValueError(
            f"extra_ref[0]: got shape {tuple(features.shape)}, expected flat pixels (N, {feat_ref.shape[1]}) to go "
            f"with feat_ref {tuple(feat_ref.shape)}; both must come from the same layer"
        )
    multilabel = y_ref.ndim == feat_ref.ndim
    expected = (len(features), y_ref.shape[1]) if multilabel else (len(features),)
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"extra_ref[1]: got shape {tuple(labels.shape)}, expected {expected} to go with extra_ref[0] "
            f"{tuple(features.shape)} and y_ref {tuple(y_ref.shape)}"
        )
    if not multilabel and (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
        raise TypeError(f"extra_ref[1]: got {describe(labels)}, expected class indices of an integer dtype")
    check_same_device(feat_ref=feat_ref, **{"extra_ref[0]": features, "extra_ref[1]": labels})


def _checked_labels(
    labels: Tensor, multilabel: bool, ignore_index: int, num_classes: int, name: str = "y_ref"
) -> Tensor:
    """``labels``, after :func:`check_labels`."""
    if torch.compiler.is_compiling():
        checked: Tensor = _checked_copy(labels, multilabel, ignore_index, num_classes, name)
        return checked
    check_labels(name, labels, multilabel=multilabel, ignore_index=ignore_index, num_classes=num_classes)
    return labels


@torch.library.custom_op(
    "rpg_loss::checked_labels",
    mutates_args=(),
    schema="(Tensor labels, bool multilabel, int ignore_index, int num_classes, str name) -> Tensor",
)
def _checked_copy(labels: Tensor, multilabel: bool, ignore_index: int, num_classes: int, name: str) -> Tensor:
    # A copy: compilers keep the check, and keep it first, because what follows depends on its result.
    checked = _checked_labels(labels, multilabel, ignore_index, num_classes, name)
    return checked.clone(memory_format=torch.contiguous_format)


@_checked_copy.register_fake
def _(labels: Tensor, multilabel: bool, ignore_index: int, num_classes: int, name: str) -> Tensor:
    return torch.empty_like(labels, memory_format=torch.contiguous_format)


def _per_entry(name: str, tensor: Tensor, entries: Tensor, *, multilabel: bool) -> Tensor:
    """Bring a tensor given per pixel, or per label and pixel, to the axes of the entries' loss."""
    pixels = (entries.shape[0], *entries.shape[2:]) if multilabel else tuple(entries.shape)
    if tuple(tensor.shape) == pixels:
        return tensor.unsqueeze(1) if multilabel else tensor
    if tensor.shape != entries.shape:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {pixels} to go with the target")
    return tensor
