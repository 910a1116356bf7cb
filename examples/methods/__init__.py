"""The methods by name; each is one short file."""

from examples.methods.base import Method, Step
from examples.methods.fixmatch import FixMatch
from examples.methods.nearest_neighbor import NearestNeighbor
from examples.methods.rpg import RPG
from examples.methods.rpg_plus import RPGPlus
from examples.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "nearest_neighbor": NearestNeighbor,
    "fixmatch": FixMatch,
    "rpg": RPG,
    "rpg_plus": RPGPlus,
}

__all__ = ["METHODS", "Method", "Step"]
