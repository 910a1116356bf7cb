"""The data sets by name: ``load(config)`` of each returns a :class:`Dataset`."""

from collections.abc import Callable
from dataclasses import replace

from examples.config import Config
from examples.data import jsrt
from examples.data.base import IGNORE_INDEX, Dataset, Images, ImageSet, LazyImages, Selection
from examples.data.folder import dataset as folder
from examples.data.fusing import read_fusing
from examples.data.phantoms import chest, oct
from examples.data.retouch import dataset as retouch
from examples.engine.distributed import resolve_device

DATASETS: dict[str, Callable[[Config], Dataset]] = {
    "phantom": chest.load,
    "phantom_exclusive": chest.load_exclusive,
    "oct_phantom": oct.load,
    "jsrt": jsrt.load,
    "retouch": retouch.load,
    "folder": folder.load,
}


def load(config: Config) -> Dataset:
    """Load ``config.dataset``, to be evaluated as ``config.fuse`` says, and move it to ``config.device``."""
    data = DATASETS[config.dataset](config)
    if config.fuse is not None:
        data = replace(data, fused=read_fusing(config.fuse, data.class_names))
    return data.to(resolve_device(config.device))


__all__ = ["DATASETS", "IGNORE_INDEX", "Dataset", "ImageSet", "Images", "LazyImages", "Selection", "load"]
