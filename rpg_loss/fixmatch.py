"""FixMatch for segmentation (Eq. 9-11): confident predictions on a weak view teach the strong view."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_choice, check_floating, check_mask, check_same_device
from .loss import segmentation_cross_entropy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class FixMatchTargets(NamedTuple):
    """Targets of FixMatch.  Constants: no gradient flows through them.

    Attributes:
        target: ``(B, *S)`` int64 class map, or ``(B, C, *S)`` 0/1 in float32 for overlapping labels.
        mask: bool of the same shape, True where the prediction is sure enough to be a target.
    """

    target: Tensor
    mask: Tensor


@torch.no_grad()
def fixmatch_targets(logits: Tensor, threshold: float = 0.95, *, multilabel: bool = False) -> FixMatchTargets:
    """Targets from predictions: Eq. 9, or Eq. 10 for overlapping labels.

    Eq. 9: the most probable class, kept where its probability exceeds the threshold.  Eq. 10: every label rounded on
    its own, kept where ``|p - 0.5| > |0.5 - threshold|``.

    Args:
        logits: ``(B, C, *S)`` floating point.
        threshold: tau in [0, 1].
        multilabel: labels overlap (sigmoid) instead of excluding each other (softmax).

    Returns:
        :class:`FixMatchTargets`.

    Raises:
        TypeError: ``logits`` is not floating point.
        ValueError: ``logits`` has no class axis, ``threshold`` is out of range.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.5], [0.0, 0.0]]])  # two classes at two pixels
        >>> fixmatch_targets(logits, 0.95)
        FixMatchTargets(target=tensor([[0, 0]]), mask=tensor([[ True, False]]))
    """
    check_floating("logits", logits)
    if logits.ndim < 2:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected (B, C, *spatial)")
    _check_threshold(threshold)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if multilabel:
        p = logits.sigmoid()
        return FixMatchTargets(p.round(), (p - 0.5).abs() > abs(0.5 - threshold))
    confidence, target = logits.softmax(1).max(1)
    return FixMatchTargets(target, confidence > threshold)


class FixMatchSegLoss(nn.Module):
    """Consistency loss of FixMatch for segmentation: the last term of Eq. 11.

    Predictions on the weakly augmented view that are sure enough (:func:`fixmatch_targets`) are the targets of the
    strongly augmented view.  As in FixMatch (Sohn et al. 2020) the mean is over all entries, those that are not kept
    counting as 0: few sure predictions early in training do not get the say of many.  Ignored pixels (uncovered by
    the warp, outside ``valid_weak``, inside CutOut squares with ``cutout="ignore"``) have no part in it.

    Args:
        threshold: tau of Eq. 9 and 10, in [0, 1].
        multilabel: labels overlap (Eq. 10, binary cross-entropy) instead of excluding each other (Eq. 9).
        cutout: what pixels inside CutOut squares are to be: ``"background"`` (the paper: class 0, or no label
            at all) or ``"ignore"``.
        ignore_index: value at pixels that are not kept, in the class map of targets that the call returns.
        group: processes whose pixels together the mean is taken over, see :func:`segmentation_cross_entropy`.

    Raises:
        ValueError: an argument out of range.

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
        ignore_index: int = -100,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        _check_threshold(threshold)
        check_choice("cutout", cutout, ("background", "ignore"))
        self.threshold = threshold
        self.multilabel = multilabel
        self.cutout = cutout
        self.ignore_index = ignore_index
        self.group = group

    def extra_repr(self) -> str:
        return (
            f"threshold={self.threshold}, multilabel={self.multilabel}, cutout={self.cutout!r}, "
            f"ignore_index={self.ignore_index}"
        )

    @overload
    def forward(
        self,
        logits_weak: Tensor,
        logits_strong: Tensor,
        *,
        warp: Callable[[Tensor], Tensor] | None = None,
        cutout: Tensor | None = None,
        valid_weak: Tensor | None = None,
        return_pseudo_labels: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        logits_weak: Tensor,
        logits_strong: Tensor,
        *,
        warp: Callable[[Tensor], Tensor] | None = None,
        cutout: Tensor | None = None,
        valid_weak: Tensor | None = None,
        return_pseudo_labels: Literal[True],
    ) -> tuple[Tensor, FixMatchTargets]: ...

    def forward(
        self,
        logits_weak: Tensor,
        logits_strong: Tensor,
        *,
        warp: Callable[[Tensor], Tensor] | None = None,
        cutout: Tensor | None = None,
        valid_weak: Tensor | None = None,
        return_pseudo_labels: bool = False,
    ) -> Tensor | tuple[Tensor, FixMatchTargets]:
        """Loss of one step.

        Args:
            logits_weak: ``(B, C, *S)`` of the weak view; no gradient reaches them.
            logits_strong: ``(B, C, *S)`` of the strong view.
            warp: carries maps from the weak view's frame into the strong view's: called once with a float32 tensor
                ``(B, K, *S)``, the targets and masks as channels, and returns the same shape.  Interpolate with nearest
                neighbours and fill with 0: pixels that the warp uncovers then have mask 0 and are ignored.
            cutout: ``(B, *S)`` bool in the strong view's frame, True inside the CutOut squares.
            valid_weak: ``(B, *S)`` bool in the weak view's frame, False where a pixel is to be ignored (padding).
            return_pseudo_labels: also return the targets, in the strong view's frame.

        Returns:
            The loss, a scalar, 0 with a live graph where nothing is kept; with ``return_pseudo_labels`` the pair of it
            and :class:`FixMatchTargets`.

        Raises:
            TypeError: logits are not floating point.
            ValueError: shapes that do not fit, or a ``warp`` that changes the shape.
        """
        check_floating("logits_weak", logits_weak)
        check_floating("logits_strong", logits_strong)
        if logits_weak.shape != logits_strong.shape or logits_weak.ndim < 3 or logits_weak.numel() == 0:
            raise ValueError(
                f"logits_weak, logits_strong: got shapes {tuple(logits_weak.shape)} and {tuple(logits_strong.shape)}, "
                "expected the same non-empty (B, C, *spatial)"
            )
        shape = (len(logits_weak), *logits_weak.shape[2:])
        check_mask("cutout", cutout, shape, "the logits")
        check_mask("valid_weak", valid_weak, shape, "the logits")
        check_same_device(logits_weak=logits_weak, logits_strong=logits_strong, cutout=cutout, valid_weak=valid_weak)

        target, mask, valid = self._targets(logits_weak, warp, cutout, valid_weak)
        loss = segmentation_cross_entropy(logits_strong, target, mask, valid=valid, group=self.group)
        if not return_pseudo_labels:
            return loss
        return loss, FixMatchTargets(target if self.multilabel else target.masked_fill(~mask, self.ignore_index), mask)

    @torch.no_grad()
    def _targets(
        self,
        logits_weak: Tensor,
        warp: Callable[[Tensor], Tensor] | None,
        cutout: Tensor | None,
        valid_weak: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Target and mask in the strong view's frame, and which pixels are not ignored there, ``(B, *S)``."""
        target, mask = fixmatch_targets(logits_weak, self.threshold, multilabel=self.multilabel)
        covered = torch.ones(len(mask), 1, *logits_weak.shape[2:], device=mask.device)
        if valid_weak is not None:
            covered = covered * valid_weak.unsqueeze(1)
        if not self.multilabel:
            mask = mask.unsqueeze(1)
        if warp is not None:
            num_classes, labels = logits_weak.shape[1], target
            # One channel per class: an interpolating warp then blurs an edge instead of inventing classes between.
            if not self.multilabel:
                labels = F.one_hot(target, num_classes).movedim(-1, 1)
            before = torch.cat([labels.float(), mask.float(), covered], dim=1)
            after = warp(before)
            if after.shape != before.shape:
                raise ValueError(
                    f"warp: got shape {tuple(after.shape)} back for {tuple(before.shape)}, expected the same; it must "
                    "act on all channels alike"
                )
            labels, mask, covered = torch.split(after, [num_classes, mask.shape[1], 1], dim=1)
            target = labels.round() if self.multilabel else labels.argmax(1)
            mask = mask > 0.5
        valid = covered > 0.5
        if cutout is not None:
            cut = cutout.unsqueeze(1)
            if self.cutout == "background":
                target = target.masked_fill(cut if self.multilabel else cutout, 0)
                mask = mask | cut
            else:
                valid = valid & ~cut
        mask = mask & valid
        return target, mask if self.multilabel else mask.squeeze(1), valid.squeeze(1)


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:  # also refuses NaN
        raise ValueError(f"threshold: got {threshold}, expected a probability in [0, 1]")
