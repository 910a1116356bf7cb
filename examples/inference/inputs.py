"""Images and volumes of any size, prepared for a network as its own data set prepared them in training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.config import Config
from examples.data.base import to_unit_range
from examples.data.files import GRAY_MODES, SUFFIXES, open_image, read_values, repeat_gray
from examples.data.jsrt import open_radiograph
from examples.data.nifti import read_nifti_header
from examples.data.resize import Placement, to_square
from examples.data.retouch.mhd import TYPES, check_values, read_header
from examples.data.retouch.retina import placement, scale

META_IMAGES, NIFTI = (".mhd", ".mha"), (".nii", ".nii.gz")
VOLUMES = (*META_IMAGES, *NIFTI)
READABLE = (*SUFFIXES, ".img", *VOLUMES)
LONGEST_NAME = 240  # bytes of a volume's, after which files of slices are named
OCT, REFERENCE = "oct.mhd", "reference.mhd"  # RETOUCH's names, the same in every volume's folder


@dataclass(frozen=True)
class Input:
    """A file, and the name of what is made of it."""

    path: Path
    name: str

    @property
    def is_volume(self) -> bool:
        return suffix(self.path) in VOLUMES

    @property
    def mask_suffix(self) -> str:
        """Of the file that a mask is written to: of the input's kind."""
        return ".nii.gz" if suffix(self.path) in NIFTI else ".mhd" if self.is_volume else ".png"


@dataclass(frozen=True)
class Plane:
    """One image, or one slice of a volume."""

    image: Tensor  # (1 or 3, H, W) float32 in [-1, 1], to be looked at
    square: Tensor  # (1 or 3, S, S) float32 in [-1, 1], for the network
    placement: Placement  # how the one became the other


@dataclass(frozen=True)
class Scan:
    """What a file holds."""

    planes: Sequence[Plane]  # one, or those of a volume along its last axis (z)
    volume: SimpleITK.Image | None = None  # the volume, for its geometry; None for an image


def find_inputs(paths: Sequence[Path]) -> list[Input]:
    """Find files, and those of folders that can be read, sorted; oct.mhd is called after its folder, as in RETOUCH."""
    if not paths:
        raise ValueError("images: none given, expected files or folders of them")
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if is_readable(file))
            if not files:
                raise FileNotFoundError(f"images: {path} holds no image ({', '.join(READABLE)})")
        elif not path.exists():
            raise FileNotFoundError(f"images: {path} is not there")
        elif suffix(path) not in READABLE:
            raise ValueError(f"images: {path} is of no known kind; expected {', '.join(READABLE)}")
        else:
            files = [path]
        for file in files:
            name = file.resolve().parent.name if file.name == OCT else stem(file)
            if suffix(file) in VOLUMES and (length := len(os.fsencode(name))) > LONGEST_NAME:
                raise ValueError(
                    f"images: {file} has a name of {length} bytes, too long for its masks to be named after it; shorten"
                    f" it to {LONGEST_NAME}"
                )
            if name in found and found[name].resolve() != file.resolve():
                raise ValueError(
                    f"images: {found[name]} and {file} would both be written as {name}; predict them into two folders"
                )
            found[name] = file
    return [Input(path, name) for name, path in found.items()]


def suffix(file: Path) -> str:
    """Return what tells the kind of a file, in small letters; of ``.nii.gz`` both parts."""
    packed = file.name.lower().endswith(".nii.gz")
    return ".nii.gz" if packed else file.suffix.lower()


def stem(file: Path) -> str:
    return file.name[: -len(suffix(file))]


def is_readable(file: Path) -> bool:
    is_reference = file.name == REFERENCE and file.with_name(OCT).exists()
    hidden = file.name.startswith(".")
    return file.is_file() and suffix(file) in READABLE and not hidden and not is_reference


def read(source: Input, config: Config) -> Scan:
    """Read a file and prepare it as the data set of ``config`` does."""
    if source.is_volume:
        volume = read_volume(source.path)
        values = SimpleITK.GetArrayFromImage(volume)
        slices = values.reshape(-1, 1, *values.shape[-2:])
    else:
        volume, slices = None, read_image(source.path, config)[None]
    if config.dataset == "retouch":
        if slices.dtype.kind not in "ui":
            raise ValueError(f"{source.path} holds {slices.dtype}, expected integers, as the volumes trained on hold")
        return Scan([prepare_b_scan(values[0], config) for values in slices], volume)
    slices = slices.astype(np.float32)
    if not np.isfinite(slices).all():
        raise ValueError(f"{source.path} holds values that are not finite")
    return Scan([prepare_image(values, config) for values in slices], volume)


def prepare_image(values: NDArray[np.float32], config: Config) -> Plane:
    """Prepare an image (1 or 3, H, W) as ``folder`` does.

    ``jsrt`` and the phantoms have square images, for which it is the same.
    """
    size = config.image_size
    _, height, width = values.shape
    values = repeat_gray(values, config.in_channels)
    square = to_unit_range(to_square(values, size))
    return Plane(to_unit_range(torch.from_numpy(values)), square, Placement(height, width, size))


def prepare_b_scan(values: NDArray[Any], config: Config) -> Plane:
    """Prepare a B-scan as ``retouch`` does."""
    image = scale(values)
    place = placement(image, config.retina, config.image_size)
    square = place.place(image, -1, Image.Resampling.BOX)
    return Plane(torch.from_numpy(image)[None], torch.from_numpy(square)[None], place)


def read_image(path: Path, config: Config) -> NDArray[Any]:
    """Read one image (1 or 3, H, W), float32 or, for ``retouch``, as it is stored."""
    if path.suffix.lower() == ".img":
        return np.array(open_radiograph(path))[None]
    if config.dataset != "retouch":
        return read_values(path, config.in_channels)
    image = open_image(path)
    return np.array(image if image.mode in GRAY_MODES else image.convert("L"))[None]


def read_volume(path: Path) -> SimpleITK.Image:
    """Read a volume, or an image that is one slice of such a file, with its geometry."""
    if suffix(path) in NIFTI:
        size, kind, components = read_nifti_header(path)
    else:
        header = read_header(path)
        size, kind, components = header.size, header.type, header.components
    if len(size) not in (2, 3) or components != 1 or kind not in TYPES.values():
        raise ValueError(
            f"{path} has {len(size)} dimensions and {components} values ({kind}) a pixel, expected 2 or 3 dimensions"
            " and one number"
        )
    if suffix(path) in META_IMAGES:
        check_values(header)
    try:
        volume = SimpleITK.ReadImage(str(path), imageIO="NiftiImageIO" if suffix(path) in NIFTI else "MetaImageIO")
    except RuntimeError as error:
        raise ValueError(
            f"{path} cannot be read as a volume: {str(error).strip().splitlines()[-1]}; is it, or the file of values"
            " that it names, cut or missing?"
        ) from error
    return volume
