"""The drawn OCT volumes have the fluids, the shares and the continuity that they promise, and make a data set."""

from itertools import product

import numpy as np
import pytest
import torch

from examples.config import Config
from examples.data import load
from examples.data.base import Dataset
from examples.data.phantoms import oct
from examples.data.phantoms.oct import CARRIED, CLASSES, IRF, PED, SRF, Volume
from examples.train import train

SIDE = 64
VOLUMES, B_SCANS = 32, 16


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Class maps (V, S, H, W) of a sample."""
    drawn = [Volume(v).label(s, B_SCANS, SIDE, SIDE) for v, s in product(range(VOLUMES), range(B_SCANS))]
    return np.stack(drawn).reshape(VOLUMES, B_SCANS, SIDE, SIDE)


def config(**changes: object) -> Config:
    return Config(**{"dataset": "oct_phantom", "image_size": SIDE, "map_size": 16, "k": 0.5, **changes})


@pytest.fixture
def few(monkeypatch):
    for part, volumes in (("TRAIN", 4), ("VALIDATION", 1), ("TEST", 4)):
        monkeypatch.setattr(oct, part, volumes)
    monkeypatch.setattr(oct, "B_SCANS", 8)


# --- volumes


def test_fluids_have_their_shares(labels):
    for fluid, percent in ((IRF, 0.6), (SRF, 0.6), (PED, 0.3)):
        assert 100 * (labels == fluid).mean() == pytest.approx(percent, rel=0.3)
    assert (labels > 0).any((2, 3)).mean() == pytest.approx(0.5, abs=0.08)
    for index, volume in enumerate(labels):
        found = [name for number, name in enumerate(CLASSES, start=1) if (volume == number).any()]
        assert set(found) == set(CARRIED[index % len(CARRIED)])


def test_fluids_persist_over_neighboring_b_scans():
    """Most of a fluid is where the next of 49 B-scans has it as well, and half of a volume further it is not."""
    volume = Volume(3)
    stack = np.stack([volume.label(s, 49, SIDE, SIDE) for s in range(49)])
    for fluid in (IRF, SRF, PED):
        mask = stack == fluid
        assert (mask[1:] & mask[:-1]).sum() > 0.5 * mask.sum()
        assert (mask[24:] & mask[:-24]).sum() < 0.1 * mask.sum()
    there = (stack > 0).any((1, 2))
    assert np.flatnonzero(there[1:] != there[:-1]).size == 2  # fluid begins once and ends once


@pytest.mark.parametrize("index", range(8))
def test_fluids_lie_between_their_layers(index):
    """Above SRF is the retina, below it the RPE; above PED is the RPE, which it lifts; IRF is in the nuclear layers."""
    volume = Volume(index)
    for b_scan in range(0, B_SCANS, 3):
        x, y, z = volume.axes(b_scan, B_SCANS, SIDE, SIDE)
        tops = volume.surfaces(x, y)
        depths = np.stack(list(tops.values()))  # from the choroid upwards
        assert (np.diff(depths, axis=0) <= 0).all()
        label = volume.label(b_scan, B_SCANS, SIDE, SIDE)
        for fluid, upper, lower in ((IRF, "inl", "is"), (SRF, "srf", "rpe"), (PED, "ped", "choroid")):
            rows, columns = (label == fluid).nonzero()
            assert (z[rows, 0] >= tops[upper][columns]).all()
            assert (z[rows, 0] < tops[lower][columns]).all()
        without = Volume(index)
        without.ped = []
        lifted = without.surfaces(x, y)["rpe"] - tops["rpe"]
        columns = (label == PED).any(0)
        assert (lifted[columns] > 0).all()


def test_volumes_are_the_same_every_time_and_at_every_size():
    image, label = Volume(7).draw(8, B_SCANS, SIDE, SIDE)
    again, label_again = Volume(7).draw(8, B_SCANS, SIDE, SIDE)
    assert (image == again).all()
    assert (label == label_again).all()
    assert (label == Volume(7).label(8, B_SCANS, SIDE, SIDE)).all()
    large, large_label = Volume(7).draw(8, B_SCANS, 6 * SIDE, 4 * SIDE)
    assert large.shape == large_label.shape == (4 * SIDE, 6 * SIDE)
    blocks = large_label.reshape(SIDE, 4, SIDE, 6)
    for fluid in (IRF, SRF, PED):
        shrunk = (blocks == fluid).mean((1, 3)) > 0.5
        assert (shrunk & (label == fluid)).sum() > 0.85 * (shrunk | (label == fluid)).sum()
    averaged = large.reshape(SIDE, 4, SIDE, 6).mean((1, 3))
    assert averaged.mean() == pytest.approx(image.mean(), rel=0.05)
    assert np.corrcoef(averaged.ravel(), image.ravel())[0, 1] > 0.9
    assert (Volume(8).draw(8, B_SCANS, SIDE, SIDE)[0] != image).mean() > 0.9


def test_speckle_is_finer_than_the_pixels_of_a_small_image():
    """In the vitreous, where all is noise, it averages out in large pixels."""
    relative = []
    for side in (32, 128, 512):
        vitreous = Volume(7).draw(8, B_SCANS, side, side)[0][: side // 5] ** (1 / Volume(7).gamma)
        rows = vitreous.mean(1, keepdims=True)
        relative.append((vitreous / rows).std())
    assert relative[0] < 0.6 * relative[1] < 0.36 * relative[2]


@pytest.mark.parametrize("index", range(len(CARRIED)))
def test_images_show_what_the_labels_say(index):
    """Fluids are darker than the RPE below or above them, and the clear ones than the retina as a whole."""
    volume = Volume(index)
    image, label = volume.draw(8, B_SCANS, 128, 128)
    x, y, z = volume.axes(8, B_SCANS, 128, 128)
    tops = volume.surfaces(x, y)
    rpe = (z > tops["rpe"]) & (z < tops["ped"])
    retina = (z > tops["nfl"]) & (z < tops["srf"]) & (label == 0)
    assert image[rpe].mean() > 1.5 * image[retina].mean() > 1.5 * image[z[:, 0] < 0.2].mean()
    for fluid in set(np.unique(label)) - {0}:
        assert image[label == fluid].mean() < 0.6 * image[rpe].mean()
    clear = (label == IRF) | (label == SRF)
    assert image[clear].mean() < 0.6 * image[retina].mean()


@pytest.mark.parametrize("index", range(len(CARRIED)))
def test_no_threshold_tells_fluid_from_the_rest(index):
    """Whatever the range of gray values, fluid is a small part of what is in it."""
    volume = Volume(index)
    drawn = [volume.draw(s, B_SCANS, SIDE, SIDE) for s in range(B_SCANS)]
    image, label = (np.stack(part) for part in zip(*drawn, strict=True))
    for fluid in set(np.unique(label)) - {0}:
        low, high = np.quantile(image[label == fluid], [0.25, 0.75])
        inside = (image >= low) & (image <= high)
        assert (label[inside] == fluid).mean() < 0.15


# --- data set


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load(config())


def test_the_data_set_keeps_its_contract(data):
    assert (data.class_names, data.num_outputs, data.multilabel) == (CLASSES, 4, False)
    assert (data.flip_pairs, data.score) == ((), "miou_pooled")
    assert [len(part) for part in (data.labeled, data.unlabeled, data.validation, data.test)] == [3, 320, 64, 128]
    for part in (data.labeled, data.unlabeled, data.validation, data.test):
        assert part.images.shape == (len(part), 1, SIDE, SIDE)
        assert part.images.dtype == torch.float32
        assert (part.images.amin((1, 2, 3)) == -1).all()
        assert (part.images.amax((1, 2, 3)) == 1).all()
        assert part.labels.shape == (len(part), SIDE, SIDE)
        assert part.labels.dtype == torch.int64
        assert part.labels.unique().tolist() == [0, 1, 2, 3]


def test_a_volume_is_never_divided(data):
    volumes = [{name.split("_")[0] for name in part.names} for part in (data.unlabeled, data.validation, data.test)]
    assert [len(part) for part in volumes] == [20, 4, 8]
    assert len(set.union(*volumes)) == 32
    assert set(data.labeled.names) < set(data.unlabeled.names)


def test_every_fluid_is_labeled_and_a_split_is_another_draw(few):
    drawn = set()
    for split, labeled in product(range(2), (3, 6)):
        data = load(config(split=split, labeled=labeled))
        assert len(data.labeled) == labeled
        assert all((data.labeled.labels == fluid).float().mean() > 1e-4 for fluid in (IRF, SRF, PED))
        assert data.labeled.names == load(config(split=split, labeled=labeled)).labeled.names
        drawn.add(data.labeled.names)
    assert len(drawn) == 4


def test_a_split_is_the_same_at_every_size(few, data):
    assert load(config()).labeled.names == load(config(image_size=32)).labeled.names
    position = [data.unlabeled.names.index(name) for name in data.labeled.names]
    assert torch.equal(data.labeled.labels, data.unlabeled.labels[position])


def test_more_labeled_b_scans_than_there_are_are_refused(few):
    with pytest.raises(ValueError, match="labeled: 33, but there are only 32 training B-scans"):
        load(config(labeled=33))


def test_too_few_to_show_every_fluid_are_refused(few, monkeypatch):
    monkeypatch.setattr(oct, "SHOWN", 0.9)
    with pytest.raises(ValueError, match="labeled: 2, but no draw of so few B-scans shows irf, srf, ped"):
        load(config(labeled=2))


def test_it_trains(few, tmp_path):
    result = train(config(method="rpg_plus", base_channels=4, iterations=3, out=tmp_path / "run"))
    assert result["iou_per_class_pooled"].keys() == set(CLASSES)
    assert result["score"] == "miou_pooled"
    assert 0 <= result["miou_pooled"] <= 1
    assert list(result["pseudo_label_weight"]) == [*CLASSES, "background"]
