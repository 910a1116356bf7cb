"""What goes into a square comes out of it, and nothing comes from where nothing was kept."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from examples.data.resize import Placement

NEAREST = Image.Resampling.NEAREST


@st.composite
def placements(draw) -> Placement:
    """Squares as large as what is kept, so that nothing is resized."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rows, shift = None, None
    if draw(st.booleans()):
        top = draw(st.integers(-5, height - 1))
        rows = top, draw(st.integers(max(top, 0) + 1, height + 5))
        if draw(st.booleans()):
            shift = np.array(draw(st.lists(st.integers(-6, 6), min_size=width, max_size=width)))
    kept = rows[1] - rows[0] if rows else height
    return Placement(height, width, max(kept, width), rows, shift)


def classes(placement: Placement, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 4, (placement.height, placement.width)).astype(np.int32)


@given(placements(), st.integers(0, 100))
def test_what_was_placed_is_restored_and_the_rest_is_background(placement, seed):
    ids = classes(placement, seed)
    placed = torch.from_numpy(placement.place(ids, -100, NEAREST))
    assert placed.shape == (placement.size, placement.size)
    assert torch.equal(placed != -100, torch.from_numpy(placement.shown()))

    top, bottom = placement.rows or (0, placement.height)
    row = np.arange(placement.height)[:, None] - (0 if placement.shift is None else placement.shift)
    kept = np.broadcast_to((row >= top) & (row < bottom), ids.shape)
    logits = torch.stack([(placed == c).float() for c in range(4)])
    restored = placement.restore(logits, multilabel=False)
    assert restored.shape == (4, placement.height, placement.width)
    assert torch.equal(restored.argmax(0), torch.from_numpy(np.where(kept, ids, 0)).long())
    assert (restored.softmax(0)[0, torch.from_numpy(~kept)] == 1).all()

    masks = placement.restore(logits[1:] - 0.5, multilabel=True) > 0
    assert torch.equal(masks, torch.from_numpy(np.stack([kept & (ids == c) for c in (1, 2, 3)])))
    assert placement.shown().sum() == kept.sum()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
def test_logits_come_back_at_the_original_size(height, width, size):
    placement = Placement(height, width, size)
    logits = torch.full((2, size, size), 99.0)
    logits[:, torch.from_numpy(placement.shown())] = torch.tensor([[-1.0], [2.0]])  # padding must not leak in
    restored = placement.restore(logits, multilabel=True)
    assert restored.shape == (2, height, width)
    assert torch.allclose(restored, torch.tensor([-1.0, 2.0])[:, None, None])


def test_restored_logits_are_bilinear():
    placement = Placement(4, 8, 4)
    logits = torch.zeros(1, 4, 4)
    logits[0, :, 2:] = 1
    row = placement.restore(logits, multilabel=True)[0, 1]
    assert torch.allclose(row, torch.tensor([0, 0, 0, 0.25, 0.75, 1, 1, 1]))
