"""The reference pool: a few labeled images, drawn anew for every step, with every class present (Eq. 1)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from .checks import (
    FRACTIONS,
    check_bool,
    check_int,
    check_labels,
    check_real,
    check_tensor,
    describe,
    is_ignored,
    upcast_unsigned,
)

# Uniform draws to reject before a cover is constructed instead.
_MAX_REJECTIONS = 1000

# Steps of the search for a cover: at construction, where its answer is final, and per draw.
_FIRST_SEARCH_STEPS = 20_000
_DRAW_SEARCH_STEPS = 1_000

_CHANNEL_HINT = " (with a channel axis of length 1, as MONAI loads maps: label[0].long(), of a batch y[:, 0].long())"


class ReferencePool(Sampler[list[int]]):
    """Batch sampler over the labeled images: every draw holds every class.

        loader = DataLoader(labeled, batch_sampler=ReferencePool(label_maps))

    Iteration never ends unless ``length`` says so; zip it with the loader of the unlabeled images.  Draws are without
    replacement where there are at least ``size`` labeled images, else with.  They are uniform over the draws that cover
    all classes, by rejection, as long as one in about a thousand draws does; where covering draws are rarer, a
    randomized search constructs one: draws then still vary, but not all covers come up equally often.

    Args:
        labels: labels of the labeled images: a sequence or map-style data set of label maps, tensors or arrays, each
            ``(*S)`` class indices of an integer or bool dtype, or ``(C, *S)`` 0/1 of any real dtype; or one
            ``(N_l, C)`` tensor or array of 0/1, which class is present in which image.
        size: images per draw, p of Eq. 1.
        num_classes: all of these must occur; None: all that occur in any label map.
        multilabel: whether label maps are ``(C, *S)`` 0/1.  Must be said where maps of three axes or more hold nothing
            but 0 and 1: they may be C labels, or volumes of two classes.  None: not for other maps, and for floating
            point, which class indices cannot have, yes.  False reads a tensor of two axes as maps ``(N_l, S)``, too.
        length: draws in one iteration (an epoch), and what ``len`` returns; the next one goes on with the stream of
            draws.  None: iteration never ends.
        generator: source of randomness on the CPU; None: one seeded from torch's global generator.
        ignore_index: value of pixels without a label.

    Raises:
        TypeError: ``size``, ``num_classes``, ``length`` or ``ignore_index`` is not an int, ``multilabel`` not a bool,
            ``generator`` not a torch.Generator; labels are not dense tensors or arrays of a real dtype.
        ValueError: no labels, sizes out of range, values out of range, label maps that may be C labels or volumes, or
            classes that no draw of ``size`` images can cover (they are named).

    Example:
        >>> pool = ReferencePool(torch.tensor([[1, 0], [0, 1], [1, 0]]), size=2)
        >>> 1 in pool.sample()
        True
    """

    def __init__(
        self,
        labels: Sequence[Any] | Tensor | Any,
        size: int = 3,
        *,
        num_classes: int | None = None,
        multilabel: bool | None = None,
        length: int | None = None,
        generator: torch.Generator | None = None,
        ignore_index: int = -100,
    ) -> None:
        for name, number in (("size", size), ("num_classes", num_classes), ("length", length)):
            if number is not None:
                check_int(name, number)
                if number < 1:
                    raise ValueError(f"{name}: got {number}, expected 1 or more")
        if multilabel is not None:
            check_bool("multilabel", multilabel)
        check_int("ignore_index", ignore_index)
        if generator is not None and not (isinstance(generator, torch.Generator) and generator.device.type == "cpu"):
            raise TypeError(
                f"generator: got {generator!r}, expected a torch.Generator on the CPU; for a seed pass "
                "torch.Generator().manual_seed(seed)"
            )
        self.size = size
        self.length = length
        with torch.device("cpu"):  # whatever the default device is
            self.presence, self.classes = _presence(labels, num_classes, multilabel, ignore_index)
            if generator is None:
                generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            self.generator = generator
            self._known_cover = self._find_cover()

    def sample(self) -> list[int]:
        """Draw once: ``size`` indices into the labels, in random order."""
        with torch.device("cpu"):
            for _ in range(_MAX_REJECTIONS):
                draw = self._uniform(self.size)
                if bool(self.presence[draw].any(0).all()):
                    return draw.tolist()
            cover = torch.tensor(self._search(self.generator, _DRAW_SEARCH_STEPS) or self._known_cover)
            if len(self.presence) >= self.size:
                others = torch.arange(len(self.presence))
                others = others[~torch.isin(others, cover)]
                extra = others[torch.randperm(len(others), generator=self.generator)]
            else:
                extra = self._uniform(self.size)
            draw = torch.cat([cover, extra[: self.size - len(cover)]])
            return draw[torch.randperm(self.size, generator=self.generator)].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        for _ in itertools.count() if self.length is None else range(self.length):
            yield self.sample()

    def __len__(self) -> int:
        """Return the draws in one iteration.

        Raises:
            TypeError: it never ends.
        """
        if self.length is None:
            raise TypeError("length: got None, so iteration never ends; for an epoch of N draws pass length=N")
        return self.length

    def __bool__(self) -> bool:
        return True  # or Python would ask for the length

    def state_dict(self) -> dict[str, Tensor]:
        """Return where the stream of draws stands; with workers, which draw ahead, only at the end of an epoch."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue the stream of draws exactly where :meth:`state_dict` was taken.

        Raises:
            KeyError: ``state`` did not come from :meth:`state_dict`.
        """
        self.generator.set_state(state["generator"])

    def _uniform(self, count: int) -> Tensor:
        n = len(self.presence)
        if n >= count:
            return torch.randperm(n, generator=self.generator)[:count]
        return torch.randint(n, (count,), generator=self.generator)

    def _find_cover(self) -> list[int]:
        """Return some cover by at most ``size`` images, found without touching the stream of draws, or raise."""
        absent = self.classes[~self.presence.any(0)].tolist()
        if absent:
            raise ValueError(
                f"labels: got {len(self.presence)} labeled images of which none holds class {_listing(absent)}, "
                "expected every class in at least one; label an image that shows it, or lower num_classes"
            )
        greedy: list[int] = []
        covered = torch.zeros_like(self.presence[0])
        lacking: list[int] = []
        while not bool(covered.all()):
            greedy.append(int((self.presence & ~covered).sum(1).argmax()))
            covered = covered | self.presence[greedy[-1]]
            if len(greedy) == self.size:
                lacking = self.classes[~covered].tolist()
        if not lacking:
            return greedy
        cover = self._search(torch.Generator().manual_seed(0), _FIRST_SEARCH_STEPS)
        if cover is None:
            raise ValueError(
                f"size: got {self.size}, but found no {self.size} of the {len(self.presence)} labeled images that "
                f"hold every class together (a good draw still lacks class {_listing(lacking)}); {len(greedy)} images "
                f"do: use size={len(greedy)}, or label an image that shows several of these classes"
            )
        return cover

    def _search(self, generator: torch.Generator, steps: int) -> list[int] | None:
        """Return a random cover by at most ``size`` images, or None if none was found in so many steps.

        The search is depth first over the images that hold the scarcest open class.
        """
        scarcity = self.presence.sum(0)

        def extend(cover: list[int], covered: Tensor) -> list[int] | None:
            nonlocal steps
            steps -= 1
            missing = ~covered
            room = self.size - len(cover)
            open_classes = int(missing.sum())
            if open_classes == 0:
                return cover
            # No `room` images cover more than `room` times what the best one adds.
            if steps < 0 or int((self.presence & missing).sum(1).max()) * room < open_classes:
                return None
            scarcest = int(torch.where(missing, scarcity, len(self.presence) + 1).argmin())
            candidates = self.presence[:, scarcest].nonzero().squeeze(1)
            for i in candidates[torch.randperm(len(candidates), generator=generator)].tolist():
                found = extend([*cover, i], covered | self.presence[i])
                if found is not None:
                    return found
            return None

        return extend([], torch.zeros_like(self.presence[0]))


def _listing(classes: list[int]) -> str:
    return ", ".join(map(str, classes))


def _presence(
    labels: Sequence[Any] | Tensor | Any, num_classes: int | None, multilabel: bool | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return ``(N_l, C)`` bool, which class is present in which image, and ``(C,)``, the classes."""
    if isinstance(labels, Tensor):
        check_tensor("labels", labels)
    if not hasattr(labels, "__len__") or getattr(labels, "ndim", None) == 0:
        raise TypeError(f"labels: got {type(labels).__name__}, expected a sequence of label maps or an (N_l, C) matrix")
    if len(labels) == 0:
        raise ValueError("labels: got none, expected at least one labeled image")
    if getattr(labels, "ndim", None) == 2 and multilabel is not False:
        matrix = _as_tensor("labels", labels)
        try:
            check_labels("labels", matrix, multilabel=True, ignore_index=ignore_index)
        except ValueError as error:
            raise ValueError(f"{error}; for class maps of one axis say multilabel=False") from None
        if matrix.shape[1] == 0 or num_classes not in (None, matrix.shape[1]):
            raise ValueError(
                f"labels: got a presence matrix {describe(matrix)}, expected {num_classes or 'one or more'} columns "
                "(num_classes)"
            )
        return matrix == 1, torch.arange(matrix.shape[1])

    maps = [_as_map(i, labels[i]) for i in range(len(labels))]
    if multilabel is None:
        # Class indices have no fractions, and a channel axis of length 1 may be left over from loading.
        multilabel = maps[0].is_floating_point() and maps[0].ndim >= 3 and len(maps[0]) != 1
        if not multilabel and maps[0].ndim >= 3 and all(_is_binary(m, ignore_index) for m in maps):
            raise ValueError(
                f"multilabel: got None for label maps {describe(maps[0])} of 0 and 1 alone, which may be "
                f"{len(maps[0])} labels (C, *S) or volumes of two classes; say multilabel=True or multilabel=False"
                f"{_CHANNEL_HINT if len(maps[0]) == 1 else ''}"
            )
    if multilabel:
        counts = {len(m) for m in maps}
        if counts == {0} or len(counts) > 1 or num_classes not in (None, len(maps[0])):
            raise ValueError(
                f"labels: got label maps with first axes {sorted(counts)}, read as (C, *S) 0/1, expected "
                f"{num_classes or 'one number above 0 of'} labels; pass multilabel=False for volumes of class indices"
            )
        for i, m in enumerate(maps):
            check_labels(f"labels[{i}]", m, multilabel=True, ignore_index=ignore_index)
        return torch.stack([(m == 1).flatten(1).any(1) for m in maps]), torch.arange(len(maps[0]))

    for i, m in enumerate(maps):
        if m.is_floating_point():
            # As integers, fractions would all be class 0.
            advice = FRACTIONS if bool((m != m.round()).any()) else f"convert them with .long(){_CHANNEL_HINT}"
            raise TypeError(f"labels[{i}]: got {describe(m)}, expected class indices of an integer dtype; {advice}")
        check_labels(f"labels[{i}]", m, multilabel=False, ignore_index=ignore_index, num_classes=num_classes)
    present = [torch.unique(m[~is_ignored(m, ignore_index)].long()) for m in maps]
    classes = torch.arange(num_classes) if num_classes else torch.unique(torch.cat(present))
    if len(classes) == 0:
        raise ValueError(f"labels: got ignore_index={ignore_index} at every pixel, expected some labeled pixels")
    return torch.stack([torch.isin(classes, found) for found in present]), classes


