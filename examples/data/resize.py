"""How an image comes into the square that it is trained at, and predictions back out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Placement:
    """Rows of an image, resized with their aspect kept into the middle of a square."""

    height: int  # of the original image
    width: int
    size: int  # side of the square
    # The first row that is kept and the one after the last; None: all. They may lie outside the image
    rows: tuple[int, int] | None = None
    # (width,) by how many rows each column is moved up before that; None: none is moved
    shift: NDArray[np.int64] | None = None

    @property
    def cut_sides(self) -> tuple[int, int]:
        """Height and width of what is kept."""
        top, bottom = self.rows or (0, self.height)
        return bottom - top, self.width

    def cut(self, values: NDArray[Any], fill: float) -> NDArray[Any]:
        """Keep the rows of (height, width); ``fill`` is where there are none."""
        if self.rows is None:
            return values
        source = np.arange(*self.rows)[:, None] + (0 if self.shift is None else self.shift)
        source = np.broadcast_to(source, self.cut_sides)
        inside = (source >= 0) & (source < self.height)
        taken = np.take_along_axis(values, source.clip(0, self.height - 1), 0)
        return np.where(inside, taken, np.asarray(fill, values.dtype))

    def place(self, values: NDArray[Any], fill: float, resampling: Image.Resampling) -> NDArray[Any]:
        """Return (height, width) -> (size, size); ``fill`` is the padding."""
        return pad(resize(Image.fromarray(self.cut(values, fill)), self.size, resampling), self.size, fill)

    def shown(self) -> NDArray[np.bool_]:
        """Return which pixels of the square (size, size) show the image."""
        return self.place(np.ones((self.height, self.width), np.uint8), 0, Image.Resampling.NEAREST) == 1

    def restore(self, logits: Tensor, *, multilabel: bool) -> Tensor:
        """Return logits (C, size, size) -> (C, height, width), bilinear; what was not kept is background."""
        height, width = shown_sides((self.cut_sides[1], self.cut_sides[0]), self.size)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        shown = logits[None, :, top : top + height, left : left + width]
        kept = F.interpolate(shown, self.cut_sides, mode="bilinear", align_corners=False)[0]
        if self.rows is None:
            return kept
        source = torch.arange(self.height)[:, None] - self.rows[0]
        source = source - (torch.zeros(self.width) if self.shift is None else torch.from_numpy(self.shift)).long()
        source = source.to(logits.device)
        inside = (source >= 0) & (source < len(kept[0]))
        restored = kept.gather(1, source.clamp(0, len(kept[0]) - 1).expand(len(kept), -1, -1))
        background = torch.full_like(restored, -torch.inf)
        if not multilabel:
            background[0] = 0
        return torch.where(inside, restored, background)


def shown_sides(original: tuple[int, int], size: int) -> tuple[int, int]:
    """Return height and width that an image of (width, height) has when its longer side is ``size``."""
    width, height = (max(1, round(side * size / max(original))) for side in original)
    return height, width


def resize(image: Image.Image, size: int, resampling: Image.Resampling) -> NDArray[Any]:
    height, width = shown_sides(image.size, size)
    return np.array(image.resize((width, height), resampling))


def pad(values: NDArray[Any], size: int, fill: float) -> NDArray[Any]:
    """Put (h, w) into the middle of (size, size)."""
    if values.dtype == bool:
        values = values.astype(np.int8)
    padded = np.full((size, size), fill, dtype=values.dtype)
    top, left = (size - values.shape[0]) // 2, (size - values.shape[1]) // 2
    padded[top : top + values.shape[0], left : left + values.shape[1]] = values
    return padded


def to_square(image: NDArray[np.float32], size: int) -> Tensor:
    """Bring an image (C, H, W) into the middle of (C, size, size); what is left is filled with its darkest value."""
    shown = np.stack([resize(Image.fromarray(channel), size, Image.Resampling.BOX) for channel in image])
    return torch.from_numpy(np.stack([pad(channel, size, shown.min()) for channel in shown]))
