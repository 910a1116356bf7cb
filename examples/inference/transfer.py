"""Labels of a whole data set by the nearest references, without training."""

from __future__ import annotations

import math
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from rich.progress import track
from torch import Tensor

from examples.config import Config, DatasetName, require
from examples.engine.distributed import resolve_device
from examples.engine.evaluation import by_class
from examples.engine.metrics import IoU, class_masks
from examples.inference.inputs import Plane
from examples.inference.transfer_data import Material, find_material
from examples.inference.transfer_features import GRID, IMAGE_SIZE, POSITIONS, build_features
from examples.inference.transfer_files import Files, Proposal
from examples.inference.transfer_votes import BATCH, K, References, encode_references, proposed_masks
from examples.logging.environment import environment
from examples.logging.run_folder import without_nan
from examples.reporting.transfer_page import Row

USUAL_LABELED = 3


@dataclass(frozen=True)
class Transfer:
    """What to label by what, and where to write it."""

    dataset: Annotated[tyro.conf.Positional[DatasetName], tyro.conf.arg(metavar="DATASET")]
    """folder: your images, of which some have a mask; or another data set, as for examples.train."""

    out: Path
    """Folder to write to."""

    root: Path | None = None
    """Folder that the data set is read from; the drawn ones need none."""

    references: tuple[str, ...] = ()
    """Names of the images to label by; default: all labeled ones."""

    labeled: int | None = None
    """Divide as examples.train does, label by the labeled images and score the test images; default: 3, and of a folder
    all that have a mask."""

    split: int = 0
    """Which division, as for examples.train."""

    color: bool = False
    """folder: keep the colors of images; without it, color becomes gray."""

    group_pattern: str | None = None
    """folder with --labeled: groups that are never divided, as for examples.train."""

    encoder: str = "lite0"
    """lite0: EfficientNet-lite0 (extra encoders); hf:NAME: a model of the Hugging Face Hub; module:callable: yours,
    which callable() returns; it makes maps (B, D, h, w), or tokens, of images (B, 1 or 3, H, W) in [-1, 1]."""

    k: int = K
    """Nearest reference pixels that vote."""

    positions: float = POSITIONS
    """How much a pixel's place counts, beside 1 for each layer of the encoder; 0: not at all."""

    test_only: bool = False
    """Label the images that are scored alone."""

    overwrite: bool = False
    """Replace what an earlier transfer wrote to --out, masks that were corrected since among it."""

    device: str = "auto"
    """Where to encode and match: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        require(self.k >= 1, "k", self.k, "1 or more")
        require(0 <= self.positions < math.inf, "positions", self.positions, "a length of 0 or more")
        divided = self.labeled is not None or self.split or self.group_pattern is not None
        require(
            not (divided and self.references), "references", self.references, "none with --labeled, --split or --group-"
            "pattern, which choose them",
        )  # fmt: skip
        undrawn = self.dataset != "folder" or self.labeled is not None or not divided
        require(undrawn, "labeled", None, "a number with --split or --group-pattern: how many to draw")

    @property
    def divided(self) -> bool:
        return self.dataset != "folder" or self.labeled is not None

    @property
    def config(self) -> Config:
        return Config(
            self.dataset, root=self.root, labeled=self.labeled or USUAL_LABELED, split=self.split,
            color=self.color, group_pattern=self.group_pattern, image_size=IMAGE_SIZE, map_size=None,
        )  # fmt: skip


@torch.no_grad()
def transfer(options: Transfer) -> tuple[dict[str, Any], list[str]]:
    """Label all images and write the files; return what transfer.json holds, and why images could not be read."""
    started = time.monotonic()
    device = resolve_device(options.device)
    files = Files(options.out, options.root, options.overwrite)
    features = build_features(options.encoder, GRID, options.positions).to(device)
    material = find_material(options.config, options.references, divided=options.divided)
    if options.test_only:
        material = material.scored_only()
    images, classes = material.references.to(device), material.labels.names
    shown = class_masks(images.labels, len(classes)).any(3).any(2).any(0).tolist()
    if absent := [name for name, there in zip(classes, shown, strict=True) if not there]:
        print(
            f"note: no reference shows {', '.join(absent)}, so that nothing is labeled so; name one that does in "
            "--references, or give it a mask",
            file=sys.stderr,
        )
    references = encode_references(images, features, material.data.flip_pairs, len(classes), options.k)
    about: dict[str, Any] = {
        "dataset": options.dataset, "labeled": len(images), "split": options.split if options.divided else None,
        "encoder": options.encoder, "k": options.k, "positions": options.positions, "data": material.data.found,
        "references": list(images.names), "cut": references.cut,
        "environment": environment(device),
    }  # fmt: skip
    files.begin(about, material)

    rows: list[Row] = []
    faults: list[str] = []
    batches = [material.names[start : start + BATCH] for start in range(0, len(material.names), BATCH)]
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(read_batch, material, batches[0])
        writing: list[Future[Row]] = []
        for number in track(range(len(batches)), "labeling", transient=True, disable=not sys.stderr.isatty()):
            planes, unread = reading.result()
            faults += unread
            if number + 1 < len(batches):
                reading = pool.submit(read_batch, material, batches[number + 1])
            proposals = []
            if planes:
                squares = torch.stack([plane.square for plane in planes.values()]).to(device)
                for (name, plane), maps in zip(planes.items(), features(squares), strict=True):
                    proposals.append(propose(name, plane, maps, references, material))
            rows += [future.result() for future in writing]  # no more than two batches are in memory
            writing = [pool.submit(files.write, proposal) for proposal in proposals]
        rows += [future.result() for future in writing]
    result = {**about, **scores(rows, material), "seconds": round(time.monotonic() - started, 1), "images": len(rows)}
    files.finish(result, rows)
    return result, faults


def read_batch(material: Material, names: tuple[str, ...]) -> tuple[dict[str, Plane], list[str]]:
    """Return the images that can be read, and why others cannot."""
    planes: dict[str, Plane] = {}
    faults = []
    for name in names:
        try:
            planes[name] = material.read(name)
        except (OSError, ValueError) as error:
            faults.append(str(error))
    return planes, faults


def propose(name: str, plane: Plane, maps: Tensor, references: References, material: Material) -> Proposal:
    """Bring what the references say about an image with features (D, g, g) to its size."""
    placement, votes = plane.placement, references.label(maps)
    masks = proposed_masks(votes.shares.cpu(), placement, references.cut, multilabel=material.labels.multilabel)
    square = torch.stack([F.interpolate(part[None, None], (placement.size,) * 2, mode="bilinear")[0, 0]
                        for part in (references.weigh(votes).cpu(), votes.nearest.cpu())])  # fmt: skip
    # Outside of what is shown there is no weight.
    weights, nearest = placement.restore(square, multilabel=True).clamp(0, 1)
    return Proposal(name, plane, masks, weights, float(nearest.mean()))


def scores(rows: list[Row], material: Material) -> dict[str, Any]:
    """Return the IoU over the images whose truth is known; None where there is none."""
    iou = IoU()
    for row in rows:
        if row.iou is not None:
            iou.intersections += row.iou.intersections
            iou.unions += row.iou.unions
    names = material.labels.names
    if not iou.unions:
        return {"scored": 0, "miou": None, "miou_pooled": None, "iou_per_class": None, "iou_per_class_pooled": None}
    per_image, pooled = iou.per_class(), iou.pooled()
    found = {
        "scored": len(iou.unions),
        "score": material.data.score,
        "miou": float(per_image.nanmean()),
        "miou_pooled": float(pooled.nanmean()),
        "iou_per_class": by_class(names, per_image),
        "iou_per_class_pooled": by_class(names, pooled),
    }
    return without_nan(found)  # a class that is nowhere has no IoU
