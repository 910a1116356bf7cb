"""The paper's ablation: the nearest reference's label, every pixel trusted alike (W = 1)."""

from examples.methods.rpg import RPG


class NearestNeighbor(RPG):
    weighted = False
