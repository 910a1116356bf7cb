"""What a transfer writes: a data set for ``folder``, weights, pictures, and what to label next."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from examples.engine.checkpoint import atomic_write, make_folder
from examples.engine.metrics import IoU, class_masks, known_pixels
from examples.inference.inputs import Input, Plane, Scan
from examples.inference.measures import write_csv
from examples.inference.outputs import Outputs, Predicted
from examples.inference.overlay import draw_overlay
from examples.inference.transfer_data import Material
from examples.logging.pictures import encoded
from examples.logging.run_folder import write_json
from examples.reporting.transfer_page import Row, draw_strip, write_page

RESULT, PAGE, NEXT = "transfer.json", "transfer.html", "label_next.csv"
FOLDERS = ("images", "masks", "weights", "overlays", "strips")  # strips are for the page


@dataclass(frozen=True)
class Proposal:
    """An image with what the references say."""

    name: str  # of the image
    plane: Plane  # the image
    masks: Tensor  # (C, H, W) bool, at its own size
    weights: Tensor  # (H, W) in [0, 1], at its own size
    explained: float  # mean cosine of its pixels' nearest references


class Files:
    """Writes a transfer's folder (new, empty or that of an earlier transfer), every file whole or not at all."""

    def __init__(self, folder: Path, root: Path | None, overwrite: bool) -> None:
        self.folder = folder
        if root is not None and root.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"out: {folder} is the folder that images are read from, or holds it; pass another --out")
        if folder.is_file():
            raise FileExistsError(f"out: {folder} is a file, expected a folder; pass another --out")
        if folder.is_dir() and any(folder.iterdir()):
            if not (folder / RESULT).is_file():
                raise FileExistsError(f"out: {folder} holds what is not a transfer's; pass another --out")
            if not overwrite:
                raise FileExistsError(
                    f"out: {folder} holds a transfer; pass --overwrite to replace it or another --out"
                )

    def begin(self, about: dict[str, Any], material: Material) -> None:
        """Clear the folder, and write what is known: the references with their masks, and the names of the labels."""
        self.material = material
        self.outputs = Outputs(self.folder, material.labels)
        make_folder(self.folder)
        write_json(self.folder / RESULT, {**about, "state": "unfinished"})
        for name in (PAGE, NEXT):
            (self.folder / name).unlink(missing_ok=True)
        for name in FOLDERS:
            if (self.folder / name).is_dir():
                shutil.rmtree(self.folder / name)
        for name in FOLDERS:
            (self.folder / name).mkdir()
        self.outputs.write_classes()
        for name in about["references"]:
            plane = material.read(name)
            truth = class_masks(material.truth(name, plane.placement)[None].long(), len(material.labels.names))[0]
            self.write_image(name, plane)
            self.write_masks(name, plane, truth)

    def write(self, proposal: Proposal) -> Row:
        """Write the files of an image; its masks last."""
        name, plane, masks, weights = proposal.name, proposal.plane, proposal.masks, proposal.weights
        self.write_image(name, plane)
        atomic_write(self.folder / "weights" / f"{name}.png", encoded(gray(2 * weights - 1)), flush=False)
        # As PNG it would take a tenth of all the time.
        overlay = encoded(draw_overlay(plane.image, masks, self.material.labels.names), "jpeg", quality=90)
        atomic_write(self.folder / "overlays" / f"{name}.jpg", overlay, flush=False)
        strip = draw_strip(plane.image, masks, weights)
        atomic_write(self.folder / "strips" / f"{name}.jpg", strip, flush=False)
        self.write_masks(name, plane, masks)
        iou = None
        if name in self.material.scored:
            truth = self.material.truth(name, plane.placement)[None].long()
            known = known_pixels(truth)[:, None]
            iou = IoU()
            iou.update(masks[None] & known, class_masks(truth, len(masks)) & known)
        return Row(name, float(weights.mean()), proposal.explained, iou)

    def write_image(self, name: str, plane: Plane) -> None:
        """Write the file that it was read from where ``folder`` reads such files, or its gray values."""
        source = self.material.files.get(name)
        if source is not None and self.material.config.dataset == "folder":
            atomic_write(self.folder / "images" / source.name, source.read_bytes(), flush=False)
        else:
            atomic_write(self.folder / "images" / f"{name}.png", encoded(gray(plane.image[0])), flush=False)

    def write_masks(self, name: str, plane: Plane, masks: Tensor) -> None:
        self.outputs.write(Input(Path(f"{name}.png"), name), Scan([plane]), [Predicted(masks, None)])

    def finish(self, result: dict[str, Any], rows: Sequence[Row]) -> None:
        """Write what to label next, the page and the result."""
        rows = sorted(rows, key=lambda row: row.explained)  # what the references explain least comes first
        figures = ([row.name, f"{row.explained:.6f}", f"{row.certainty:.6f}"] for row in rows)
        write_csv(self.folder / NEXT, ["image", "explained", "certainty"], figures)
        write_page(self.folder / PAGE, result, rows, self.material.labels.names)
        write_json(self.folder / RESULT, {**result, "state": "finished"})


def gray(values: Tensor) -> Image.Image:
    """Return (H, W) in [-1, 1] as an 8-bit image."""
    return Image.fromarray(((values + 1) * 127.5).round().to(torch.uint8).numpy())
