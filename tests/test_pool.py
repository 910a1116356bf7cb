import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from rpg_loss import ReferencePool
from rpg_loss import pool as pool_module


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@st.composite
def coverable(draw):
    """A presence matrix and a size for which a covering draw exists."""
    classes, size = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    images = draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    presence = torch.rand(images, classes, generator=generator) < draw(st.sampled_from([0.1, 0.3, 0.7]))
    owner = torch.randint(min(size, images), (classes,), generator=generator)
    presence[owner, torch.arange(classes)] = True
    return presence[torch.randperm(images, generator=generator)], size


@given(case=coverable(), seed=st.integers(0, 2**32), rejections=st.sampled_from([0, 1000]))
def test_every_draw_covers(case, seed, rejections):
    presence, size = case
    pool = ReferencePool(presence, size, generator=seeded(seed))
    before, pool_module._MAX_REJECTIONS = pool_module._MAX_REJECTIONS, rejections
    try:
        draws = [pool.sample() for _ in range(10)]
    finally:
        pool_module._MAX_REJECTIONS = before
    for draw in draws:
        assert len(draw) == size
        assert presence[draw].any(0).all()
        if len(presence) >= size:
            assert len(set(draw)) == size


def test_uniform_over_the_draws_that_cover():
    presence = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0], [1, 1, 1]])
    covering = [c for c in itertools.combinations(range(6), 3) if presence[list(c)].any(0).all()]
    pool = ReferencePool(presence, 3, generator=seeded())
    draws = 6000
    counts = Counter(tuple(sorted(pool.sample())) for _ in range(draws))
    assert set(counts) == set(covering)
    expected = draws / len(covering)
    chi2 = sum((counts[c] - expected) ** 2 / expected for c in covering)
    degrees = len(covering) - 1
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)  # five standard deviations


def test_order_within_a_draw_is_random():
    pool = ReferencePool(torch.ones(3, 1), 3, generator=seeded())
    assert len({tuple(pool.sample()) for _ in range(200)}) == 6


def test_rare_covers_are_constructed_and_vary():
    """Two of 2000 images hold the second class: rejection would take hundreds of thousands of draws."""
    presence = torch.zeros(2000, 3, dtype=torch.bool)
    presence[:, 0] = True
    presence[[7, 1500], 1] = True
    presence[[9, 900], 2] = True
    pool = ReferencePool(presence, 3, generator=seeded())
    draws = [pool.sample() for _ in range(30)]
    assert all(presence[draw].any(0).all() for draw in draws)
    assert all(len(set(draw)) == 3 for draw in draws)
    assert len({frozenset(draw) for draw in draws}) > 20


def test_with_replacement_where_there_are_too_few():
    presence = torch.tensor([[1, 0], [0, 1]])
    pool = ReferencePool(presence, 5, generator=seeded())
    draws = [pool.sample() for _ in range(100)]
    assert all(len(draw) == 5 and set(draw) == {0, 1} for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 20


def test_same_seed_same_stream():
    presence = torch.ones(20, 2)
    one, two, other = (ReferencePool(presence, 3, generator=seeded(seed)) for seed in (1, 1, 2))
    streams = [[pool.sample() for _ in range(20)] for pool in (one, two, other)]
    assert streams[0] == streams[1] != streams[2]


def test_without_a_generator_the_global_seed_decides():
    streams = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        pool = ReferencePool(torch.ones(20, 2), 3)
        streams.append([pool.sample() for _ in range(20)])
    assert streams[0] == streams[1] != streams[2]


@given(case=coverable(), before=st.integers(0, 5), seed=st.integers(0, 2**32))
def test_resume_mid_stream(case, before, seed):
    presence, size = case
    pool = ReferencePool(presence, size, generator=seeded(seed))
    for _ in range(before):
        pool.sample()
    state = pool.state_dict()
    expected = [pool.sample() for _ in range(8)]
    resumed = ReferencePool(presence, size, generator=seeded(seed + 1))
    resumed.load_state_dict(state)
    assert [resumed.sample() for _ in range(8)] == expected


class Maps(Dataset):
    def __init__(self, maps):
        self.maps = maps

    def __len__(self):
        return len(self.maps)

    def __getitem__(self, index):
        return self.maps[index]


@pytest.mark.parametrize("container", [list, torch.stack, Maps, lambda maps: [m.numpy() for m in maps]])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.uint16])
def test_label_maps(container, dtype):
    maps = [torch.tensor([[0, 1], [1, 1]]), torch.tensor([[2, 2], [2, 2]]), torch.tensor([[0, 2], [2, 1]])]
    pool = ReferencePool(container([m.to(dtype) for m in maps]), 2, num_classes=3)
    assert pool.presence.tolist() == [[True, True, False], [False, False, True], [True, True, True]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float32])
