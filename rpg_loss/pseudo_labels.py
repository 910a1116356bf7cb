"""Reference-guided pseudo-labels and their weights, as a function of features alone (Eq. 2-7)."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .checks import (
    check_bool,
    check_choice,
    check_finite,
    check_floating,
    check_labels,
    check_mask,
    check_same_device,
    check_temperature,
    check_tensor,
    describe,
    is_ignored,
    resolve_k,
    share_k,
    upcast_unsigned,
)
from .label_sets import encode_label_sets, label_proximities
from .maps import flatten
from .matching import Impl, match, resolve
from .union import gather_references, raise_on_all_ranks
from .weights import entropy_weights

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


EntropyOver = Literal["sets", "labels"]
ENTROPY_OVER: tuple[EntropyOver, ...] = get_args(EntropyOver)


class PseudoLabels(NamedTuple):
    """Pseudo-labels of the queries and how much each is trusted.  Constants: no gradient flows through them.

    Attributes:
        labels: ``(B, *S)`` int64 class map, or ``(B, C, *S)`` 0/1 in the dtype of ``y_ref``.  Flat input
            gives ``(M,)`` or ``(M, C)``.
        weights: ``(B, *S)`` float32 in [0, 1], W of Eq. 7.  Flat input gives ``(M,)``.

    Example:
        >>> feat_ref, y_ref = torch.eye(3), torch.tensor([0, 1, 1])
        >>> labels, weights = rpg_pseudo_labels(torch.tensor([[0.1, 0.2, 1.0]]), feat_ref, y_ref, k=2)
        >>> labels, weights
        (tensor([1]), tensor([1.0000]))
    """

    labels: Tensor
    weights: Tensor


@torch.no_grad()
def rpg_pseudo_labels(
    feat_u: Tensor,
    feat_ref: Tensor,
    y_ref: Tensor,
    k: int | float,
    *,
    balanced_k: bool = False,
    entropy_over: EntropyOver = "sets",
    temperature: float = 1.0,
    valid_u: Tensor | None = None,
    ignore_index: int = -100,
    impl: Impl = "auto",
    group: ProcessGroup | None = None,
    check_values: bool = True,
) -> PseudoLabels:
    """Label every query as its nearest reference is, and weight it by how clear the choice was.

    The label of a query is that of the reference with the highest clipped cosine similarity (Eq. 3-4; the
    lowest index wins a tie).  Its weight is one minus the normalised entropy of its proximities to the label
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
            (0, 1], a share of the references that are not ignored.
        balanced_k: give all label sets the same say in where the k nearest end: each of the n_S references of a set S
            counts N / (|S| n_S) instead of 1.  By default (the paper) the k nearest of a query in a set of fewer than
            k references always reach into other sets, and its weight is small however clear the choice.  A whole set
            counts N / |S|, so ``k`` should be below that: at a share q / |S|, weight 1 takes the share q of the
            references of the query's set to be nearer than those of any other set, in rare and frequent sets alike.
        entropy_over: what the entropy of Eq. 6-7 is taken over where labels overlap: ``"sets"``, the label vectors that
            occur, or ``"labels"``, single labels and "none of them" (background), each as near as the nearest of its
            sets.  Over labels a query amid references that have two of them is never sure, both being near.  Classes
            of a class map are the same either way.
        temperature: T of :func:`entropy_weights`; 1 is the paper's.  Below 1 weights rise, above 1 they fall.
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
            integer dtype, ``k`` or ``temperature`` is not a number, ``balanced_k`` not a bool.
        ValueError: shapes that do not fit, empty input, ``k`` or ``temperature`` out of range, labels out of range, NaN
            or infinite features, different devices, an ``impl`` that is unknown or cannot run on the device, every
            reference ignored, or another process of ``group`` with any of these.

    Example:
        >>> feat_ref = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> rpg_pseudo_labels(torch.tensor([[2.0, 0.1]]), feat_ref, torch.tensor([0, 1]), k=1)
        PseudoLabels(labels=tensor([0]), weights=tensor([1.0000]))
    """
    if group is not None:
        return _eager_only()(
            feat_u,
            feat_ref,
            y_ref,
            k,
            balanced_k,
            entropy_over,
            temperature,
            valid_u,
            ignore_index,
            impl,
            group,
            check_values,
        )
    _check(feat_u, feat_ref, y_ref, k, balanced_k, entropy_over, temperature, valid_u)
    if torch.compiler.is_compiling():
        share = not isinstance(k, numbers.Integral)
        return PseudoLabels(
            *_operator(
                feat_u.detach(),
                feat_ref.detach(),
                y_ref,
                valid_u,
                float(k),
                share,
                balanced_k,
                entropy_over,
                float(temperature),
                ignore_index,
                impl,
                check_values,
            )
        )
    references, labels = _used_references(feat_u, feat_ref, y_ref, ignore_index, check_values)
    if len(labels) == 0:
        raise ValueError(
            f"y_ref: got {describe(y_ref)} with ignore_index={ignore_index} at every reference, expected at least "
            "one labelled reference; draw another reference pool"
        )
    set_ids, set_labels = encode_label_sets(labels)
    k = share_k(k, len(labels)) if balanced_k else resolve_k(k, len(labels))
    with torch.autocast(device_type=feat_u.device.type, enabled=False):
        matches = match(flatten(feat_u), references, set_ids, len(set_labels), k, impl, balanced=balanced_k)
        weights = entropy_weights(_compared(matches.proximities, set_labels, entropy_over), temperature=temperature)
    return _shaped(set_labels[matches.nearest_sets], weights, feat_u, y_ref, valid_u, ignore_index)


@functools.cache
def _eager_only() -> Callable[..., PseudoLabels]:
    """What compilers are not to look into; made when it is needed, because torch.compiler takes a second to import."""
    outside: Callable[..., PseudoLabels] = torch.compiler.disable(_pseudo_labels_of_group)
    return outside


def _pseudo_labels_of_group(
    feat_u: Tensor,
    feat_ref: Tensor,
    y_ref: Tensor,
    k: int | float,
    balanced_k: bool,
    entropy_over: EntropyOver,
    temperature: float,
    valid_u: Tensor | None,
    ignore_index: int,
    impl: Impl,
    group: ProcessGroup,
    check_values: bool,
) -> PseudoLabels:
    with raise_on_all_ranks(group):
        _check(feat_u, feat_ref, y_ref, k, balanced_k, entropy_over, temperature, valid_u)
        impl = resolve(impl, feat_u.device)
        references, labels = _used_references(feat_u, feat_ref, y_ref, ignore_index, check_values)
    settings = {
        "k": k,
        "balanced_k": balanced_k,
        "entropy_over": entropy_over,
        "temperature": float(temperature),
        "impl": impl,
        "kind of device": feat_u.device.type,
    }
    union = gather_references(group, flatten(feat_u), references, labels, settings)
    total, num_sets = union.shards.total, len(union.set_labels)
    k = share_k(k, total) if balanced_k else resolve_k(k, total)
    with torch.autocast(device_type=feat_u.device.type, enabled=False):
        matches = match(union.queries, references, union.set_ids, num_sets, k, impl, union.shards, balanced=balanced_k)
        weights = entropy_weights(
            _compared(matches.proximities[union.mine], union.set_labels, entropy_over), temperature=temperature
        )
    labels_u = union.set_labels[matches.nearest_sets[union.mine]]
    return _shaped(labels_u, weights, feat_u, y_ref, valid_u, ignore_index)


@torch.library.custom_op(
    "rpg_loss::pseudo_labels",
    mutates_args=(),
    schema=(
        "(Tensor feat_u, Tensor feat_ref, Tensor y_ref, Tensor? valid_u, float k, bool share, bool balanced_k, "
        "str entropy_over, float temperature, int ignore_index, str impl, bool check_values) -> (Tensor, Tensor)"
    ),
)
def _operator(
    feat_u: Tensor,
    feat_ref: Tensor,
    y_ref: Tensor,
    valid_u: Tensor | None,
    k: float,
    share: bool,
    balanced_k: bool,
    entropy_over: EntropyOver,
    temperature: float,
    ignore_index: int,
    impl: Impl,
    check_values: bool,
) -> tuple[Tensor, Tensor]:
    """:func:`rpg_pseudo_labels` as one operator, for compilers."""
    return rpg_pseudo_labels(
        feat_u,
        feat_ref,
        y_ref,
        k if share else int(k),
        balanced_k=balanced_k,
        entropy_over=entropy_over,
        temperature=temperature,
        valid_u=valid_u,
        ignore_index=ignore_index,
        impl=impl,
        check_values=check_values,
    )


@_operator.register_fake
def _(
    feat_u: Tensor,
    feat_ref: Tensor,
    y_ref: Tensor,
    valid_u: Tensor | None,
    k: float,
    share: bool,
    balanced_k: bool,
    entropy_over: EntropyOver,
    temperature: float,
    ignore_index: int,
    impl: Impl,
    check_values: bool,
) -> tuple[Tensor, Tensor]:
    shape = (feat_u.shape[0], *feat_u.shape[2:])
    if y_ref.ndim == feat_ref.ndim:
        labels = y_ref.new_empty((shape[0], y_ref.shape[1], *shape[1:]))
    else:
        labels = y_ref.new_empty(shape, dtype=torch.int64)
    return labels, feat_u.new_empty(shape, dtype=torch.float32)


def _compared(proximities: Tensor, set_labels: Tensor, entropy_over: EntropyOver) -> Tensor:
    """The proximities that the entropy is taken over."""
    return label_proximities(proximities, set_labels) if entropy_over == "labels" else proximities


def _used_references(
    feat_u: Tensor, feat_ref: Tensor, y_ref: Tensor, ignore_index: int, check_values: bool
) -> tuple[Tensor, Tensor]:
    """The references that are not ignored, flat, and their labels."""
    multilabel = y_ref.ndim == feat_ref.ndim
    y_ref = upcast_unsigned(y_ref)
    if check_values:
        check_finite(feat_u=feat_u, feat_ref=feat_ref)
        check_labels("y_ref", y_ref, multilabel=multilabel, ignore_index=ignore_index)
    references, labels = flatten(feat_ref), flatten(y_ref) if multilabel else y_ref.flatten()
    used = ~is_ignored(labels, ignore_index)
    used = used.all(1) if multilabel else used
    if not bool(used.all()):
        references, labels = references[used], labels[used]
    return references, labels if multilabel else labels.long()


def _shaped(
    labels_u: Tensor, weights: Tensor, feat_u: Tensor, y_ref: Tensor, valid_u: Tensor | None, ignore_index: int
) -> PseudoLabels:
    """Flat labels and weights on the grid of the queries, those of ignored queries blotted out."""
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


def check_references(feat_ref: Tensor, y_ref: Tensor) -> None:
    """Check features and labels of references for what costs no look at values."""
    check_floating("feat_ref", feat_ref)
    check_tensor("y_ref", y_ref)
    _check_features("feat_ref", feat_ref)
    class_map = (feat_ref.shape[0], *feat_ref.shape[2:])
    multilabel = y_ref.ndim == feat_ref.ndim
    fits = (y_ref.shape[0], *y_ref.shape[2:]) == class_map if multilabel else tuple(y_ref.shape) == class_map
    if not fits or y_ref.numel() == 0:
        vectors = f"({class_map[0]}, C" + "".join(f", {size}" for size in class_map[1:]) + ")"
        raise ValueError(
            f"y_ref: got shape {tuple(y_ref.shape)}, expected a class map {class_map} or label vectors {vectors} to go "
            f"with feat_ref {tuple(feat_ref.shape)}; sub-sample labels and features alike"
        )
    if not multilabel and (y_ref.is_floating_point() or y_ref.is_complex() or y_ref.dtype == torch.bool):
        raise TypeError(
            f"y_ref: got a class map {describe(y_ref)}, expected an integer dtype; convert it with .long(), or pass "
            "0/1 label vectors with a channel axis"
        )
    if y_ref.is_complex():
        raise TypeError(f"y_ref: got {describe(y_ref)}, expected a real dtype")


def _check_features(name: str, features: Tensor) -> None:
    if features.ndim < 2 or features.numel() == 0:
        raise ValueError(
            f"{name}: got shape {tuple(features.shape)}, expected a non-empty (images, D, *spatial) or flat (pixels, D)"
        )


def _check(
    feat_u: Tensor,
    feat_ref: Tensor,
    y_ref: Tensor,
    k: int | float,
    balanced_k: bool,
    entropy_over: EntropyOver,
    temperature: float,
    valid_u: Tensor | None,
) -> None:
    """Check everything that costs no look at values."""
    check_floating("feat_u", feat_u)
    _check_features("feat_u", feat_u)
    check_references(feat_ref, y_ref)
    if feat_u.shape[1] != feat_ref.shape[1]:
        raise ValueError(
            f"feat_ref: got {feat_ref.shape[1]} features per pixel (axis 1 of {tuple(feat_ref.shape)}), expected the "
            f"{feat_u.shape[1]} of feat_u {tuple(feat_u.shape)}; both must come from the same layer"
        )
    check_mask("valid_u", valid_u, (feat_u.shape[0], *feat_u.shape[2:]), "feat_u")
    check_same_device(feat_u=feat_u, feat_ref=feat_ref, y_ref=y_ref, valid_u=valid_u)
    resolve_k(k)
    check_bool("balanced_k", balanced_k)
    check_choice("entropy_over", entropy_over, ENTROPY_OVER)
    check_temperature(temperature)
