"""transfer.html: proposed labels to look through, and what to label next; pictures lie beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from examples.engine.checkpoint import atomic_write
from examples.engine.metrics import IoU
from examples.logging.pictures import color, encoded, in_heat, tinted
from examples.reporting.templates import template

PANEL = 256  # longer side of a picture in a strip
GAP = 4
NEXT = 12  # images that are named first

PAGE = template("transfer_page.html")


class Row(NamedTuple):
    """What is kept of an image once its files are written."""

    name: str
    certainty: float  # mean weight
    explained: float  # mean cosine of its pixels' nearest references
    iou: IoU | None  # of the masks, where they are scored

    @property
    def source(self) -> str:
        """Where the page finds its strip."""
        return f"strips/{quote(os.fsencode(self.name))}.jpg"


def draw_strip(image: Tensor, masks: Tensor, weights: Tensor) -> bytes:
    """Draw an image, its proposed masks and their weights side by side, as a JPEG file.

    Args:
        image: (1 or 3, H, W) float32 in [-1, 1].
        masks: (C, H, W) bool.
        weights: (H, W) in [0, 1].
    """
    factor = PANEL / max(image.shape[1:])
    size = [max(1, round(side * factor)) for side in image.shape[1:]]
    small = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    covered = F.interpolate(masks[None].float(), size, mode="area")[0] > 0.5
    trusted = F.interpolate(weights[None, None], size, mode="area")[0, 0].clamp(0, 1)
    gap = torch.ones(size[0], GAP, 3)
    strip = torch.cat([tinted(small), gap, tinted(small, covered), gap, in_heat(trusted)], dim=1)
    return encoded(Image.fromarray((255 * strip).round().to(torch.uint8).numpy()), "jpeg", quality=85)


def write_page(path: Path, result: Mapping[str, Any], rows: Sequence[Row], names: Sequence[str]) -> None:
    """Write the page of what transfer.json holds and of the images, those to be labeled next first."""
    page = PAGE.render(
        result=result,
        swatches={name: color(label) for label, name in enumerate(names)},
        to_label=rows[:NEXT],
        rows=sorted(rows, key=lambda row: row.certainty),
    )
    atomic_write(path, page.encode(errors="replace"))
