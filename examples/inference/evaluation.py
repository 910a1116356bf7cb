"""What a trained network is worth: on the test images of its own run, or on other data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor, nn

from examples.config import Config, DatasetName, require
from examples.data import Dataset, Images, LazyImages, Selection, load
from examples.data.division import Part
from examples.data.files import read_information
from examples.data.folder.dataset import load_labeled
from examples.data.retouch.index import Volume
from examples.engine.checkpoint import make_folder
from examples.engine.evaluation import evaluate
from examples.engine.metrics import known_pixels
from examples.inference.measures import Evaluation, Measures, Spacing, write_measures
from examples.inference.trained import Labels, Trained, read_trained

JSRT_FIELD = 2048 * 0.175  # mm: side of the film


@dataclass(frozen=True)
class Evaluate:
    """What to measure, and on what."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A run's best.pt or last.pt, or its folder: then its best.pt."""

    dataset: Annotated[tyro.conf.Positional[DatasetName | None], tyro.conf.arg(metavar="[DATASET]")] = None
    """As for examples.train; default: the one that was trained on."""

    root: Path | None = None
    """Folder that the data set is read from; default: that of the run."""

    part: Part | Literal["all"] = "test"
    """Which of its images; all: all that have labels, those that were trained on among them."""

    labeled: int | None = None
    """Labeled images of a division to be drawn, as for examples.train; default: the run's own division."""

    split: int | None = None
    """Which division is to be drawn, as for examples.train; default: the run's own."""

    group_pattern: str | None = None
    """folder: groups of a division to be drawn, as for examples.train; default: the run's own division."""

    spacing: Spacing | None = None
    """mm from row to row and from column to column of the masks; jsrt, retouch: known; default: pixels only."""

    csv: Path | None = None
    """File for the measures of every image; default: evaluation-DATASET-PART.csv beside the checkpoint."""

    overwrite: bool = False
    """Replace that file."""

    device: str = "auto"
    """Where to predict: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        positive = self.spacing is None or min(self.spacing) > 0
        require(positive, "spacing", self.spacing, "two lengths in mm, more than 0")


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
    """Predict all images, measure, and write the CSV file."""
    trained = read_trained(options.checkpoint, options.device)
    config = config_for(trained, options)
    path = options.csv or trained.path.with_name(f"evaluation-{config.dataset}-{options.part}.csv")
    if path.exists() and not options.overwrite:
        raise FileExistsError(f"csv: {path} is there; pass --overwrite or another --csv")
    make_folder(path.parent, "csv")
    redivided = any(getattr(options, name) is not None for name in ("labeled", "split", "group_pattern"))
    of_run = config.dataset == trained.config.dataset and not redivided
    # A folder is divided anew by each load: not where that does not matter, or must not.
    undivided = config.dataset == "folder" and (of_run or options.part == "all")
    data = load_labeled(config)[0].to(config.device) if undivided else load(config)
    labels = trained.labels
    net = match_outputs(trained.net(), labels, data)
    if labels.fused is not None and set(labels.names) <= set(data.class_names):
        by_name = {label: [labels.names[i] for i in fine] for label, fine in labels.fused.items()}
        fused = {label: tuple(map(data.class_names.index, fine)) for label, fine in by_name.items()}
        data = replace(data, fused=fused)
    found = data.found
    if options.part == "all":
        chosen = labeled_images(data)
    elif of_run:
        sources = (data.unlabeled, data.validation, data.test)
        chosen = trained.division.find(options.part, sources)
        found = f"{found.partition(';')[0]}, divided as in the run"
        if unknown := trained.division.unknown(sources):
            found += f"; {unknown} images with labels are in no part of the run, and are left out"
    else:
        chosen = [getattr(data, options.part)]
    if not any(map(len, chosen)):
        raise ValueError(f"part: {options.part} has no image with labels in {found}")
    names = tuple(name for part in chosen for name in part.names)
    of_same_data = config.dataset == trained.config.dataset and options.root is None
    if of_same_data and (redivided or options.part == "all"):
        used = {*trained.division.labeled, *trained.division.validation}.intersection(names)
        found += f"; {len(used)} of these images were labeled or validation images of the run"
    measures = Measures(spacings_of(names, data, config, options.spacing))
    for part in chosen:
        evaluate(net, part, data, measures)
    evaluation = Evaluation(names, data.evaluated_names, measures, found, path)
    write_measures(evaluation)
    return evaluation


def config_for(trained: Trained, options: Evaluate) -> Config:
    """Return the run's configuration with the data set that is asked for."""
    given = {
        name: getattr(options, name)
        for name in ("dataset", "root", "labeled", "split", "group_pattern")
        if getattr(options, name) is not None
    }
    config = replace(trained.config, **given)
    return replace(config, fuse=None)  # the checkpoint knows what is fused: the file may be elsewhere by now


def match_outputs(net: nn.Module, labels: Labels, data: Dataset) -> nn.Module:
    """Return the network with the outputs that the data set's classes want, found by their names."""
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


def labeled_images(data: Dataset) -> list[Images]:
    """Return all images that have labels, no name twice."""
    chosen: list[Images] = []
    seen: set[str] = set()
    for images in (data.unlabeled, data.validation, data.test):
        new = [i for i, name in enumerate(images.names) if name not in seen]
        chosen.append(Selection(images, tuple(i for i in new if known_pixels(images[[i]].labels).any())))
        seen.update(images.names)
    return chosen


def spacings_of(names: Sequence[str], data: Dataset, config: Config, given: Spacing | None) -> Sequence[Spacing | None]:
    """Return the spacing of every image at the size that it is evaluated at; None where it is not known."""
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
    """Return of the rows and columns of a volume's B-scans; None where its header tells none."""
    path = volume.folder / "oct.mhd"
    if "ElementSpacing" not in path.read_text(encoding="latin-1"):
        return None
    x, y, _ = read_information(path).GetSpacing()
    return y, x
