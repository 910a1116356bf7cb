"""IoU, Dice and surface distances of every image and class, as a CSV file and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from examples.engine.checkpoint import atomic_write
from examples.engine.metrics import IoU, surface_distance

Values = TypeVar("Values", Tensor, NDArray[np.float64])
Spacing = tuple[float, float]  # mm from row to row and from column to column

PIXELS: Spacing = (1.0, 1.0)
PER_IMAGE = ("iou", "dice", "assd_px", "hd95_px", "assd_mm", "hd95_mm")


class Measures(IoU):
    """Collects, for every image and class, what :data:`PER_IMAGE` names.

    Args:
        spacings: Of every image that will come, in their order; None where it is not known.
    """

    def __init__(self, spacings: Sequence[Spacing | None]) -> None:
        super().__init__()
        self.spacings = spacings
        self.sizes: list[tuple[list[int], list[int]]] = []  # pixels of every class, predicted and true
        self.distances: list[Tensor] = []  # (1, C, 4)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        super().update(prediction, truth)
        for predicted, true in zip(prediction.cpu().numpy(), truth.cpu().numpy(), strict=True):
            spacing = self.spacings[len(self.sizes)]
            self.sizes.append((predicted.sum((1, 2)).tolist(), true.sum((1, 2)).tolist()))
            unknown = (np.nan, np.nan)
            rows = [
                (*surface_distance(a, b, PIXELS), *(surface_distance(a, b, spacing) if spacing else unknown))
                for a, b in zip(predicted, true, strict=True)
            ]
            self.distances.append(torch.tensor(rows, dtype=torch.float64)[None])

    def collected(self) -> tuple[list[Tensor], ...]:
        return (*super().collected(), self.distances)

    def values(self) -> NDArray[np.float64]:
        """Return (N, C, 6), as :data:`PER_IMAGE` names them."""
        iou = self.per_image().double().numpy()
        return np.concatenate([iou[..., None], dice(iou)[..., None], torch.cat(self.distances).numpy()], axis=2)

    def pixels(self) -> NDArray[np.int64]:
        """Return (N, 2, C): predicted and true."""
        return np.array(self.sizes)


def dice(iou: Values) -> Values:
    """Return of the same two masks."""
    return 2 * iou / (1 + iou)


class Evaluation(NamedTuple):
    """What was measured."""

    images: tuple[str, ...]  # names, one an image
    classes: tuple[str, ...]  # names, one a class
    measures: Measures  # of all images, in their order
    found: str  # of which data, in words
    csv: Path  # where the measures of every image were written to


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, all of it or nothing."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    atomic_write(path, text.getvalue().encode(errors="surrogateescape"))


def write_measures(evaluation: Evaluation) -> None:
    """Write a line for every image and class."""
    rows = []
    values, pixels = evaluation.measures.values(), evaluation.measures.pixels()
    for image, of_image, (predicted, true) in zip(evaluation.images, values, pixels, strict=True):
        for name, row, *sizes in zip(evaluation.classes, of_image.tolist(), true, predicted, strict=True):
            rows.append([image, name, *(f"{value:.6g}" for value in row), *sizes])
    write_csv(evaluation.csv, ["image", "class", *PER_IMAGE, "truth_pixels", "predicted_pixels"], rows)


def table(evaluation: Evaluation) -> Table:
    """Return a row for every class, and their mean; distances over the images where the class is found and there."""
    measures = evaluation.measures
    means = torch.from_numpy(measures.values()).nanmean(0)  # (C, 6)
    pooled = measures.pooled().double()
    figures = torch.stack([means[:, 0], pooled, means[:, 1], dice(pooled), *means[:, 2:].T], dim=1)
    columns = ["IoU", "pooled", "Dice", "pooled", "ASSD px", "HD95 px", "ASSD mm", "HD95 mm"]
    if not any(measures.spacings):
        figures, columns = figures[:, :6], columns[:6]
    predicted, true = (measures.pixels() > 0).transpose(1, 0, 2)
    rows = Table(box=SIMPLE)
    rows.add_column("class")
    for column in ("images", "missed", "false", *columns):
        rows.add_column(column, justify="right")
    for c, name in enumerate(evaluation.classes):
        counts = (true[:, c], true[:, c] & ~predicted[:, c], predicted[:, c] & ~true[:, c])
        rows.add_row(escape(name), *(str(count.sum()) for count in counts), *map(figure, figures[c].tolist()))
    rows.add_section()
    rows.add_row("mean", "", "", "", *map(figure, figures.nanmean(0).tolist()))
    return rows


def figure(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
