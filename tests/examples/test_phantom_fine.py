"""The phantoms' other labels: classes that exclude each other, and many overlapping parts."""

import pytest
import torch

from examples.config import Config
from examples.data import load
from examples.data.augment import swap_classes
from examples.data.base import Dataset
from examples.data.fusing import fuse_masks
from examples.data.phantoms import chest as phantom
from examples.data.phantoms.fine import CLASSES, divide, fine_masks, part_counts

SIDE = 64


def few_phantoms(dataset: str, **changes: object) -> Dataset:
    return load(Config(**{"dataset": dataset, "image_size": SIDE, "map_size": 16, "k": 0.5, **changes}))


@pytest.fixture(scope="module", autouse=True)
def only_few():
    with pytest.MonkeyPatch.context() as patch:
        for part, count in (("TRAIN", 8), ("VALIDATION", 2), ("TEST", 2)):
            patch.setattr(phantom, part, count)
        yield


@pytest.fixture(scope="module")
def plain() -> Dataset:
    return few_phantoms("phantom")


@pytest.fixture(scope="module")
def fine() -> Dataset:
    return few_phantoms("phantom_fine")


# --- exclusive


def test_later_classes_cover_earlier_ones(plain):
    data = few_phantoms("phantom_exclusive")
    assert not data.multilabel
    assert data.num_outputs == 6
    for part in ("labeled", "unlabeled", "validation", "test"):
        masks, ids = getattr(plain, part).labels, getattr(data, part).labels
        assert ids.dtype == torch.int64
        assert getattr(plain, part).names == getattr(data, part).names
        expected = torch.zeros_like(ids)
        for c in range(5):
            expected[masks[:, c] == 1] = c + 1
        assert torch.equal(ids, expected)
    overlap = (plain.unlabeled.labels[:, 0] & plain.unlabeled.labels[:, 3]) == 1
    assert overlap.any()
    assert (data.unlabeled.labels[overlap] == 4).all()


# --- fine


def test_the_default_is_72_parts_that_overlap_and_are_never_empty(fine):
    labels = fine.unlabeled.labels
    assert labels.shape == (8, 72, SIDE, SIDE)
    assert labels.dtype == torch.int8
    assert len(set(fine.class_names)) == 72
    assert "right_lung_03" in fine.class_names
    assert labels.flatten(2).any(2).all()
    assert labels.sum(1).float()[labels.any(1)].mean() > 1.5
    distinct = {part.numpy().tobytes() for part in labels[0]}
    assert len(distinct) == 72


@pytest.mark.parametrize("count", [5, 7, 72, 200])
def test_the_union_of_a_structures_parts_is_the_structure(count, plain):
    data = few_phantoms("phantom_fine", fine_labels=count)
    assert len(data.class_names) == count
    assert sorted(sum(data.fused.values(), ())) == list(range(count))
    assert data.evaluated_names == CLASSES
    assert all(data.class_names[i].startswith(label) for label, parts in data.fused.items() for i in parts)
    for part in ("labeled", "unlabeled", "validation", "test"):
        fused = fuse_masks(getattr(data, part).labels > 0, data.fused)
        assert torch.equal(fused, getattr(plain, part).labels > 0)
    assert data.unlabeled.labels.flatten(2).any(2).all()


@pytest.mark.parametrize("count", [6, 72])
def test_mirrored_images_are_labelled_as_if_drawn_so(count, plain):
    data = few_phantoms("phantom_fine", fine_labels=count)
    structures = swap_classes(plain.unlabeled.labels.flip(-1), plain.flip_pairs)
    drawn = torch.stack([fine_masks(masks, part_counts(count)) for masks in structures])
    mirrored = swap_classes(data.unlabeled.labels.flip(-1), data.flip_pairs)
    assert torch.equal(drawn, mirrored)
    assert not torch.equal(data.unlabeled.labels, mirrored)


def test_parts_are_shared_out_by_area():
    assert part_counts(72) == dict(zip(CLASSES, (26, 26, 16, 2, 2), strict=True))
    for total in range(5, 201):
        counts = part_counts(total)
        assert sum(counts.values()) == total
        assert min(counts.values()) >= 1
        assert counts["right_lung"] == counts["left_lung"]
        assert counts["right_clavicle"] == counts["left_clavicle"]
    with pytest.raises(ValueError, match="fine_labels: 4, expected 5 or more"):
        part_counts(4)


def test_structures_too_small_to_divide_keep_every_part():
    mask = torch.zeros(8, 8, dtype=torch.bool).numpy()
    assert not divide(mask, "heart", 3).any()
    mask[4, 4] = True
    assert (divide(mask, "left_lung", 9) == mask).all()
