"""Which images are references and which are to be labeled; these are read one by one where they are files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from examples.config import Config
from examples.data import Images, ImageSet, load
from examples.data.base import Dataset
from examples.data.folder.dataset import load_labeled
from examples.data.folder.masks import composed, list_images
from examples.data.jsrt import CLASSES, list_files, read_mask
from examples.data.resize import Placement
from examples.engine.metrics import known_pixels
from examples.inference.inputs import Input, Plane, read
from examples.inference.trained import Labels


@dataclass(frozen=True)
class Material:
    """What there is to label, and by what."""

    config: Config  # of the data set; its image_size is what images are encoded at
    data: Dataset  # what was read already, in which names are looked up
    references: ImageSet  # with labels, at that size
    names: tuple[str, ...]  # of the images to be labeled
    scored: frozenset[str]  # those of them that the result is measured on
    # Name -> the file that holds an image; none of those that were drawn or are part of a volume
    files: Mapping[str, Path]
    masks: Mapping[tuple[str, str], Path]  # (structure, name) -> file, of jsrt

    @property
    def labels(self) -> Labels:
        """What the masks are of."""
        return Labels.of(self.data)

    def scored_only(self) -> Material:
        """Return it without the images that are not scored."""
        if not self.scored:
            raise ValueError("test_only: there are no test images; pass --labeled or --references, or leave it out")
        return replace(self, names=tuple(name for name in self.names if name in self.scored))

    def read(self, name: str) -> Plane:
        """Return an image at its own size and at that which is encoded."""
        if name in self.files:
            return read(Input(self.files[name], name), self.config).planes[0]
        images = self.find(name)
        square, side = images.images[0], self.config.image_size
        placement = images.originals[0].placement if images.originals else Placement(side, side, side)
        return Plane(placement.restore(square, multilabel=False), square, placement)

    def truth(self, name: str, placement: Placement) -> Tensor:
        """Return the labels of an image, (C, H, W) or (H, W), at its own size."""
        if self.masks:
            side = placement.height  # these images are square
            return torch.stack([torch.from_numpy(read_mask(self.masks[label, name], side)) for label in CLASSES]).long()
        images = self.find(name)
        return images.labels[0] if images.originals is None else images.originals[0].read_labels()

    def find(self, name: str) -> ImageSet:
        return find((self.data.labeled, self.data.unlabeled, self.data.validation, self.data.test), name)


def find_material(config: Config, references: Sequence[str], *, divided: bool) -> Material:
    """Find the images of a data set.

    Args:
        config: Names the data set; its image_size is what images are encoded at.
        references: Names of the images that are references; empty: the labeled ones.
        divided: Whether a folder is divided as for training. If not, all its images with a mask are references, or
            those named, and the others with a mask are scored.
    """
    files: Mapping[str, Path] = {}
    masks: Mapping[tuple[str, str], Path] = {}
    if config.dataset == "folder" and not divided:
        data, files = load_labeled(config)
        names = tuple(files)
    else:
        data = load(replace(config, device="cpu"))
        names = tuple(dict.fromkeys([*data.unlabeled.names, *data.validation.names, *data.test.names]))
        if config.root is not None and config.dataset == "jsrt":
            files, masks = list_files(config.root)
        elif config.root is not None and config.dataset == "folder":
            files = list_images(config.root)
    chosen = choose_references(data, [composed(name) for name in references])
    used = frozenset(chosen.names)
    names = tuple(name for name in names if name not in used)
    if not names:
        raise ValueError(f"dataset: all {len(used)} images are references, expected others, to be labeled")
    return Material(config, data, chosen, names, frozenset(data.test.names) - used, files, masks)


def choose_references(data: Dataset, names: Sequence[str]) -> ImageSet:
    """Return the labeled images, or those named."""
    if not names:
        return data.labeled
    sources = (data.labeled, data.unlabeled, data.validation)
    for name in names:
        if not any(name in images.names for images in sources) or not known_pixels(find(sources, name).labels).any():
            some = ", ".join(data.labeled.names[:5])
            raise ValueError(f"references: {name!r} is not the name of a labeled image, as {some} are")
    parts = [find(sources, name) for name in dict.fromkeys(names)]
    shown = [part.shown for part in parts if part.shown is not None]
    return ImageSet(
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        names=tuple(part.names[0] for part in parts),
        shown=torch.cat(shown) if shown else None,
        originals=tuple(original for part in parts for original in part.originals or ()) or None,
    )


def find(sources: Sequence[Images], name: str) -> ImageSet:
    """Return the image of a name, as a set of one."""
    images = next(images for images in sources if name in images.names)
    return images[[images.names.index(name)]]
