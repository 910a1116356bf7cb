"""The best use of RPG that we found on JSRT: wait until the network has learned, and keep an average of its weights.

Not in the paper. Matched from the start, features that separate nothing yet give wrong labels, and what they teach is
slow to be unlearned; the average (Tarvainen & Valpola 2017) evens out the steps that single pseudo-labels push the
network about by. Both were chosen by the held-back masks of one split. The average helps ``supervised`` more than it
helps RPG: compare with ``--method supervised --average``, which this does not beat (docs/results).
"""

from dataclasses import replace

from examples.config import Config
from examples.data import Dataset
from examples.methods.rpg import RPG
from examples.unet import UNet

WARM_UP = 0.4  # share of the run, at least


class RPGBest(RPG):
    def __init__(self, config: Config, data: Dataset, net: UNet, iterations: int) -> None:
        config = replace(config, average=True, warm_up=max(config.warm_up, WARM_UP))
        super().__init__(config, data, net, iterations)
