"""Masks of images and volumes, predicted by a trained network and written to files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.progress import track
from torch import nn

from examples.data.folder.masks import is_line
from examples.data.fusing import fuse_masks
from examples.engine.metrics import predicted_masks
from examples.inference.inputs import Plane, find_inputs, read
from examples.inference.outputs import Outputs, Predicted
from examples.inference.trained import Labels, Trained, read_trained

BATCH = 4


@dataclass(frozen=True)
class Predict:
    """What to predict, and where to write it."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A run's best.pt or last.pt, or its folder: then its best.pt."""

    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGES...")]
    """Files, or folders of them."""

    out: Path
    """Folder to write to."""

    overlays: bool = False
    """Also draw pictures of the images with what was found in them."""

    probabilities: bool = False
    """Also write the probabilities of all classes, as .npz."""

    fused: bool = False
    """Write what the evaluation names instead: the unions of labels that --fuse made in training."""

    overwrite: bool = False
    """Replace files that are there."""

    device: str = "auto"
    """Where to predict: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""


def predict(options: Predict) -> tuple[int, list[str]]:
    """Predict all images and write the files; return how many could be read, and why others could not."""
    trained = read_trained(options.checkpoint, options.device)
    outputs = Outputs(options.out, written_labels(trained, options), options.overlays, options.probabilities)
    net = trained.net()
    sources = find_inputs(options.images)
    if not options.overwrite:
        outputs.check(sources)
    outputs.write_classes()
    faults = []
    for source in track(sources, "predicting", transient=True, disable=len(sources) < 2 or not sys.stderr.isatty()):
        try:
            scan = read(source, trained.config)
        except (OSError, ValueError) as error:
            faults.append(str(error))
            continue
        predicted = predict_planes(net, scan.planes, trained, options)
        outputs.write(source, scan, predicted)
    return len(sources) - len(faults), faults


def written_labels(trained: Trained, options: Predict) -> Labels:
    """Return what the masks are of."""
    labels = trained.labels
    if options.fused:
        if options.probabilities:
            raise ValueError("probabilities: there are none of the unions that --fused writes; leave one out")
        if labels.fused is None:
            raise ValueError(f"fused: {trained.path} was trained without --fuse; leave --fused out")
        labels = Labels(tuple(labels.fused), multilabel=True)  # unions may overlap
    if unfit := [name for name in labels.names if not is_line(name)]:
        raise ValueError(f"checkpoint: {trained.path} has a label {unfit[0]!r}, which cannot be a line of classes.txt")
    bad = [name for name in labels.names if Path(name).name != name or name.startswith(".")]
    if labels.multilabel and bad:
        raise ValueError(f"checkpoint: {trained.path} has a label {bad[0]!r}, which cannot be the name of a folder")
    return labels


@torch.no_grad()
def predict_planes(net: nn.Module, planes: Sequence[Plane], trained: Trained, options: Predict) -> list[Predicted]:
    """Return predictions at the planes' original sizes."""
    labels, device = trained.labels, trained.config.device
    fused = labels.fused if options.fused else None
    predicted = []
    for start in range(0, len(planes), BATCH):
        batch = planes[start : start + BATCH]
        squares = net(torch.stack([plane.square for plane in batch]).to(device))[0].float().cpu()
        for plane, square in zip(batch, squares, strict=True):
            logits = plane.placement.restore(square, multilabel=labels.multilabel)
            masks = fuse_masks(predicted_masks(logits[None], multilabel=labels.multilabel), fused)[0]
            probabilities = None
            if options.probabilities:
                probabilities = (logits.sigmoid() if labels.multilabel else logits.softmax(0)).half()
            predicted.append(Predicted(masks, probabilities))
    return predicted
