"""RETOUCH: volumes of retinal OCT."""

from examples.data.retouch.dataset import load

__all__ = ["load"]
