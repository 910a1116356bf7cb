"""Both losses from end to end against loops in float64: value and gradient, on problems drawn from fixed seeds."""

import math

import numpy as np
import pytest
import torch

from rpg_loss import FixMatchSegLoss, RPGLoss

from .problems import IGNORED, label_and_weight

SEEDS = range(60)


def cross_entropy(logits, label):
    """Loss and gradient of one pixel, ``(C,)``: of an index, or of 0/1 per class, then for every entry."""
    if np.ndim(label):
        p = 1 / (1 + np.exp(-logits))
        return np.logaddexp(0, logits) - label * logits, p - label
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return -math.log(p[label]), p - np.eye(len(logits))[label]


def mean_cross_entropy(logits, pixels):
    """Mean of W * CE and its gradient; ``pixels`` are (place, label or None where ignored, weight)."""
    gradient = np.zeros_like(logits)
    losses, number = 0.0, 0
    for (image, *place), label, weight in pixels:
        if label is None:
            continue
        number += np.size(label)
        if np.any(weight):
            loss, slope = cross_entropy(logits[(image, slice(None), *place)], label)
            losses += np.sum(weight * loss)
            gradient[(image, slice(None), *place)] += weight * slope
    return losses / max(number, 1), gradient / max(number, 1)


def places(images, spatial, grid):
    """Places of a map, and where each is taken from in a tensor of ``spatial`` axes."""
    for image, *place in np.ndindex(images, *grid):
        yield (image, *place), (image, *(i * size // side for i, size, side in zip(place, spatial, grid, strict=True)))


@pytest.mark.parametrize("seed", SEEDS)
def test_rpg_loss(seed):
    draw = np.random.default_rng(seed)
    axes, multilabel = 1 + seed % 3, bool(draw.integers(2))
    spatial = tuple(draw.integers(1, (9, 6, 4)[axes - 1], axes))
    fine = tuple(size * int(draw.integers(1, 3)) for size in spatial)  # grid of logits and labels
    if draw.integers(2):
        spatial, fine = fine, spatial
    images, pool, dim, classes = (int(draw.integers(low, 5)) for low in (1, 1, 2, 2))
    features = (
        draw.normal if seed % 4 else (lambda size: draw.integers(-2, 3, size).astype(float))
    )  # ties, zero vectors
    feat_u, feat_ref = features(size=(images, dim, *spatial)), features(size=(pool, dim, *spatial))
    shape = (pool, classes, *fine) if multilabel else (pool, *fine)
    y = draw.integers(0, 2 if multilabel else classes, shape)
    ignored = (draw.random((pool, *fine)) < 0.2) & bool(draw.integers(2))
    ignored[(0,) * ignored.ndim] = False  # one reference must be left
    y[np.broadcast_to(ignored[:, None] if multilabel else ignored, shape)] = IGNORED
    logits_u, logits_ref = 2 * draw.normal(size=(images, classes, *fine)), 2 * draw.normal(size=(pool, classes, *fine))
    valid = draw.random((images, *fine)) < 0.8
    map_size = tuple(draw.integers(1, 6, axes).tolist())
    weighted = bool(draw.integers(4))
    k = float(draw.uniform(0.01, 1)) if draw.integers(2) else int(draw.integers(1, 40))
    # What is ignored may be anything.
    np.moveaxis(logits_u, 1, -1)[~valid] = draw.choice([np.nan, np.inf, -np.inf])
    np.moveaxis(logits_ref, 1, -1)[ignored] = draw.choice([np.nan, np.inf, -np.inf])

    def label_at(place):
        image, *rest = place
        label = y[(image, slice(None), *rest)] if multilabel else y[place]
        return None if np.any(label == IGNORED) else label

    grid = tuple(np.min([map_size, spatial, fine], axis=0).tolist())
    of_map = [
        (place, here, there)
        for (place, here), (_, there) in zip(places(pool, spatial, grid), places(pool, fine, grid), strict=True)
    ]
    references = [(feat_ref[(here[0], slice(None), *here[1:])], label_at(there)) for _, here, there in of_map]
    references = [(feature, label) for feature, label in references if label is not None]
    number = min(k, len(references)) if isinstance(k, int) else max(1, round(k * len(references)))
    pixels = []
    for (_, here), (_, there) in zip(places(images, spatial, grid), places(images, fine, grid), strict=True):
        query = feat_u[(here[0], slice(None), *here[1:])]
        nearest, weight = label_and_weight(
            query, [feature for feature, _ in references], [str(label) for _, label in references], number
        )
        pixels.append((there, references[nearest][1] if valid[there] else None, weight if weighted else 1.0))
    value, gradient_u = mean_cross_entropy(logits_u, pixels)
    supervised, gradient_ref = mean_cross_entropy(
        logits_ref, [(place, label_at(place), 1.0) for place in np.ndindex(pool, *fine)]
    )

    dtype = torch.float64 if seed % 2 else torch.float32
    tensors = [torch.tensor(array, dtype=dtype) for array in (logits_u, feat_u, feat_ref)]
    reference_logits = torch.tensor(logits_ref, dtype=dtype, requires_grad=True)
    criterion = RPGLoss(k, map_size=map_size, weighted=weighted)
    loss = criterion(
        tensors[0].requires_grad_(), *tensors[1:], torch.tensor(y), reference_logits, valid_u=torch.tensor(valid)
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value + supervised, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(tensors[0].grad, gradient_u, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(reference_logits.grad, gradient_ref, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_fixmatch_loss(seed):
    draw = np.random.default_rng(seed)
    axes, multilabel = 1 + seed % 3, bool(draw.integers(2))
    spatial = tuple(draw.integers(2, (9, 6, 4)[axes - 1], axes))
    images, classes = int(draw.integers(1, 4)), int(draw.integers(2, 5))
    weak, strong = (scale * draw.normal(size=(images, classes, *spatial)) for scale in (4, 2))
    threshold, cutout = float(draw.uniform(0.3, 0.99)), str(draw.choice(["background", "ignore"]))
    cut = (draw.random((images, *spatial)) < 0.2) & bool(draw.integers(2))
    valid = draw.random((images, *spatial)) < 0.8
    shift = int(draw.integers(-1, 2))  # of the strong view along the last axis
    pixels = []
    for image, *place in np.ndindex(images, *spatial):
        here = (image, *place)
        source = (image, *place[:-1], place[-1] - shift)
        covered = 0 <= source[-1] < spatial[-1]
        if not covered or not valid[source] or (cut[here] and cutout == "ignore"):
            pixels.append((here, None, 0.0))
            strong[(image, slice(None), *place)] = draw.choice([np.nan, np.inf, -np.inf])  # may be anything
            continue
        logits = weak[(image, slice(None), *source[1:])]
        if multilabel:
            p = 1 / (1 + np.exp(-logits))
            label, kept = np.round(p), np.abs(p - 0.5) > abs(0.5 - threshold)
        else:
            p = np.exp(logits - logits.max())
            label, kept = int(logits.argmax()), bool((p / p.sum()).max() > threshold)
        if cut[here]:
            label, kept = label * 0, True
        pixels.append((here, label, np.broadcast_to(kept, np.shape(label)).astype(float)))
        if not np.any(kept):
            strong[(image, slice(None), *place)] = draw.choice([np.nan, np.inf, -np.inf])
    value, gradient = mean_cross_entropy(strong, pixels)

    def warp(maps):
        moved = torch.zeros_like(maps)
        last = spatial[-1]
        moved[..., max(shift, 0) : last + min(shift, 0)] = maps[..., max(-shift, 0) : last - max(shift, 0)]
        return moved

    dtype = torch.float64 if seed % 2 else torch.float32
    logits = torch.tensor(strong, dtype=dtype, requires_grad=True)
    loss, (labels, weights) = FixMatchSegLoss(threshold, multilabel=multilabel, cutout=cutout)(
        torch.tensor(weak, dtype=dtype),
        logits,
        warp=warp if shift or seed % 5 else None,
        cutout_mask=torch.tensor(cut) if cut.any() else None,
        valid_weak=torch.tensor(valid),
        return_pseudo_labels=True,
    )
    loss.backward()
    for (image, *place), label, kept in pixels:
        here = (image, slice(None), *place) if multilabel else (image, *place)
        assert np.array_equal(weights[here].numpy(), np.broadcast_to(kept, weights[here].shape))
        assert np.array_equal(labels[here].numpy() * kept, weights[here].numpy() * (0 if label is None else label))
    assert float(loss.detach()) == pytest.approx(value, rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(logits.grad, gradient, rtol=1e-4, atol=1e-6)
