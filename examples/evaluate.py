"""Measure what was trained: IoU, Dice and surface distances of every class, of each image and on average.

    python -m examples.evaluate runs/jsrt/rpg_plus-n3-s0-seed0/best.pt
    python -m examples.evaluate runs/jsrt/rpg_plus-n3-s0-seed0/best.pt folder --root my_radiographs --part all

The first tests as the run itself did: its IoU is that of result.json. The second tests on other data, whose labels are
found by their names; those that --fuse made in training count as well.

ASSD is the average symmetric surface distance, HD95 the larger of the 95th percentiles of the distances from either
surface to the other, in pixels of the size that is evaluated at and, where the spacing is known, in mm.

A class that is in neither the prediction nor the truth of an image has no IoU and no Dice there; one that is in only
one of them has 0 of both; neither has a distance. What there is not is "nan" in the CSV file and left out of means. The
table counts the images whose truth shows a class, of these the ones where it was missed (nothing of it predicted), and
of the others the ones where it was predicted all the same (false): distances say nothing about either.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import SimpleITK
import torch
import tyro
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from examples.config import Config, DatasetName
from examples.data import Dataset, Images, ImageSet, LazyImages, load
from examples.data.folder.dataset import load_undivided
from examples.data.retouch.index import Volume
from examples.engine.checkpoint import atomic_write
from examples.engine.evaluation import evaluate
from examples.engine.metrics import IoU, known_pixels, surface_distance
from examples.inference.trained import Labels, Trained, read_trained

Part = Literal["test", "validation", "labeled", "all"]
Values = TypeVar("Values", Tensor, NDArray[np.float64])
Spacing = tuple[float, float]  # mm from row to row and from column to column

JSRT_FIELD = 2048 * 0.175  # mm: side of the film
PIXELS: Spacing = (1.0, 1.0)
PER_IMAGE = ("iou", "dice", "assd_px", "hd95_px", "assd_mm", "hd95_mm")


@dataclass(frozen=True)
class Evaluate:
    """What to measure, and on what."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A run's best.pt or last.pt, or its folder: then its best.pt."""

    dataset: Annotated[tyro.conf.Positional[DatasetName | None], tyro.conf.arg(metavar="[DATASET]")] = None
    """As for examples.train; default: the one that was trained on, in the same division."""

    root: Path | None = None
    """Folder that the data set is read from; default: that of the run."""

    part: Part = "test"
    """Which of its images; all: all that have labels, those that were trained on among them."""

    labeled: int | None = None
    """Labelled images of the division, as for examples.train; default: as many as in the run."""

    split: int | None = None
    """Which division, as for examples.train; default: that of the run."""

    group_pattern: str | None = None
    """folder: as for examples.train; default: that of the run."""

    spacing: Spacing | None = None
    """mm from row to row and from column to column of the masks; jsrt, retouch: known; default: pixels only."""

    csv: Path | None = None
    """File for the measures of every image; default: evaluation-DATASET-PART.csv beside the checkpoint."""

    overwrite: bool = False
    """Replace that file."""

    device: str = "cpu"
    """Where to predict: cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        if self.spacing is not None and not min(self.spacing) > 0:
            raise ValueError(f"spacing: got {self.spacing}, expected two lengths in mm, more than 0")


class Measures(IoU):
    """Collects, for every image and class, what :data:`PER_IMAGE` names.

    Args:
        spacings: Of every image that will come, in their order; None where it is not known.
    """

    def __init__(self, spacings: Sequence[Spacing | None]) -> None:
        super().__init__()
        self.spacings = spacings
        self.sizes: list[tuple[list[int], list[int]]] = []  # pixels of every class, predicted and true
        self.distances: list[NDArray[np.float64]] = []  # (C, 4)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        super().update(prediction, truth)
        for predicted, true in zip(prediction.cpu().numpy(), truth.cpu().numpy(), strict=True):
            spacing = self.spacings[len(self.sizes)]
            self.sizes.append((predicted.sum((1, 2)).tolist(), true.sum((1, 2)).tolist()))
            unknown = (np.nan, np.nan)
            self.distances.append(
                np.array(
                    [
                        (*surface_distance(a, b, PIXELS), *(surface_distance(a, b, spacing) if spacing else unknown))
                        for a, b in zip(predicted, true, strict=True)
                    ]
                )
            )

    def values(self) -> NDArray[np.float64]:
        """(N, C, 6), as :data:`PER_IMAGE` names them."""
        iou = self.per_image().double().numpy()
        return np.concatenate([iou[..., None], dice(iou)[..., None], np.stack(self.distances)], axis=2)

    def pixels(self) -> NDArray[np.int64]:
        """(N, 2, C): predicted and true."""
        return np.array(self.sizes)


def dice(iou: Values) -> Values:
    """Of the same two masks."""
    return 2 * iou / (1 + iou)


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        images: Names, one an image.
        classes: Names, one a class.
        measures: ...
        found: Of which data, in words.
        csv: Where the measures of every image were written to.
    """

    images: tuple[str, ...]
    classes: tuple[str, ...]
    measures: Measures
    found: str
    csv: Path


