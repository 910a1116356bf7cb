"""The methods by name; each is one short file."""

from examples.methods.base import Method, Step
from examples.methods.fixmatch import FixMatch
from examples.methods.iic import IIC
from examples.methods.mean_teacher import MeanTeacher
from examples.methods.mlds import MLDS
from examples.methods.nearest_neighbor import NearestNeighbor
from examples.methods.pseudolabel import PseudoLabel
from examples.methods.rpg import RPG
from examples.methods.rpg_plus import RPGPlus
from examples.methods.supervised import Supervised
from examples.methods.transfer import Transfer

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "pseudolabel": PseudoLabel,
    "nearest_neighbor": NearestNeighbor,
    "fixmatch": FixMatch,
    "iic": IIC,
    "mean_teacher": MeanTeacher,
    "mlds": MLDS,
    "rpg": RPG,
    "rpg_plus": RPGPlus,
    "transfer": Transfer,
}

__all__ = ["METHODS", "Method", "Step"]
