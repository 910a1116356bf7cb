"""Reference-guided pseudo-labels and their weights, as a function of features alone (Eq. 2-7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_finite, check_inputs, check_int, check_labels, describe, is_ignored, upcast_unsigned
from .maps import flatten
from .matching import Impl, match, resolve
from .matching.normalize import without_autocast
from .options import WAITS, Options
from .union import eager_only, gather_references, raise_on_all_ranks
from .weights import entropy_weights

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PseudoLabels(NamedTuple):
    """Pseudo-labels and how much each is trusted.  Constants: no gradient flows through them.

    Attributes:
        labels: ``(B, *S)`` int64 class map, or ``(B, C, *S)`` 0/1 in the dtype of ``y_ref``.  Flat input
            gives ``(M,)`` or ``(M, C)``.
        weights: ``(B, *S)`` float32 in [0, 1], W of Eq. 7.  Flat input gives ``(M,)``.
            Those of FixMatch are 0 or 1, and one for each of overlapping labels, see :func:`fixmatch_targets`.

    Example:
        >>> feat_ref, y_ref = torch.eye(3), torch.tensor([0, 1, 1])
        >>> labels, weights = rpg_pseudo_labels(torch.tensor([[0.1, 0.2, 1.0]]), feat_ref, y_ref, k=2)
        >>> labels, weights
        (tensor([1]), tensor([1.0000]))
    """

    labels: Tensor
    weights: Tensor

    def mean_weights(self, num_classes: int) -> Tensor:
        """Return the mean weight of the pixels that are given each class or label, to be logged: ``(num_classes,)``.

        It is 0, not NaN, for what no pixel is given: no weight is on it.  Waits for a GPU.

        Raises:
            TypeError: ``num_classes`` is not an int.
            ValueError: it is not above all classes with a weight, or not the number of labels of the label vectors.

        Example:
            >>> PseudoLabels(torch.tensor([0, 0, 2]), torch.tensor([1.0, 0.5, 0.2])).mean_weights(3)
            tensor([0.7500, 0.0000, 0.2000])
        """
        check_int("num_classes", num_classes)
        labels, weights = self
        if multilabel := labels.ndim > weights.ndim or labels.is_floating_point():
            given, fits = labels == 1, labels.shape[1] == num_classes
        else:
            classes = torch.arange(num_classes, device=labels.device).view(-1, *[1] * (labels.ndim - 1))
            given = labels.unsqueeze(1) == classes
            fits = not bool(((labels >= num_classes) & (weights > 0)).any())
        if not fits:
            number = f"{labels.shape[1]} labels" if multilabel else f"classes up to {int(labels.max())}"
            raise ValueError(f"num_classes: got {num_classes} for pseudo-labels of {number}, expected as many")
        weights = weights if weights.ndim == given.ndim else weights.unsqueeze(1)
        axes = [0, *range(2, given.ndim)]
        return (weights * given).sum(axes) / given.sum(axes).clamp(min=1)


@torch.no_grad()
def rpg_pseudo_labels(
    feat_u: Tensor,
    feat_ref: Tensor,
    y_ref: Tensor,
    k: int | float,
    *,
    valid_u: Tensor | None = None,
    ignore_index: int = -100,
    impl: Impl = "auto",
    group: ProcessGroup | None = None,
    check_values: bool = True,
) -> PseudoLabels:
    """Label every query as its nearest reference is, and weight it by how clear the choice was.

    The label of a query is that of the reference with the highest clipped cosine similarity (Eq. 3-4; the
    lowest index wins a tie).  Its weight is one minus the normalized entropy of its proximities to the label
    sets found among the k nearest references (Eq. 5-7).  Every distinct label vector among the
    references is a label set of its own: a class of a class map, or a combination of labels.

    Similarities are computed in float32, also under autocast; those of half-precision features are summed in
    float32.  Under ``torch.compile`` the whole is one operator, without a graph break.

    Args:
        feat_u: features of the queries, ``(B, D, *S)`` with any number of spatial axes, or flat ``(M, D)``;
            floating point.
        feat_ref: features of the references, ``(P, D, *R)`` or flat ``(N, D)``, whichever ``feat_u`` is.
        y_ref: labels of the references: a class map ``(P, *R)`` of any integer dtype, classes from 0 up, or 0/1
            label vectors ``(P, C, *R)`` of any real dtype; flat: ``(N,)`` or ``(N, C)``.
        k: number of nearest references that count: an int >= 1 (more than there are means all), or a float in
            (0, 1], a share of the references that are not ignored.  In a compiled call no number of NumPy.
        valid_u: ``(B, *S)`` or ``(M,)`` bool, False where a query is to be ignored: its weight is 0 and its label
            ``ignore_index`` (0 in every label of a label vector).
        ignore_index: a reference with this value as its class, or in any entry of its label vector, is left out.
        impl: ``"auto"`` (the fastest that runs on the device), ``"triton"`` (NVIDIA GPUs from Ampere on),
            ``"chunked"`` (plain PyTorch, memory-bounded) or ``"reference"`` (the definition, for small sets).
        group: a ``torch.distributed`` process group whose processes all call this together: the reference set is
            the union of the references of all of them, in the order of ranks, and ``k`` counts in it.  References do
            not travel: maxima and counts do, O(M |S|) numbers.  Queries are gathered first where they differ between
            processes.  All references of one process may be ignored.  Not for ``torch.compile(fullgraph=True)``.
        check_values: check features for NaN and infinities and labels for their range.  On a GPU each check waits for
            the device.

    Returns:
        :class:`PseudoLabels`.

    Raises:
        TypeError: an argument is not a tensor, features are not real floating point, a class map is not of an
            integer dtype, ``k`` is not a number.
        ValueError: shapes that do not fit, empty input, ``k`` or labels out of range, NaN or infinite features,
            different devices, an ``impl`` that is unknown or cannot run on the device, every reference ignored, or
            another process of ``group`` with any of these.

    Example:
        >>> feat_ref = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> rpg_pseudo_labels(torch.tensor([[2.0, 0.1]]), feat_ref, torch.tensor([0, 1]), k=1)
        PseudoLabels(labels=tensor([0]), weights=tensor([1.0000]))
    """
    with raise_on_all_ranks(group):
        options = Options(k, ignore_index, impl, check_values)
        check_inputs(feat_u, feat_ref, y_ref, valid_u, maps=False)
    return label_queries(feat_u, feat_ref, y_ref, valid_u, options, group)


def label_queries(
    feat_u: Tensor,
    feat_ref: Tensor,
    y_ref: Tensor,
    valid_u: Tensor | None,
    options: Options,
    group: ProcessGroup | None,
    settings: dict[str, Any] | None = None,
) -> PseudoLabels:
    """Do what :func:`rpg_pseudo_labels` does, for input that has passed :func:`check_inputs`.

    ``settings`` are further arguments of a caller that must be equal on all processes of ``group``.
    """
    if group is not None:
        labeled: PseudoLabels = eager_only(_label_queries)(feat_u, feat_ref, y_ref, valid_u, options, group, settings)
        return labeled
    if torch.compiler.is_compiling():
        return PseudoLabels(*_operator(feat_u.detach(), feat_ref.detach(), y_ref, valid_u, *options.values))
    return _label_queries(feat_u, feat_ref, y_ref, valid_u, options, None, settings)


# The options of the two functions below are the fields of Options, in order.
@torch.library.custom_op(
    "rpg_loss::pseudo_labels",
    mutates_args=(),
    **WAITS,
    schema=(
        "(Tensor feat_u, Tensor feat_ref, Tensor y_ref, Tensor? valid_u, "
        "Scalar k, int ignore_index, str impl, bool check_values) -> (Tensor, Tensor)"
    ),
)
def _operator(
    feat_u: Tensor, feat_ref: Tensor, y_ref: Tensor, valid_u: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    """Label queries as one operator, for compilers."""
    return _label_queries(feat_u, feat_ref, y_ref, valid_u, Options(*options), None)


@_operator.register_fake
def _(feat_u: Tensor, feat_ref: Tensor, y_ref: Tensor, valid_u: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    shape = (feat_u.shape[0], *feat_u.shape[2:])
    if y_ref.ndim == feat_ref.ndim:
        labels = y_ref.new_empty((shape[0], y_ref.shape[1], *shape[1:]))
    else:
        labels = y_ref.new_empty(shape, dtype=torch.int64)
    return labels, feat_u.new_empty(shape, dtype=torch.float32)


def _label_queries(
    feat_u: Tensor,
    feat_ref: Tensor,
    y_ref: Tensor,
    valid_u: Tensor | None,
    options: Options,
    group: ProcessGroup | None,
    settings: dict[str, Any] | None = None,
) -> PseudoLabels:
    with raise_on_all_ranks(group):
        impl = resolve(options.impl, feat_u, feat_ref)
        references, labels = _used_references(feat_u, feat_ref, y_ref, options)
        if group is None and len(labels) == 0:
            sub_sampled = settings is not None and "map_size" in settings
            more = ", or raise map_size if sub-sampling lost the labels" if sub_sampled else ""
            raise ValueError(
                f"y_ref: got {describe(y_ref)} with ignore_index={options.ignore_index} at every reference, expected "
                f"at least one labeled reference; draw another reference pool{more}"
            )
    settings = {**vars(options), "kind of device": feat_u.device.type} | (settings or {})
    union = gather_references(group, flatten(feat_u), references, labels, impl, settings)
    with without_autocast(feat_u.device):
        matches = match(union.queries, union.references, options.nearest_of(union.references.total), union.impl)
        weights = entropy_weights(matches.proximities[union.mine])
    labels_u = union.set_labels[matches.nearest_sets[union.mine]]
    return _on_grid(labels_u, weights, feat_u, y_ref, valid_u, options.ignore_index)


def _used_references(feat_u: Tensor, feat_ref: Tensor, y_ref: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Return the references that are not ignored, flat, and their labels."""
    multilabel = y_ref.ndim == feat_ref.ndim
    y_ref = upcast_unsigned(y_ref)
    if options.check_values:
        check_finite(feat_u=feat_u, feat_ref=feat_ref)
        check_labels("y_ref", y_ref, multilabel=multilabel, ignore_index=options.ignore_index)
    references, labels = flatten(feat_ref), flatten(y_ref) if multilabel else y_ref.flatten()
    used = ~is_ignored(labels, options.ignore_index)
    used = used.all(1) if multilabel else used
    if not bool(used.all()):
        references, labels = references[used], labels[used]
    return references, labels if multilabel else labels.long()


def _on_grid(
    labels_u: Tensor, weights: Tensor, feat_u: Tensor, y_ref: Tensor, valid_u: Tensor | None, ignore_index: int
) -> PseudoLabels:
    """Bring flat labels and weights to the grid of the queries, with weight 0 and no label where these are ignored."""
    multilabel = labels_u.ndim == 2
    if valid_u is not None:
        outside = ~valid_u.flatten()
        weights = weights.masked_fill(outside, 0)
        labels_u = labels_u.masked_fill(outside[:, None] if multilabel else outside, 0 if multilabel else ignore_index)
    shape = (feat_u.shape[0], *feat_u.shape[2:])
    if multilabel:
        labels_u = labels_u.to(y_ref.dtype).reshape(*shape, -1).movedim(-1, 1).contiguous()
    else:
        labels_u = labels_u.reshape(shape)
    return PseudoLabels(labels_u, weights.reshape(shape))