def _is_binary(labels: Tensor, ignore_index: int) -> bool:
    return bool(((labels == 0) | (labels == 1) | is_ignored(labels, ignore_index)).all())


def _as_map(i: int, label: Any) -> Tensor:
    # Nested lists are refused: they look like a presence matrix, and would be read as label maps.
    if isinstance(label, Tensor) or hasattr(label, "__array__") or hasattr(label, "__array_interface__"):
        label_map = _as_tensor(f"labels[{i}]", label)
        if label_map.ndim > 0:
            return label_map
    raise TypeError(
        f"labels[{i}]: got {type(label).__name__}, expected a label map as tensor or array; for a data set of (image, "
        "label) pairs pass [label for _, label in dataset], for a presence matrix torch.tensor(labels)"
    )


def _as_tensor(name: str, labels: Any) -> Tensor:
    try:
        if isinstance(labels, np.ndarray):
            # torch takes neither flipped arrays nor those in another machine's order of bytes.
            labels = np.asarray(labels, labels.dtype.newbyteorder("="), order="C")
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{name}: got {type(labels).__name__}, which cannot be read as a tensor ({error})"
        raise TypeError(f"{got}; pass an array, as numpy.asarray(label) is") from error
    check_tensor(name, tensor)
    check_real(name, tensor)
    return upcast_unsigned(tensor)
