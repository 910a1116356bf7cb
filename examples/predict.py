"""Use what was trained: masks of images and volumes of any size.

    python -m examples.predict runs/jsrt/rpg_plus-n3-s0-seed0/best.pt IMAGES... --out DIR --overlays

IMAGES are files (png, jpg, tif, bmp, gif, JSRT's .IMG, .mhd, .mha) or folders of them. They are prepared as the
training images were, and masks have the size of what they are of. DIR then holds

    masks/a.png          class ids, 0 the background, as a palette image: classes that exclude each other; or
    masks/lung/a.png     0 or 255: one folder for each label, where labels may overlap
    masks/a.mhd          the same of a volume, slice by slice, with its spacing, origin and direction
    classes.txt          the names of the classes; with it and images/, DIR is one for the data set folder
    overlays/a.png       --overlays: to be looked at (of a volume, overlays/a/a_000.png, ...)
    probabilities/a.npz  --probabilities: "probabilities" (C, [Z,] H, W) float16 and the "names" of its first axis

A file that cannot be read is named at the end, with exit status 1; the others are predicted all the same.
"""

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

    device: str = "cpu"
    """Where to predict: cpu, cuda, cuda:1, ..."""


def predict(options: Predict) -> tuple[int, list[str]]:
    """Predicts all images and writes the files.

    Returns:
        How many could be read, and why others could not, one line each.

    Raises:
        OSError: the checkpoint cannot be read, or a file cannot be written.
        ValueError: the checkpoint is none, or options cannot be right.
    """
    trained = read_trained(options.checkpoint, options.device)
    labels = trained.labels
    if labels is None:
        raise ValueError(
            f"checkpoint: {trained.path} is from before checkpoints held the names of classes, and those of 'folder'"
            " are known by its masks alone; train again (examples.evaluate can still use it)"
        )
    outputs = Outputs(options.out, written_labels(labels, trained, options), options.overlays, options.probabilities)
    net = trained.net(labels)
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
        predicted = predict_planes(net, scan.planes, labels, options)
        outputs.write(source, scan, predicted)
    return len(sources) - len(faults), faults


def written_labels(labels: Labels, trained: Trained, options: Predict) -> Labels:
    """What the masks are of.

    Raises:
        ValueError: nothing is fused, or its probabilities are asked for, or names cannot be those of folders.
    """
    if options.fused:
        if options.probabilities:
            raise ValueError("probabilities: there are none of the unions that --fused writes; leave one out")
        if labels.fused is None:
            raise ValueError(f"fused: {trained.path} was trained without --fuse; leave --fused out")
        labels = Labels(tuple(labels.fused), multilabel=True)  # unions may overlap
    bad = [name for name in labels.names if Path(name).name != name or name.startswith(".")]
    if labels.multilabel and bad:
        raise ValueError(f"checkpoint: {trained.path} has a label {bad[0]!r}, which cannot be the name of a folder")
    return labels


@torch.no_grad()
def predict_planes(net: nn.Module, planes: Sequence[Plane], labels: Labels, options: Predict) -> list[Predicted]:
    """Predictions at the planes' original sizes."""
    fused = labels.fused if options.fused else None
    predicted = []
    for start in range(0, len(planes), BATCH):
        batch = planes[start : start + BATCH]
        squares = net(torch.stack([plane.square for plane in batch]).to(options.device))[0].float().cpu()
        for plane, square in zip(batch, squares, strict=True):
            logits = plane.placement.restore(square, multilabel=labels.multilabel)
            masks = fuse_masks(predicted_masks(logits[None], multilabel=labels.multilabel), fused)[0]
            probabilities = None
            if options.probabilities:
                probabilities = (logits.sigmoid() if labels.multilabel else logits.softmax(0)).half()
            predicted.append(Predicted(masks, probabilities))
    return predicted


def main() -> None:
    torch.set_flush_denormal(True)  # tiny activations of a trained net would slow a CPU down
    options = tyro.cli(Predict, description=__doc__, prog="python -m examples.predict")
    try:
        predicted, faults = predict(options)
    except (ValueError, OSError) as error:  # the message says what to do; a traceback would bury it
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; every file that was written is whole, and --overwrite begins again", file=sys.stderr)
        sys.exit(130)
    print(f"masks of {predicted} of {predicted + len(faults)} files in {options.out / 'masks'}")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
