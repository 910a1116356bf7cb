"""Whatever moves an image moves its labels and its validity with it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from examples.data import IGNORE_INDEX
from examples.data.augment import (
    GEOMETRIC,
    OPERATIONS,
    PHOTOMETRIC,
    StrongAugmentation,
    WeakAugmentation,
    swap_classes,
    warp,
)

PAIRS = ((0, 1),)
seeds = st.integers(0, 2**31)


def blobs(seed: int, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images that equal their own third label, which holds no class of a pair, and labels of three classes."""
    grid = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    g = Generator().manual_seed(seed)
    masks = []
    for _ in range(2):
        cx, cy, r = (0.5 * torch.rand(3, generator=g) + torch.tensor([-0.25, -0.25, 0.2])).tolist()
        disc = (x - cx) ** 2 + (y - cy) ** 2 < r**2
        masks.append(torch.stack([x < 0, x > 0, disc]))
    labels = torch.stack(masks).to(torch.int8)
    return labels[:, 2:].float() * 2 - 1, labels


def weak(seed: int) -> WeakAugmentation:
    augmentation = WeakAugmentation(PAIRS, Generator().manual_seed(seed))
    augmentation.jitter = lambda images: images  # geometry alone
    return augmentation


def inside(mask: torch.Tensor, reach: int = 1) -> torch.Tensor:
    """Pixels all of whose neighbors are seen and agree: there interpolation cannot differ from nearest."""
    mask = mask.float()[:, None]
    smallest, largest = (
        sign * torch.nn.functional.max_pool2d(sign * mask, 2 * reach + 1, 1, reach) for sign in (-1, 1)
    )
    seen = torch.zeros_like(mask, dtype=torch.bool)
    seen[..., reach:-reach, reach:-reach] = True
    return (seen & (largest == smallest))[:, 0]


@given(seeds)
def test_weak_image_and_labels_stay_aligned(seed):
    images, labels = blobs(seed)
    view = weak(seed)(images, labels)
    disc = view.labels[:, 2] == 1
    sure = inside(disc) & inside(view.valid) & view.valid
    assert ((view.images[:, 0] > 0) == disc)[sure].all()
    assert disc.any()


@given(seeds)
def test_weak_ignores_exactly_what_it_uncovers(seed):
    images, labels = blobs(seed)
    view = weak(seed)(images, labels)
    assert view.labels.dtype == labels.dtype
    assert ((view.labels == IGNORE_INDEX) == ~view.valid[:, None]).all()
    assert (view.images[:, 0][~view.valid & inside(view.valid)] == 0).all()
    # Left and right cover the image: so one of them is where an image is, on whichever side it went.
    assert ((view.labels[:, 0] == 1) | (view.labels[:, 1] == 1))[view.valid].all()


@given(seeds)
def test_flip_swaps_left_and_right(seed):
    """The right side of the patient stays at the image's left, mirrored or not."""
    images, labels = blobs(seed)
    view = weak(seed)(images, labels)
    right, left = view.labels[:, 0, :, :8] == 1, view.labels[:, 1, :, :8] == 1
    assert (right.sum((1, 2)) > left.sum((1, 2))).all()


def test_swap_classes_counts_class_maps_without_background():
    labels = torch.tensor([[[0, 1, 2, 3, IGNORE_INDEX]]])
    assert swap_classes(labels, PAIRS).tolist() == [[[0, 2, 1, 3, IGNORE_INDEX]]]


def test_class_maps_take_the_same_path_as_overlapping_labels():
    images, labels = blobs(3)
    class_map = 1 + labels[:, 1].long()  # 1 where right, 2 where left
    moved = weak(3)(images, class_map).labels
    expected = weak(3)(images, labels).labels
    assert ((moved == 1) == (expected[:, 0] == 1)).all()
    assert ((moved == IGNORE_INDEX) == (expected[:, 0] == IGNORE_INDEX)).all()


@given(seeds)
def test_strong_image_and_warp_stay_aligned(seed):
    images, labels = blobs(seed)
    strong = StrongAugmentation(Generator().manual_seed(seed))
    strong.rand_augment = lambda image, original=strong.rand_augment: (image, original(image)[1])
    view = strong(images)
    moved = view.warp(torch.cat([labels.float(), torch.ones_like(images)], dim=1))
    disc, covered = moved[:, 2] > 0.5, moved[:, 3] > 0.5
    sure = inside(disc) & inside(covered) & covered & ~view.cutout
    assert ((view.images[:, 0] > 0) == disc)[sure].all()
    assert (view.images[:, 0][view.cutout | (~covered & inside(covered))] == 0).all()
    assert (moved[:, :3][~covered[:, None].expand(-1, 3, -1, -1)] == 0).all()


@given(seeds)
def test_cutout_is_half_the_side_and_clipped_at_the_border(seed):
    squares = StrongAugmentation(Generator().manual_seed(seed)).cutout_squares(torch.zeros(4, 1, 32, 32))
    for square in squares:
        rows, columns = square.any(1).sum().item(), square.any(0).sum().item()
        assert square.sum() == rows * columns
        assert 8 <= rows <= 16
        assert 8 <= columns <= 16


@given(seeds)
def test_same_seed_same_views(seed):
    images, labels = blobs(seed)
    first, second = (WeakAugmentation(PAIRS, Generator().manual_seed(seed))(images, labels) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[:4], second[:4], strict=True))
    assert torch.equal(first.carry(labels.float()), second.carry(labels.float()))
    first, second = (StrongAugmentation(Generator().manual_seed(seed))(images) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.warp(images), second.warp(images))


@pytest.mark.parametrize("operation", PHOTOMETRIC)
@pytest.mark.parametrize("magnitude", [1, 9])
def test_photometric_operations_stay_in_range(operation, magnitude):
    image = torch.rand(1, 1, 16, 16)
    changed = PHOTOMETRIC[operation](image.clone(), magnitude)
    assert changed.shape == image.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert torch.equal(changed, image) == (operation == "Identity")


def test_operations_are_those_of_fixmatch_without_color():
    listed = "AutoContrast Equalize Identity Brightness Contrast Sharpness Posterize Solarize"
    moving = "Rotate ShearX ShearY TranslateX TranslateY"
    assert " ".join(OPERATIONS) == f"{listed} {moving}"


def test_geometric_operations_have_fixmatch_magnitudes():
    picture = torch.zeros(1, 1, 100, 100)
    picture[..., 50, 50] = 1
    moved = warp(picture, GEOMETRIC["TranslateX"](-5)[None])
    assert moved[0, 0].nonzero().tolist() == [[50, 65]]  # 0.03 * 5 of the side
    assert GEOMETRIC["Rotate"](9)[0, 0].item() == pytest.approx(0.8910, abs=1e-4)  # cos 27 degrees
    assert GEOMETRIC["ShearX"](9)[0, 1].item() == pytest.approx(0.27)


@given(seeds)
def test_padding_is_not_valid(seed):
    """Wherever the warp takes it: here padding and nothing else is bright."""
    shown = torch.ones(2, 32, 32, dtype=torch.bool)
    shown[:, 24:] = False
    images = (~shown)[:, None].float() * 2 - 1
    view = weak(seed)(images, torch.zeros(2, 2, 32, 32, dtype=torch.int8), shown)
    assert (view.images[:, 0][view.valid] < 0.1).all()
    assert (view.labels.masked_fill(view.valid[:, None], IGNORE_INDEX) == IGNORE_INDEX).all()
    assert (view.labels[:, 0][view.valid] == 0).all()
    assert view.valid.float().mean() > 0.3