def test_label_vectors(dtype):
    maps = torch.zeros(3, 2, 4, 4)
    maps[0, 0, 1] = maps[1, 1, 2] = 1
    pool = ReferencePool(list(maps.to(dtype)), 2, multilabel=None if dtype.is_floating_point else True)
    assert pool.presence.tolist() == [[True, False], [False, True], [False, False]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_volumes_of_two_classes_and_label_vectors_must_be_told_apart(dtype):
    every_slice_holds_both = torch.tensor([0, 1]).repeat(4, 16, 8, 4).to(dtype)
    with pytest.raises(ValueError, match=r"multilabel: got None .*\(16, 8, 8\).*16 labels .*or volumes"):
        ReferencePool(list(every_slice_holds_both), 1)
    assert ReferencePool(list(every_slice_holds_both), 1, multilabel=True).presence.shape == (4, 16)
    assert ReferencePool(list(every_slice_holds_both), 1, multilabel=False).presence.shape == (4, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("highest", [1, 2])
def test_maps_as_monai_loads_them(dtype, highest):
    """(1, H, W), as floating point: what they should be is said; volumes of one slice are read as what they are."""
    maps = list(torch.arange(highest + 1).expand(2, 1, 4, highest + 1).to(dtype))
    if dtype == torch.int64 and highest == 2:
        assert ReferencePool(maps, 1).presence.shape == (2, 3)
        return
    error, name = (ValueError, "multilabel") if highest == 1 else (TypeError, r"labels\[0\]")
    with pytest.raises(error, match=rf"{name}: got .* label\[0\].long\(\), of a batch y\[:, 0\].long\(\)"):
        ReferencePool(maps, 1)


def test_lists_of_lists_are_not_mistaken_for_label_maps():
    """As an array it is a presence matrix."""
    rows = [[1, 0], [0, 1]]
    assert ReferencePool(np.array(rows), 2).presence.tolist() == [[True, False], [False, True]]
    with pytest.raises(TypeError, match=r"labels\[0\]: got list, .*for a presence matrix torch.tensor\(labels\)"):
        ReferencePool(rows, 2)
    with pytest.raises(TypeError, match=r"labels\[0\]: got int64, expected a label map"):
        ReferencePool(np.array([0, 1]), 2)


def test_one_tensor_of_maps_of_one_axis():
    """It looks like a presence matrix."""
    signals = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert ReferencePool(signals, 1, multilabel=False).presence.tolist() == [[True, True], [False, True]]


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match=r"presence matrix \(2, 0\).*expected one or more columns"):
        ReferencePool(torch.ones(2, 0))
    with pytest.raises(ValueError, match=r"first axes \[0\], .* expected one number above 0 of labels"):
        ReferencePool([torch.ones(0, 4, 4)], 1, multilabel=True)


def test_maps_with_a_channel_axis_of_floats_name_the_remedy():
    with pytest.raises(TypeError, match=r"labels\[0\].*label\[0\].long\(\)"):
        ReferencePool([torch.tensor([[0.0, 2.0]])], 1)
    with pytest.raises(TypeError, match=r"label\[0\].long\(\)"):
        ReferencePool([torch.tensor([[[0.0, 2.0]]])], 1, multilabel=False)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4)])
def test_masks_that_were_scaled_as_images_are_not_to_be_made_integers(shape):
    """All pixels would be background."""
    scaled = torch.randint(3, shape) / 255
    scaled.view(-1)[0] = 1 / 255
    with pytest.raises(
        TypeError, match=r"labels\[0\]: got .*ToTensor divides by 255.* load them as integers"
    ) as caught:
        ReferencePool([scaled], 1)
    assert ".long()" not in str(caught.value)


def test_an_epoch_of_so_many_draws():
    pool = ReferencePool(torch.eye(3), 3, length=4, generator=torch.Generator().manual_seed(0))
    endless = iter(ReferencePool(torch.eye(3), 3, generator=torch.Generator().manual_seed(0)))
    assert len(pool) == len(loader := DataLoader(range(3), batch_sampler=pool)) == 4
    assert len(list(loader)) == 4
    assert list(pool) == [next(endless) for _ in range(8)][4:]  # the stream goes on


def test_an_endless_pool_has_no_length():
    assert ReferencePool(torch.eye(3), 3)
    with pytest.raises(TypeError, match="length"):
        len(ReferencePool(torch.eye(3), 3))


