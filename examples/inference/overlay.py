"""A picture of an image with what was found in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from examples.logging.pictures import color, outlined, tinted

LARGEST, SMALLEST = 1024, 384  # longer side of the image in the picture
FONT_SIZE = 14
PAD = 6


def draw_overlay(image: Tensor, masks: Tensor, names: Sequence[str]) -> Image.Image:
    """Draw masks in translucent colors with an outline over the image, and a legend of those that are there below.

    Args:
        image: (1 or 3, H, W) float32 in [-1, 1]; it is enlarged or shrunk so that details can be seen.
        masks: (C, H, W) bool.
        names: One a mask.
    """
    height, width = shown_size(image)
    shown = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
    masks = F.interpolate(masks[None].float(), (height, width), mode="nearest-exact")[0] > 0.5
    canvas = outlined(tinted(shown, masks), masks)
    picture = Image.fromarray((canvas * 255).round().to(torch.uint8).numpy())
    legend = draw_legend(width, [(name, color(c)) for c, name in enumerate(names) if masks[c].any()])
    whole = Image.new("RGB", (width, height + legend.height), "white")
    whole.paste(picture, (0, 0))
    whole.paste(legend, (0, height))
    return whole


def shown_size(image: Tensor) -> tuple[int, int]:
    longest = max(image.shape[1:])
    factor = min(1, LARGEST / longest) if longest >= SMALLEST else -(-SMALLEST // longest)
    height, width = (max(1, round(side * factor)) for side in image.shape[1:])
    return height, width


def draw_legend(width: int, entries: Sequence[tuple[str, str]]) -> Image.Image:
    """Draw colored squares with names, in as many lines as they need."""
    font = ImageFont.load_default(FONT_SIZE)
    places: list[tuple[int, int, str, str]] = []
    x, y, line = PAD, PAD, FONT_SIZE + PAD
    for name, fill in entries or [("nothing found", "#ffffff")]:
        text = name.replace("_", " ")
        wide = FONT_SIZE + PAD + round(font.getlength(text)) + 2 * PAD
        if x > PAD and x + wide > width:
            x, y = PAD, y + line
        places.append((x, y, text, fill))
        x += wide
    legend = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(legend)
    for left, top, text, fill in places:
        draw.rectangle((left, top, left + FONT_SIZE - 2, top + FONT_SIZE - 2), fill=fill)
        draw.text((left + FONT_SIZE + PAD, top - 2), text, fill="black", font=font)
    return legend
