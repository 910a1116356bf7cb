"""A reference set beyond one step: features and labels of the pools of past steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .checks import (
    check_bool,
    check_floating,
    check_labels,
    check_same_device,
    check_tensor,
    describe,
    is_ignored,
    upcast_unsigned,
)
from .label_sets import encode_label_sets
from .maps import flatten, subsample
from .pseudo_labels import check_references

_STATE = ("features", "labels", "counts")


class ReferenceBank(nn.Module):
    """References of past pools, to be matched in addition to those of the current one.

        loss = criterion(logits_u, feat_u, feat_ref, y_ref, logits_ref, extra_ref=bank.references())
        bank.push(feat_ref, y_ref)

    The bank holds what the last ``max_age`` pushes have brought, and each of them may fill the same share of
    ``max_bytes``.  Where a push has more references than fit, its label sets are balanced: those that are cut keep
    equally many (but for one), and none that is kept whole has more.  So rare sets stay and common ones are thinned,
    evenly over their pixels.  Nothing is random.

    All state is in buffers: ``state_dict`` holds it, ``to`` moves it, and a run resumes exactly.  Their sizes change
    from push to push, so keep the bank out of a module that DistributedDataParallel wraps, which would copy the
    buffers of one process to all.

    With several processes each has a bank of its own pools, and saves and restores it by itself.  With
    ``RPGLoss(group=...)`` the banks of all are one reference set, without a copy; without, each matches its own.

    More references alone do not make pseudo-labels more precise.  Features of past steps come from past weights.  In a
    balanced reference set rare label sets are the nearest, and among the k nearest, more often than in a pool: more of
    their pixels are found, fewer of those found are right, and weights fall, most of all where ``k`` is a share.
    Compare precision and mean weight with and without.

    Args:
        max_bytes: the most that the buffers may take.  (During a push the old and the new ones exist side by side.)
        max_age: references are dropped after so many pushes.
        balanced: False thins all label sets alike, so that they stand as in a pool; at least one of each stays.
        dtype: in which features are stored; half precision holds twice as many.  Take that of autocast where the
            matching is to run in half precision.
        ignore_index: references with this label, or with it anywhere in their label vector, are left out.

    Attributes:
        features: ``(N, D)`` in ``dtype``, in the order in which they were pushed.
        labels: ``(N,)`` int64 class indices, or ``(N, C)`` bool label vectors.
        counts: ``(pushes,)`` int64, how many of them came with each of the last pushes.

    Raises:
        TypeError: ``max_bytes`` or ``max_age`` is not an int, ``balanced`` not a bool, ``dtype`` no real floating-point
            dtype.
        ValueError: ``max_bytes`` or ``max_age`` is less than 1.

    Example:
        >>> bank = ReferenceBank(2**20, max_age=5)
        >>> for _ in range(7):
        ...     feat_ref, y_ref = torch.randn(3, 4, 8, 8), torch.randint(3, (3, 8, 8))
        ...     bank.push(feat_ref, y_ref)
        >>> features, labels = bank.references()
        >>> features.shape, labels.shape
        (torch.Size([960, 4]), torch.Size([960]))
    """

    features: Tensor
    labels: Tensor
    counts: Tensor

    def __init__(
        self,
        max_bytes: int = 64 * 2**20,
        *,
        max_age: int = 10,
        balanced: bool = True,
        dtype: torch.dtype = torch.float32,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        for name, number in (("max_bytes", max_bytes), ("max_age", max_age)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{name}: got {number!r}, expected an int")
            if number < 1:
                raise ValueError(f"{name}: got {number}, expected 1 or more")
        check_bool("balanced", balanced)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype: got {dtype!r}, expected a real floating-point dtype such as torch.float16")
        self.max_bytes = max_bytes
        self.max_age = max_age
        self.balanced = balanced
        self.dtype = dtype
        self.ignore_index = ignore_index
        for name in _STATE:
            self.register_buffer(name, torch.empty(0))
        self.clear()

    def extra_repr(self) -> str:
        return (
            f"max_bytes={self.max_bytes}, max_age={self.max_age}, balanced={self.balanced}, "
            f"dtype={self.dtype}, ignore_index={self.ignore_index}, references={len(self.features)}"
        )

    def clear(self) -> None:
        """Forget everything, for instance before features come from another layer."""
        device = self.features.device
        self.features = torch.empty(0, 0, dtype=self.dtype, device=device)
        self.labels = torch.empty(0, dtype=torch.int64, device=device)
        self.counts = torch.empty(0, dtype=torch.int64, device=device)

    def references(self) -> tuple[Tensor, Tensor] | None:
        """All features ``(N, D)`` and labels ``(N,)`` or ``(N, C)``, for ``extra_ref``; None where there are none.

        They are the buffers themselves, not a copy.  A later push replaces the buffers and leaves these as they are.
        """
        return (self.features, self.labels) if len(self.features) else None

    @torch.no_grad()
    def push(self, feat_ref: Tensor, y_ref: Tensor) -> None:
        """Take in references of a pool, and drop those that are too old.

        The bank goes to the device of the features, and a GPU is waited for.  All pixels are looked at: where they are
        many times more than a push keeps, a sub-sampled map is faster.

        Args:
            feat_ref: features, ``(P, D, *R)`` or flat ``(N, D)``, floating point.
            y_ref: labels: ``(P, *R')`` class indices of any integer dtype or ``(P, C, *R')`` 0/1 of any real dtype;
                flat: ``(N,)`` or ``(N, C)``.  Where R and R' differ, both are sub-sampled to the coarser.

        Raises:
            TypeError: an argument is not a tensor, or of a dtype of the wrong kind.
            ValueError: shapes that do not fit, or are not those that the bank holds; labels out of range; features that
                are not finite in the bank's dtype; different devices; ``max_bytes`` without room for a reference
                of every label set.  The bank stays as it was.
        """
        feat_ref, y_ref = _on_one_grid(feat_ref, y_ref)
        multilabel = y_ref.ndim == feat_ref.ndim
        self._check_kind(feat_ref, y_ref)
        check_labels("y_ref", y_ref, multilabel=multilabel, ignore_index=self.ignore_index)
        used = ~is_ignored(y_ref, self.ignore_index)
        used = used.all(1) if multilabel else used
        places = used.flatten().nonzero().squeeze(1)
        labels = flatten(y_ref)[places].bool() if multilabel else y_ref.flatten()[places].long()

        chosen = self._choose(labels, feat_ref.shape[1])
        labels, places = labels[chosen], places[chosen]
        # Indexed on every axis: to flatten a map first is to copy all of it.
        features = feat_ref.movedim(1, -1)[torch.unravel_index(places, used.shape)].to(self.dtype)
        if not bool(features.isfinite().all()):
            raise ValueError(
                f"feat_ref: got {describe(feat_ref)} with values that are NaN or infinite as {self.dtype}, expected "
                f"finite ones, up to {torch.finfo(self.dtype).max:g}; look for a diverged network, or take "
                "dtype=torch.bfloat16"
            )

        count = torch.tensor([len(features)], device=features.device)
        counts = torch.cat([self.counts.to(count), count])
        stale = int(counts[: -self.max_age].sum())
        if stale < len(self.features):  # an empty bank fits no width and no kind of labels
            features = torch.cat([self.features[stale:].to(features), features])
            labels = torch.cat([self.labels[stale:].to(labels), labels])
        self.features, self.labels, self.counts = features, labels, counts[-self.max_age :].clone()

    def _check_kind(self, feat_ref: Tensor, y_ref: Tensor) -> None:
        """Refuse features and labels that the bank's cannot stand beside."""
        if len(self.features) == 0:
            return
        if feat_ref.shape[1] != self.features.shape[1]:
            raise ValueError(
                f"feat_ref: got {feat_ref.shape[1]} features per pixel (axis 1 of {tuple(feat_ref.shape)}), expected "
                f"the {self.features.shape[1]} that the bank holds; push features of one layer, or clear() the bank"
            )
        pushed = f"vectors of {y_ref.shape[1]} labels" if y_ref.ndim == feat_ref.ndim else "class indices"
        held = f"vectors of {self.labels.shape[1]} labels" if self.labels.ndim == 2 else "class indices"
        if pushed != held:
            raise ValueError(
                f"y_ref: got {pushed} {tuple(y_ref.shape)}, expected {held} as the bank holds; push labels of one "
                "kind, or clear() the bank"
            )

    def _choose(self, labels: Tensor, width: int) -> Tensor:
        """Which references of a push to keep, in their order."""
        set_ids, set_labels = encode_label_sets(labels)
        num_sets = len(set_labels)
        bytes_each = width * self.dtype.itemsize + (labels.shape[1] if labels.ndim == 2 else 8)
        room = (self.max_bytes // self.max_age - 8) // bytes_each  # 8 for the push's entry in counts
        if room < num_sets:
            raise ValueError(
                f"max_bytes: got {self.max_bytes}, room for {max(room, 0)} references of {width} features in each of "
                f"{self.max_age} pushes, expected room for one of each of the {num_sets} label sets in this push: "
                f"{self.max_age * (num_sets * bytes_each + 8)} bytes; raise it, lower max_age or store half precision"
            )
        sizes = torch.bincount(set_ids, minlength=num_sets)
        shares_of = _fair_shares if self.balanced else _proportional_shares
        shares = torch.tensor(shares_of(sizes.tolist(), room), dtype=torch.int64, device=sizes.device)
        # A set of n references is cut into as many parts as it keeps, and of each part the middle one stays.
        kept_set = torch.repeat_interleave(shares)
        rank = torch.arange(len(kept_set), device=kept_set.device) - (shares.cumsum(0) - shares)[kept_set]
        middle = (2 * rank + 1) * sizes[kept_set] // (2 * shares[kept_set])
        first = (sizes.cumsum(0) - sizes)[kept_set]
        return torch.argsort(set_ids, stable=True)[first + middle].sort().values

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved = {name: state_dict[prefix + name] for name in _STATE if prefix + name in state_dict}
        nbytes = sum(buffer.nbytes for buffer in saved.values())
        pushes = len(saved.get("counts", ()))
        if nbytes > self.max_bytes or pushes > self.max_age:
            error_msgs.append(
                f"{prefix.rstrip('.') or 'bank'}: got {nbytes} bytes and {pushes} pushes, expected at most "
                f"max_bytes={self.max_bytes} and max_age={self.max_age}; make the bank as the saved one was made"
            )
            return
        # torch loads only what has the shape that is there already.
        for name, buffer in saved.items():
            setattr(self, name, torch.empty_like(buffer, device=self.features.device))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _fair_shares(sizes: list[int], room: int) -> list[int]:
    """How many of each set to keep, ``room`` in all: a level that no set exceeds, and small sets whole."""
    shares = [0] * len(sizes)
    smallest_first = sorted(range(len(sizes)), key=sizes.__getitem__)
    for served, i in enumerate(smallest_first):
        shares[i] = min(sizes[i], room // (len(sizes) - served))
        room -= shares[i]
    return shares


def _proportional_shares(sizes: list[int], room: int) -> list[int]:
    """How many of each set to keep, at most ``room`` in all: one, and of the rest as much as its share of all."""
    total = sum(sizes)
    return sizes if total <= room else [1 + size * (room - len(sizes)) // total for size in sizes]


def _on_one_grid(feat_ref: Tensor, y_ref: Tensor) -> tuple[Tensor, Tensor]:
    """Checked, and maps sub-sampled to the coarser grid of the two."""
    check_floating("feat_ref", feat_ref)
    check_tensor("y_ref", y_ref)
    y_ref = upcast_unsigned(y_ref)
    spatial = feat_ref.ndim - 2
    if spatial > 0 and y_ref.ndim - spatial in (1, 2):
        grid = tuple(min(sides) for sides in zip(feat_ref.shape[2:], y_ref.shape[-spatial:], strict=True))
        feat_ref, y_ref = subsample(feat_ref, grid), subsample(y_ref, grid)
    check_references(feat_ref, y_ref)
    check_same_device(feat_ref=feat_ref, y_ref=y_ref)
    return feat_ref, y_ref
