"""FixMatch for segmentation (Eq. 9-11): confident predictions on a weak view are the targets of a strong view."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_bool, check_choice, check_floating, check_mask, check_same_device
from .cross_entropy import mean_cross_entropy
from .pseudo_labels import PseudoLabels
from .union import GroupModule, agree, raise_on_all_ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@torch.no_grad()
def fixmatch_targets(logits: Tensor, threshold: float = 0.95, *, multilabel: bool = False) -> PseudoLabels:
    r"""Return the confident predictions as targets: Eq. 9, or Eq. 10 for overlapping labels.

    Eq. 9 takes the most probable class and keeps it where its probability exceeds the threshold.  Eq. 10 rounds every
    label on its own and keeps it where :math:`|p - 0.5| > |0.5 - \tau|`.

    Args:
        logits: ``(B, C, *S)`` floating point.
        threshold: tau in [0, 1].
        multilabel: labels overlap (sigmoid) instead of excluding each other (softmax).

    Returns:
        :class:`PseudoLabels`, constants without a gradient.  Labels are an int64 class map ``(B, *S)``, or 0/1 in
        float32 ``(B, C, *S)`` for overlapping labels; they are the prediction also where it is not kept.  Weights are
        float32 of the same shape, 1 where the label is kept, NaN where there is no telling (the probability is NaN) and
        0 elsewhere; overlapping labels are kept one by one.

    Raises:
        TypeError: ``logits`` is not floating point, ``threshold`` not a number, ``multilabel`` not a bool.
        ValueError: ``logits`` has no class axis, or but one class without ``multilabel``; ``threshold`` is out of
            range.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.5], [0.0, 0.0]]])  # two classes at two pixels
        >>> fixmatch_targets(logits, 0.95)
        PseudoLabels(labels=tensor([[0, 0]]), weights=tensor([[1., 0.]]))
    """
    check_floating("logits", logits)
    if logits.ndim < 2 or logits.shape[1] == 0:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected (B, C, *spatial)")
    _check_options(threshold, multilabel)
    _check_classes("logits", logits, multilabel)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if multilabel:
        confidence = logits.sigmoid()
        labels, kept = confidence.round().float(), (confidence - 0.5).abs() > abs(0.5 - threshold)
    else:
        confidence, labels = logits.softmax(1).max(1)
        kept = confidence > threshold
    return PseudoLabels(labels, kept.float().masked_fill(confidence.isnan(), torch.nan))


class FixMatchSegLoss(GroupModule):
    r"""Consistency loss of FixMatch for segmentation: the last term of Eq. 11.

    .. math::
        L = \text{mean}(\mathbb{1}_\text{kept} \cdot \text{CE}(\text{logits}_\text{strong}, \text{target}))

    Confident predictions on the weakly augmented view (:func:`fixmatch_targets`) are the targets of the strongly
    augmented view.  As in FixMatch (Sohn et al. 2020) the mean is over all entries, those that are not kept counting
    as 0: a few confident predictions early in training weigh less than many later on.  Ignored pixels (uncovered by
    the warp, outside ``valid_weak``, inside CutOut squares with ``cutout="ignore"``) have no part in it.

    Args:
        threshold: tau of Eq. 9 and 10, in [0, 1].
        multilabel: labels overlap (Eq. 10, binary cross-entropy) instead of excluding each other (Eq. 9).
        cutout: target of the pixels inside CutOut squares (``cutout_mask`` of the call): ``"background"`` (the paper:
            class 0, or no label at all), or ``"ignore"`` to leave them out of the mean.
        group: processes whose pixels together the mean is taken over, see :func:`segmentation_cross_entropy`.

    Raises:
        TypeError: ``threshold`` is not a number, ``multilabel`` not a bool.
        ValueError: ``threshold`` is out of range, or ``cutout`` is neither of the two.

    Example:
        >>> criterion = FixMatchSegLoss(0.95)
        >>> weak, strong = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8, requires_grad=True)
        >>> criterion(weak, strong).backward()
    """

    def __init__(
        self,
        threshold: float = 0.95,
        *,
        multilabel: bool = False,
        cutout: Literal["background", "ignore"] = "background",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        _check_options(threshold, multilabel)
        check_choice("cutout", cutout, ("background", "ignore"))
        self.threshold = threshold
        self.multilabel = multilabel
        self.cutout = cutout
        self.group = group

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, multilabel={self.multilabel}, cutout={self.cutout!r}"

    def forward(
        self,
        logits_weak: Tensor,
        logits_strong: Tensor,
        *,
        warp: Callable[[Tensor], Tensor] | None = None,
        cutout_mask: Tensor | None = None,
        valid_weak: Tensor | None = None,
        return_pseudo_labels: bool = False,
    ) -> Tensor | tuple[Tensor, PseudoLabels]:
        """Return the loss of one step.

        Args:
            logits_weak: ``(B, C, *S)`` of the weak view; no gradient reaches them.
            logits_strong: ``(B, C, *S)`` of the strong view.
            warp: carries maps from the weak view's frame into the strong view's: called once with a float32 tensor
                ``(B, K, *S)``, the targets and masks as channels, and returns the same shape.  Interpolate with nearest
                neighbors and fill with 0: pixels that the warp uncovers then have mask 0 and are ignored.
            cutout_mask: ``(B, *S)`` bool in the strong view's frame, True inside the CutOut squares.
            valid_weak: ``(B, *S)`` bool in the weak view's frame, False where a pixel is to be ignored (padding).
            return_pseudo_labels: also return the targets, in the strong view's frame; an ignored pixel has weight 0
                and class -100 (0 in every label of a label vector).

        Returns:
            The loss, a scalar, 0 with a live graph where nothing is kept, and NaN where a probability of the weak view
            is; with ``return_pseudo_labels`` the pair of it and :class:`PseudoLabels`.

        Raises:
            TypeError: logits are not floating point, ``warp`` is no function or does not return floating point.
            ValueError: shapes that do not fit, one channel without ``multilabel``, or a ``warp`` that changes shapes.
        """
        with raise_on_all_ranks(self.group):
            check_floating("logits_weak", logits_weak)
            check_floating("logits_strong", logits_strong)
            if logits_weak.shape != logits_strong.shape or logits_weak.ndim < 3 or logits_weak.numel() == 0:
                raise ValueError(
                    f"logits_weak, logits_strong: got shapes {tuple(logits_weak.shape)} and "
                    f"{tuple(logits_strong.shape)}, expected the same non-empty (B, C, *spatial)"
                )
            _check_classes("logits_weak, logits_strong", logits_weak, self.multilabel)
            shape = (logits_weak.shape[0], *logits_weak.shape[2:])
            check_mask("cutout_mask", cutout_mask, shape, "the logits")
            check_mask("valid_weak", valid_weak, shape, "the logits")
            check_same_device(
                logits_weak=logits_weak, logits_strong=logits_strong, cutout_mask=cutout_mask, valid_weak=valid_weak
            )
            pseudo_labels, valid = self._targets(logits_weak, warp, cutout_mask, valid_weak)
        channels = logits_weak.shape[1]
        agree(
            self.group,
            {"threshold": self.threshold, "multilabel": self.multilabel, "cutout": self.cutout, "channels": channels},
        )
        loss = mean_cross_entropy(logits_strong, *pseudo_labels, valid, -100, self.group)
        return (loss, pseudo_labels) if return_pseudo_labels else loss

    @torch.no_grad()
    def _targets(
        self,
        logits_weak: Tensor,
        warp: Callable[[Tensor], Tensor] | None,
        cutout_mask: Tensor | None,
        valid_weak: Tensor | None,
    ) -> tuple[PseudoLabels, Tensor]:
        """Return the targets in the strong view's frame, and which pixels are not ignored there, ``(B, *S)``."""
        labels, kept = fixmatch_targets(logits_weak, self.threshold, multilabel=self.multilabel)
        batch, num_classes, *spatial = logits_weak.shape
        covered = torch.ones(batch, 1, *spatial, dtype=torch.float32, device=labels.device)
        if valid_weak is not None:
            covered = covered * valid_weak.unsqueeze(1)
        if warp is not None:
            if not callable(warp):
                raise TypeError(f"warp: got {type(warp).__name__}, expected a function that moves (B, K, *S)")
            # One channel per class: an interpolating warp then blurs an edge instead of inventing classes between.
            channels = labels if self.multilabel else F.one_hot(labels, num_classes).movedim(-1, 1)
            before = torch.cat([channels.float(), kept if self.multilabel else kept.unsqueeze(1), covered], dim=1)
            after = warp(before)
            check_floating("warp", after)
            if after.shape != before.shape:
                raise ValueError(
                    f"warp: got shape {tuple(after.shape)} back for {tuple(before.shape)}, expected the same; it must "
                    "act on all channels alike"
                )
            channels, covered = after[:, :num_classes], after[:, -1:]
            labels = channels.round() if self.multilabel else channels.argmax(1)
            kept = after[:, num_classes:-1] if self.multilabel else after[:, num_classes]
        weights = (kept > 0.5).float().masked_fill(kept.isnan(), torch.nan)
        valid = covered.squeeze(1) > 0.5
        if cutout_mask is not None and self.cutout == "background":
            cut = cutout_mask.unsqueeze(1) if self.multilabel else cutout_mask
            labels, weights = labels.masked_fill(cut, 0), weights.masked_fill(cut, 1)
        elif cutout_mask is not None:
            valid = valid & ~cutout_mask
        ignored = ~(valid.unsqueeze(1) if self.multilabel else valid)
        labels = labels.masked_fill(ignored, 0 if self.multilabel else -100)
        return PseudoLabels(labels, weights.masked_fill(ignored, 0)), valid


def _check_options(threshold: float, multilabel: bool) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real):
        raise TypeError(f"threshold: got {threshold!r}, expected a number, a probability in [0, 1]")
    if not 0 <= threshold <= 1:  # also refuses NaN
        raise ValueError(f"threshold: got {threshold}, expected a probability in [0, 1]")
    check_bool("multilabel", multilabel)


def _check_classes(name: str, logits: Tensor, multilabel: bool) -> None:
    if logits.shape[1] == 1 and not multilabel:
        raise ValueError(
            f"{name}: got one channel {tuple(logits.shape)}, expected two classes or more: the softmax over one is "
            "always 1; for one binary label say multilabel=True, for classes give logits one channel per class"
        )
