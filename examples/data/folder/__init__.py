"""A user's own images."""

from examples.data.folder.dataset import load

__all__ = ["load"]
