"""The data sets by name: each one's ``load(config)`` returns a :class:`Dataset`."""

from collections.abc import Callable
from dataclasses import replace

from examples.config import Config
from examples.data import folder, jsrt, oct_phantom, phantom, phantom_fine, retouch
from examples.data.dataset import Dataset, Images, ImageSet, LazyImages
from examples.data.fusing import read_fusing

DATASETS: dict[str, Callable[[Config], Dataset]] = {
    "phantom": phantom.load,
    "phantom_exclusive": phantom.load_exclusive,
    "phantom_fine": phantom_fine.load_fine,
    "oct_phantom": oct_phantom.load,
    "jsrt": jsrt.load,
    "retouch": retouch.load,
    "folder": folder.load,
}


def load(config: Config) -> Dataset:
    """Loads ``config.dataset``, to be evaluated as ``config.fuse`` says, and moves it to ``config.device``."""
    data = DATASETS[config.dataset](config)
    if config.fuse is not None:
        data = replace(data, fused=read_fusing(config.fuse, data.class_names))
    return data.to(config.device)


__all__ = ["DATASETS", "Dataset", "ImageSet", "Images", "LazyImages", "load"]
