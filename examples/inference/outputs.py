"""Masks, probabilities and overlays as files, each written whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.engine.checkpoint import atomic_write, make_folder
from examples.inference.inputs import Input, Scan
from examples.inference.overlay import draw_overlay
from examples.inference.trained import Labels
from examples.logging.pictures import color, encoded


@dataclass(frozen=True)
class Predicted:
    """What a network says about one plane, at its original size."""

    masks: Tensor  # (C, H, W) bool, of the classes without background
    # (C, H, W) float16, or (1 + C, H, W) with the background first where classes exclude each other; None where they
    # are not wanted
    probabilities: Tensor | None


@dataclass(frozen=True)
class Outputs:
    """Where and how predictions are written."""

    folder: Path
    labels: Labels  # what is written: one mask of class ids, or one mask of each label in a folder of its own
    overlays: bool = False  # whether pictures are drawn as well
    probabilities: bool = False  # whether probabilities are written as well

    @property
    def classes_file(self) -> Path:
        return self.folder / "classes.txt"

    def masks_of(self, source: Input) -> list[Path]:
        """Return one file, or one for each label."""
        file = source.name + source.mask_suffix
        folders = self.labels.names if self.labels.multilabel else ("",)
        return [self.folder / "masks" / folder / file for folder in folders]

    def probabilities_of(self, source: Input) -> Path:
        return self.folder / "probabilities" / f"{source.name}.npz"

    def overlays_of(self, source: Input, planes: int) -> list[Path]:
        """Return one file, or one for each slice of a volume."""
        if not source.is_volume:
            return [self.folder / "overlays" / f"{source.name}.png"]
        return [self.folder / "overlays" / source.name / f"{source.name}_{plane:03d}.png" for plane in range(planes)]

    def check(self, sources: Iterable[Input]) -> None:
        """Refuse to write over what is there."""
        wanted = [path for source in sources for path in self.masks_of(source)]
        if self.probabilities:
            wanted += [self.probabilities_of(source) for source in sources]
        if self.overlays:
            wanted += [self.overlays_of(source, 1)[0] for source in sources]
        there = [path for path in wanted if path.exists()]
        if self.classes_file.exists() and self.classes_file.read_bytes() != self.classes_text:
            there.append(self.classes_file)  # of another network
        if there:
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            raise FileExistsError(f"out: {there[0]}{more} would be written over; pass --overwrite or another --out")

    @property
    def classes_text(self) -> bytes:
        return "".join(f"{name}\n" for name in self.labels.names).encode()

    def write_classes(self) -> None:
        make_folder(self.folder)
        atomic_write(self.classes_file, self.classes_text)

    def write(self, source: Input, scan: Scan, predicted: Sequence[Predicted]) -> None:
        """Write all that there is of one input; its masks last."""
        volume = scan.volume
        if self.overlays:
            paths = self.overlays_of(source, len(predicted))
            for path, plane, of_plane in zip(paths, scan.planes, predicted, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, encoded(draw_overlay(plane.image, of_plane.masks, self.labels.names)))
        if self.probabilities:
            path = self.probabilities_of(source)
            path.parent.mkdir(parents=True, exist_ok=True)
            is_volume = volume is not None and volume.GetDimension() == 3
            atomic_write(path, as_npz(predicted, self.labels, is_volume=is_volume))
        masks = np.stack([of_plane.masks.numpy() for of_plane in predicted], axis=1)  # (C, Z, H, W)
        values = [255 * mask.astype(np.uint8) for mask in masks] if self.labels.multilabel else [class_ids(masks)]
        for path, of_label in zip(self.masks_of(source), values, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            if volume is None:
                atomic_write(path, encoded(indexed(of_label[0], self.labels)))
            else:
                write_volume(path, of_label, volume)


def class_ids(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Turn masks (C, ...) that do not overlap into class ids (...), 0 where there is none."""
    ids = np.arange(1, len(masks) + 1, dtype=np.uint8).reshape(-1, *[1] * (masks.ndim - 1))
    return (masks * ids).max(0)


def indexed(values: NDArray[np.uint8], labels: Labels) -> Image.Image:
    """Return class ids as a palette image, in the colors of the overlays; a label's mask as it is."""
    image = Image.fromarray(values)
    if not labels.multilabel:
        colors = [(0.0, 0.0, 0.0), *(to_rgb(color(c)) for c in range(len(labels.names)))]
        image.putpalette([round(255 * part) for color in colors for part in color])
    return image


def as_npz(predicted: Sequence[Predicted], labels: Labels, *, is_volume: bool) -> bytes:
    """Return ``probabilities`` (C, [Z,] H, W) float16, and the ``names`` of its first axis."""
    planes = [of_plane.probabilities.numpy() for of_plane in predicted if of_plane.probabilities is not None]
    names = labels.names if labels.multilabel else ("background", *labels.names)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, probabilities=np.stack(planes, axis=1) if is_volume else planes[0], names=names)
    return buffer.getvalue()


def write_volume(path: Path, values: NDArray[np.uint8], like: SimpleITK.Image) -> None:
    """Write (Z, H, W) with the geometry of another volume, as a header and a file of values beside it.

    Both are complete before an old header goes; the new one comes last: none ever names values that are not its own.
    """
    image = SimpleITK.GetImageFromArray(values if like.GetDimension() == 3 else values[0])
    image.CopyInformation(like)
    with TemporaryDirectory(prefix=".writing-", dir=path.parent) as aside:
        header = Path(aside, path.name)
        try:
            SimpleITK.WriteImage(image, str(header), useCompression=True)
        except RuntimeError as error:
            raise OSError(f"{path} cannot be written: {str(error).strip().splitlines()[-1].strip()}") from error
        files = sorted(Path(aside).iterdir(), key=lambda file: file == header)
        for file in files:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        path.unlink(missing_ok=True)
        for file in files:
            os.replace(file, path.with_name(file.name))
