"""Reference-guided pseudo-labels (RPG) for semi-supervised segmentation, as a loss for any PyTorch loop.

    from rpg_loss import RPGLoss

    criterion = RPGLoss()
    loss = criterion(logits_u, feat_u, feat_ref, y_ref, logits_ref)

Method: Seibold, Reiss, Kleesiek, Stiefelhagen, "Reference-Guided Pseudo-Label Generation for Medical
Semantic Segmentation", AAAI 2022.  "Eq. n" throughout refers to its equations.
"""

from .cross_entropy import segmentation_cross_entropy
from .fixmatch import FixMatchSegLoss, fixmatch_targets
from .frozen import FrozenFeatures
from .loss import RPGLoss
from .pool import ReferencePool
from .pseudo_labels import PseudoLabels, rpg_pseudo_labels
from .tap import FeatureTap
from .weights import entropy_weights

__version__ = "0.1.0"

__all__ = [
    "FeatureTap",
    "FixMatchSegLoss",
    "FrozenFeatures",
    "PseudoLabels",
    "RPGLoss",
    "ReferencePool",
    "entropy_weights",
    "fixmatch_targets",
    "rpg_pseudo_labels",
    "segmentation_cross_entropy",
]
