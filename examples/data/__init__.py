"""The data sets by name: each module's ``load(config)`` returns a :class:`Dataset`."""

from collections.abc import Callable

from examples.config import Config
from examples.data import jsrt, phantom
from examples.data.dataset import Dataset, ImageSet

DATASETS: dict[str, Callable[[Config], Dataset]] = {"phantom": phantom.load, "jsrt": jsrt.load}


def load(config: Config) -> Dataset:
    """Loads ``config.dataset`` and moves it to ``config.device``."""
    return DATASETS[config.dataset](config).to(config.device)


__all__ = ["DATASETS", "Dataset", "ImageSet", "load"]
