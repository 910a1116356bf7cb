"""Volumes (B, D, z, y, x) from end to end: tap, pool, both losses, maps of anisotropic size, memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rpg_loss import FeatureTap, FixMatchSegLoss, ReferencePool, RPGLoss

from .problems import Largest

# A CT or MRI stack: few thick slices.
SIZE, MAP = (6, 16, 20), (6, 8, 5)


def volumes(multilabel):
    """Coarse blocks with noise, and their labels: three classes, or two that overlap and have a channel each."""
    coarse = torch.randint(2, (5, 2, 3, 4, 4)).float()
    labels = F.interpolate(coarse, SIZE, mode="nearest")
    if not multilabel:
        labels = labels.sum(1, keepdim=True)
    images = 2 * labels - labels.amax() + 0.2 * torch.randn_like(labels)
    return images, labels.long() if multilabel else labels[:, 0].long()


def network(channels, outputs):
    return nn.Sequential(
        nn.Conv3d(channels, 8, (1, 3, 3), padding=(0, 1, 1)),
        nn.ReLU(),
        nn.Conv3d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(8, outputs, 1),
    )


@pytest.mark.parametrize("multilabel", [False, True])
def test_training_on_volumes(multilabel):
    images, labels = volumes(multilabel)
    tap = FeatureTap(network(images.shape[1], 2 if multilabel else 3))
    draw = ReferencePool(labels[:3], size=2, multilabel=multilabel).sample()
    rpg, fixmatch = RPGLoss(0.5, map_size=MAP), FixMatchSegLoss(0.6, multilabel=multilabel)
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[:, 0] = False  # a padded slice

    def loss():
        logits, features = tap(images[draw])
        logits_u, features_u = tap(images[3:])
        logits_strong, _ = tap(1.1 * images[3:])
        loss, pseudo = rpg(
            logits_u, features_u, features, labels[draw], logits, valid_u=valid, return_pseudo_labels=True
        )
        assert pseudo.labels.shape == ((2, 2, *MAP) if multilabel else (2, *MAP))
        assert pseudo.weights.shape == (2, *MAP)
        assert (pseudo.weights[:, 0] == 0).all()
        return loss + fixmatch(logits_u, logits_strong, valid_weak=valid)

    optimizer = torch.optim.Adam(tap.parameters(), 1e-2)
    first = loss().item()
    for _ in range(20):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.8 * first


@pytest.mark.parametrize("multilabel", [False, True])
def test_every_voxel_of_a_volume_without_the_matrix(multilabel):
    """map_size=None, one volume against three: the largest tensor stays far below voxels x voxels."""
    size, labels = (16, 16, 16), torch.randint(3, (3, 16, 16, 16))
    if multilabel:
        labels = torch.stack([labels > 0, labels > 1], 1).long()
    logits = torch.randn(1, 2 if multilabel else 3, *size, requires_grad=True)
    criterion = RPGLoss(0.5, map_size=None)
    with Largest() as largest:
        criterion(logits, torch.randn(1, 8, *size), torch.randn(3, 8, *size), labels).backward()
    queries, references = 16**3, 3 * 16**3
    assert largest.numel <= 2**22 < queries * references / 10