def test_the_default_device_has_no_part_in_it():
    with torch.device("meta"):
        pool = ReferencePool(torch.eye(3, device="cpu"), 3)
        assert sorted(pool.sample()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [({"generator": 5}, TypeError, "generator"), ({"length": 0}, ValueError, "length"),
     ({"length": 2.0}, TypeError, "length"), ({"multilabel": 1}, TypeError, "multilabel")],
)  # fmt: skip
def test_options_of_the_wrong_kind_are_named(options, error, name):
    with pytest.raises(error, match=f"{name}: got"):
        ReferencePool(torch.eye(3), 3, **options)


def test_volumes_of_two_classes_are_not_mistaken_for_label_vectors_when_told():
    volumes = torch.zeros(2, 5, 4, 4, dtype=torch.int64)
    volumes[0, 2] = 1
    assert ReferencePool(list(volumes), 1, multilabel=False).presence.tolist() == [[True, True], [True, False]]
    with pytest.raises(ValueError, match=r"first axes \[5\].*expected 2 labels; pass multilabel=False"):
        ReferencePool(list(volumes), 1, num_classes=2, multilabel=True)


def test_volumes_of_several_classes_are_recognized():
    volumes = torch.randint(0, 3, (2, 5, 4, 4))
    assert ReferencePool(list(volumes), 1).presence.shape == (2, 3)


def test_ignored_pixels_hold_no_class():
    maps = [torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([[1, 255]], dtype=torch.uint8)]
    pool = ReferencePool(maps, 2, ignore_index=255)
    assert pool.presence.tolist() == [[True, False], [False, True]]
    vectors = [torch.tensor([[[-100, 0]], [[1, 0]]]), torch.tensor([[[1, 0]], [[-100, 0]]])]
    assert ReferencePool(vectors, 2, multilabel=True).presence.tolist() == [[False, True], [True, False]]


def test_class_numbers_need_not_be_dense():
    pool = ReferencePool([np.array([0, 7]), np.array([0, 3])], 2)
    assert pool.classes.tolist() == [0, 3, 7]
    assert sorted(pool.sample()) == [0, 1]


def test_batch_sampler_of_a_loader():
    labeled = [(torch.full((2,), float(i)), i % 2) for i in range(6)]
    loader = DataLoader(labeled, batch_sampler=ReferencePool([torch.tensor([y]) for _, y in labeled], 3))
    for _, (images, labels) in zip(range(20), loader, strict=False):
        assert images.shape == (3, 2)
        assert set(labels.tolist()) == {0, 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_resumes_at_the_end_of_an_epoch(workers):
    """Within one, a worker has drawn ahead."""

    def loader():
        pool = ReferencePool(torch.eye(8), 8, length=2)
        return DataLoader(torch.arange(8), batch_sampler=pool, num_workers=workers)

    whole, resumed = loader(), loader()
    for _ in whole:
        pass
    resumed.batch_sampler.load_state_dict(whole.batch_sampler.state_dict())
    torch.testing.assert_close(list(resumed), list(whole), rtol=0, atol=0)


def test_greedy_cover_that_is_too_long_is_improved_by_search():
    """The greedy choice, the image with most classes, belongs to no cover of two."""
    presence = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0]])
    assert sorted(ReferencePool(presence, 2).sample()) == [0, 1]


def test_rare_covers_with_replacement_are_constructed(monkeypatch):
    monkeypatch.setattr(pool_module, "_MAX_REJECTIONS", 0)
    pool = ReferencePool(torch.eye(2), 5, generator=seeded())
    draws = [pool.sample() for _ in range(20)]
    assert all(len(draw) == 5 and set(draw) == {0, 1} for draw in draws)


def test_search_gives_up_after_its_steps(monkeypatch):
    presence = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0]])
    pool = ReferencePool(presence, 2)
    monkeypatch.setattr(pool_module, "_DRAW_SEARCH_STEPS", 0)
    monkeypatch.setattr(pool_module, "_MAX_REJECTIONS", 0)
    assert sorted(pool.sample()) == [0, 1]  # the cover known from construction


def test_flipped_arrays_and_those_of_another_machine():
    """Torch reads neither negative strides nor another order of bytes."""
    label = np.zeros((4, 6), dtype=">i2")
    label[1:, :3] = 2
    assert ReferencePool([label[:, ::-1], np.flip(label)], 2).presence.tolist() == [[True, True], [True, True]]
    assert ReferencePool(np.eye(2, dtype=">i4")[::-1], 2).presence.tolist() == [[False, True], [True, False]]
