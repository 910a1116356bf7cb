"""Predictions are judged at the images' original size where there is one, and images are read when they are needed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples.config import Config
from examples.data import IGNORE_INDEX, Dataset, ImageSet, LazyImages, load
from examples.data.base import CachedReader, Original
from examples.data.resize import Placement
from examples.data.retouch.index import Volume
from examples.engine.evaluation import evaluate, unlabeled_with_truth
from tests.examples.files import save_image
from tests.examples.volumes import HEIGHT, SCANS, WIDTH, draw_volume, write_tree


class Oracle(nn.Module):
    """Says what the labels of a batch are, as sure as can be."""

    def __init__(self, data: Dataset):
        super().__init__()
        part = data.test[range(len(data.test))]
        self.answers = {image.numpy().tobytes(): label for image, label in zip(part.images, part.labels, strict=True)}
        self.outputs, self.multilabel = data.num_outputs, data.multilabel

    def forward(self, images):
        labels = torch.stack([self.answers[image.numpy().tobytes()] for image in images])
        if self.multilabel:
            return labels.clamp(min=0).float() * 2 - 1, None
        return torch.stack([(labels == c).float() for c in range(self.outputs)], dim=1), None


class Everything(nn.Module):
    """Finds one class everywhere."""

    def __init__(self, outputs: int, channel: int):
        super().__init__()
        self.outputs, self.channel = outputs, channel

    def forward(self, images):
        logits = torch.zeros(len(images), self.outputs, *images.shape[2:])
        logits[:, self.channel] = 1
        return logits, None


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), volumes=3)


def load_tree(root: Path, **changes: object) -> Dataset:
    return load(Config("retouch", root=root, k=0.5, map_size=16, **{"image_size": WIDTH, **changes}))


@pytest.mark.parametrize("view", ["whole", "crop", "flatten"])
def test_the_truth_in_the_square_is_right_at_the_original_size(tree, view):
    data = load_tree(tree, retina=view)
    iou = evaluate(Oracle(data), data.test, data)
    assert iou.pooled().tolist() == [1, 1, 1]
    assert torch.cat(iou.unions).sum(0).tolist() == [
        (draw_volume(int(data.test.names[0][5:8]))[1] == c).sum() for c in (1, 2, 3)
    ]


def test_small_squares_are_judged_at_the_original_size_all_the_same(tree):
    data = load_tree(tree, image_size=48)
    iou = evaluate(Oracle(data), data.test, data)
    assert (iou.pooled() < 1).all()
    assert (iou.pooled() > 0.4).all()
    everything = evaluate(Everything(4, channel=2), data.test, data)
    assert torch.cat(everything.unions)[:, 1].tolist() == [WIDTH * HEIGHT] * SCANS


def test_what_is_cropped_away_is_background(tree):
    data = load_tree(tree, retina="crop")
    iou = evaluate(Everything(4, channel=2), data.test, data)
    kept = [original.placement.cut_sides[0] for original in data.test[range(SCANS)].originals]
    assert torch.cat(iou.unions)[:, 1].tolist() == [WIDTH * rows for rows in kept]
    assert max(kept) < HEIGHT


@pytest.mark.parametrize("multilabel", [True, False])
def test_a_folders_masks_are_judged_at_their_own_size(multilabel, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        mask = np.zeros((30 + i, 60), np.uint8)
        mask[3:20, 5:40] = 255
        masks = tmp_path / "masks" / ("lung" if multilabel else "")
        for folder, values in ((tmp_path / "images", rng.integers(0, 255, mask.shape, np.uint8)), (masks, mask)):
            save_image(folder / f"{i}.png", values)
    data = load(Config("folder", root=tmp_path, image_size=16, map_size=8, k=0.5, labeled=1))
    assert data.multilabel == multilabel
    for original in data.test[range(len(data.test))].originals:
        labels = original.read_labels()
        assert labels.shape[-2:] == (original.placement.height, original.placement.width)
        assert labels.sum() == 17 * 35
        assert set(labels.unique().tolist()) == {0, 1}
    everything = evaluate(Everything(data.num_outputs, channel=-1), data.test, data)
    sizes = sorted((30 + int(name)) * 60 for name in data.test.names)
    assert sorted(torch.cat(everything.unions)[:, 0].tolist()) == sizes
    iou = evaluate(Oracle(data), data.test, data).pooled()
    assert 0.7 < iou < 1


def test_images_without_an_original_are_judged_as_they_are():
    labels = torch.ones(2, 1, 8, 8, dtype=torch.int8)
    images = ImageSet(torch.zeros(2, 1, 8, 8), labels, ("a", "b"))
    data = Dataset(images, images, images, images, ("x",), (), True, "")
    assert evaluate(Everything(1, channel=0), images, data).pooled() == 1


# --- images that are read when they are needed


def one(key: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Original]:
    original = Original(Placement(4, 4, 4), lambda: torch.full((4, 4), key))
    labels = torch.full((4, 4), key, dtype=torch.int8)
    return torch.full((1, 4, 4), float(key)), labels, torch.ones(4, 4).bool(), original


def test_lazy_images_are_an_image_set_when_asked():
    lazy = LazyImages(one, str, (7, 8, 9), ("a", "b", "c")).to("cpu")
    batch = lazy[[2, 0]]
    assert len(lazy) == 3
    assert batch.names == ("c", "a")
    assert batch.images[:, 0, 0, 0].tolist() == [9, 7]
    assert batch.labels.dtype == torch.int64
    assert batch.labels[:, 0, 0].tolist() == [9, 7]
    assert [original.read_labels()[0, 0] for original in batch[[1]].originals] == [7]
    multilabel = replace(lazy, read=lambda key: (one(key)[0], one(key)[1][None], *one(key)[2:]))
    assert multilabel[[0]].labels.dtype == torch.int8


@pytest.mark.parametrize(
    "device",
    [
        "meta",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
        ),
    ],
)
def test_batches_go_to_the_device(device):
    read = CachedReader(one, 10**6)
    lazy = LazyImages(read, str, (7, 8), ("a", "b")).to(device)
    for _ in range(2):
        batch = lazy[[1, 0]]
        assert {part.device.type for part in (batch.images, batch.labels, batch.shown)} == {device}
        assert all(part.device.type == "cpu" for part in read(7)[:3])
        if device == "cuda":
            assert batch.images[:, 0, 0, 0].tolist() == batch.labels[:, 0, 0].tolist() == [8, 7]


def test_what_is_remembered_is_bounded_and_what_was_read_first():
    reads = []
    each = sum(part.nbytes for part in one(0)[:3])
    read = CachedReader(lambda key: reads.append(key) or one(key), 3 * each + each // 2)
    lazy = LazyImages(read, str, tuple(range(5)), tuple("abcde"))
    lazy[[0, 1, 2]], lazy[[2, 1, 0]]
    assert reads == [0, 1, 2]
    lazy[[3, 4]], lazy[[2, 3, 0]]
    assert reads == [0, 1, 2, 3, 4, 3]
    assert len(read.kept) == 3
    assert lazy[[4, 1]].images[:, 0, 0, 0].tolist() == [4, 1]


@given(keys=st.lists(st.integers(0, 6), max_size=40), kept=st.integers(0, 8))
def test_whatever_is_remembered_images_are_those_on_disk(keys, kept):
    each = sum(part.nbytes for part in one(0)[:3])
    read = CachedReader(one, kept * each)
    for key in keys:
        assert all(torch.equal(a, b) for a, b in zip(read(key)[:3], one(key)[:3], strict=True))
    assert len(read.kept) == min(kept, len(set(keys)))
    assert read.room == (kept - len(read.kept)) * each


def test_the_size_of_the_cache_makes_no_other_run(tree):
    a, b = (load_tree(tree, cache_mib=mib) for mib in (0, 4096))
    assert not Config("retouch", cache_mib=0).differences(Config("retouch").plain())
    for _ in range(2):
        assert torch.equal(a.test[range(3)].images, b.test[range(3)].images)
        assert torch.equal(a.test[range(3)].labels, b.test[range(3)].labels)


def test_a_batch_reads_only_its_own_bscans(tree, monkeypatch):
    data = load_tree(tree)
    seen = []
    read = Volume.read_scan
    monkeypatch.setattr(Volume, "read_scan", lambda self, scan: seen.append(scan) or read(self, scan))
    data.test[[2]]
    assert seen == [2]


def test_held_back_are_the_images_of_which_only_the_method_does_not_know_the_labels():
    labels = torch.zeros(4, 2, 8, 8, dtype=torch.int8)
    labels[2] = IGNORE_INDEX  # nobody knows them
    every = ImageSet(torch.zeros(4, 1, 8, 8), labels, tuple("abcd"))
    data = Dataset(every[[1]], every, every, every, ("first", "second"), (), True, "drawn")
    assert unlabeled_with_truth(data).names == ("a", "d")
    unknown = replace(data, unlabeled=every[[1, 2]])
    assert len(unlabeled_with_truth(unknown)) == 0
