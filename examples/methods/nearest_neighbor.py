"""The paper's ablation: the nearest reference's label, every pixel trusted alike (W = 1)."""

from dataclasses import replace

from examples.config import Config
from examples.data import Dataset
from examples.methods.rpg import RPG
from examples.models.base import Network


class NearestNeighbor(RPG):
    def __init__(self, config: Config, data: Dataset, net: Network, iterations: int) -> None:
        super().__init__(replace(config, weighted=False), data, net, iterations)