@dataclass(frozen=True)
class Selection:
    """Some of other images."""

    source: Images
    indices: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.source.names[i] for i in self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Sequence[int]) -> ImageSet:
        return self.source[[self.indices[i] for i in indices]]

    def to(self, device: str) -> Selection:
        return replace(self, source=self.source.to(device))


class RemappedOutputs(nn.Module):
    """A network whose outputs are those of other names, each the largest of the outputs that are given for it.

    Of labels that may overlap this is their union: one of them is above the threshold where the largest is.
    """

    def __init__(self, net: nn.Module, outputs: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.net = net
        self.outputs = outputs

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.net(images)
        return torch.stack([logits[:, list(outputs)].amax(1) for outputs in self.outputs], dim=1), features


def measure(options: Evaluate) -> Evaluation:
    """Predicts all images, measures, and writes the CSV file.

    Raises:
        OSError: something cannot be read or written.
        ValueError: the checkpoint is none, or does not fit the data, or options cannot be right.
    """
    trained = read_trained(options.checkpoint, options.device)
    config = config_for(trained, options)
    path = options.csv or trained.path.with_name(f"evaluation-{config.dataset}-{options.part}.csv")
    if path.exists() and not options.overwrite:
        raise FileExistsError(f"csv: {path} is there; pass --overwrite or another --csv")
    # How a folder would be divided for a training does not matter for all of its images.
    data = load_undivided(config) if (config.dataset, options.part) == ("folder", "all") else load(config)
    labels = trained.labels or labels_from(data, trained, options)
    net = matched(trained.net(labels), labels, data)
    if labels.fused is not None and set(labels.names) <= set(data.class_names):
        by_name = {label: [labels.names[i] for i in fine] for label, fine in labels.fused.items()}
        fused = {label: tuple(map(data.class_names.index, fine)) for label, fine in by_name.items()}
        data = replace(data, fused=fused)
    chosen = choose(data, options.part)
    if not any(map(len, chosen)):
        raise ValueError(f"part: {options.part} has no image with labels in {data.found}")
    names = tuple(name for part in chosen for name in part.names)
    measures = Measures(spacings_of(names, data, config, options.spacing))
    for part in chosen:
        evaluate(net, part, data, measures)
    evaluation = Evaluation(names, data.evaluated_names, measures, data.found, path)
    write_csv(evaluation)
    return evaluation


def config_for(trained: Trained, options: Evaluate) -> Config:
    """The run's configuration with the data set that is asked for."""
    given = {
        name: getattr(options, name)
        for name in ("dataset", "root", "labeled", "split", "group_pattern")
        if getattr(options, name) is not None
    }
    config = replace(trained.config, **given)
    # The checkpoint knows what is fused: the file that told it may be elsewhere by now.
    return config if trained.labels is None else replace(config, fuse=None)


def labels_from(data: Dataset, trained: Trained, options: Evaluate) -> Labels:
    """Those of the run's own data, for a checkpoint from before it held them.

    Raises:
        ValueError: these are other data: nothing tells whether their labels are those that were trained.
    """
    root = trained.config.root
    elsewhere = options.root is not None and root is not None and options.root.resolve() != root.resolve()
    if elsewhere or options.dataset not in (None, trained.config.dataset):
        raise ValueError(
            f"checkpoint: {trained.path} is from before checkpoints held the names of classes, and can only be"
            f" evaluated on the data that it was trained on, in {root}; train again"
        )
    return Labels.of(data)


def matched(net: nn.Module, labels: Labels, data: Dataset) -> nn.Module:
    """The network with the outputs that the data set's classes want, found by their names.

    Raises:
        ValueError: it has none for one of them.
    """
    if labels.multilabel != data.multilabel:
        kinds = {True: "labels that may overlap", False: "classes that exclude each other"}
        raise ValueError(f"dataset: it has {kinds[data.multilabel]}, the network {kinds[labels.multilabel]}")
    if data.class_names == labels.names:
        return net
    known: dict[str, tuple[int, ...]] = {name: (i,) for i, name in enumerate(labels.names)}
    if labels.multilabel:
        known = (labels.fused or {}) | known
    lacking = [name for name in data.class_names if name not in known]
    lacking += [] if labels.multilabel else [name for name in labels.names if name not in data.class_names]
    if lacking:
        raise ValueError(
            f"dataset: its classes are {', '.join(data.class_names)}, those of the network {', '.join(known)}; expected"
            f" the same, but {lacking[0]} is in one of them alone (classes.txt names those of a folder)"
        )
    if labels.multilabel:
        return RemappedOutputs(net, [known[name] for name in data.class_names])
    return RemappedOutputs(net, [(0,), *((1 + known[name][0],) for name in data.class_names)])


def choose(data: Dataset, part: Part) -> list[Images]:
    """The images to measure on, no name twice; of "all", those that have labels."""
    if part != "all":
        return [getattr(data, part)]
    chosen: list[Images] = []
    seen: set[str] = set()
    for images in (data.unlabeled, data.validation, data.test):
        new = [i for i, name in enumerate(images.names) if name not in seen]
        chosen.append(Selection(images, tuple(i for i in new if known_pixels(images[[i]].labels).any())))
        seen.update(images.names)
    return chosen


def spacings_of(names: Sequence[str], data: Dataset, config: Config, given: Spacing | None) -> Sequence[Spacing | None]:
    """The spacing of every image at the size that it is evaluated at; None where it is not known."""
    if given is None and config.dataset == "jsrt":
        given = (JSRT_FIELD / config.image_size,) * 2
    if given is not None or config.dataset != "retouch":
        return [given] * len(names)
    volumes = {
        name: volume
        for part in (data.unlabeled, data.validation, data.test)
        if isinstance(part, LazyImages)
        for name, (volume, _) in zip(part.names, part.keys, strict=True)
    }
    spacings = {volume: header_spacing(volume) for volume in set(volumes.values())}
    return [spacings[volumes[name]] for name in names]


def header_spacing(volume: Volume) -> Spacing | None:
    """Of the rows and columns of a volume's B-scans; None where its header tells none."""
    path = volume.folder / "oct.mhd"
    if "ElementSpacing" not in path.read_text(encoding="latin-1"):
        return None
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    x, y, _ = reader.GetSpacing()
    return y, x


# --- how it is shown


def write_csv(evaluation: Evaluation) -> None:
    """A line for every image and class."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["image", "class", *PER_IMAGE, "truth_pixels", "predicted_pixels"])
    values, pixels = evaluation.measures.values(), evaluation.measures.pixels()
    for image, of_image, (predicted, true) in zip(evaluation.images, values, pixels, strict=True):
        for name, row, *sizes in zip(evaluation.classes, of_image.tolist(), true, predicted, strict=True):
            lines.writerow([image, name, *(f"{value:.6g}" for value in row), *sizes])
    evaluation.csv.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(evaluation.csv, text.getvalue().encode())


def table(evaluation: Evaluation) -> Table:
    """A row for every class, and their mean; distances over the images where the class is found and there."""
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


def main() -> None:
    torch.set_flush_denormal(True)  # as in training: tiny activations would slow a CPU down
    try:
        options = tyro.cli(Evaluate, description=__doc__, prog="python -m examples.evaluate")
        evaluation = measure(options)
    except (ValueError, OSError) as error:  # the message says what to do; a traceback would bury it
        sys.exit(f"error: {error}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(f"{options.part}, {len(evaluation.images)} images; {evaluation.found}", soft_wrap=True, markup=False)
    console.print(table(evaluation))
    console.print(f"every image: {evaluation.csv}", soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    main()
