"""A run shared out over processes is the run of one: the same numbers, one writer, one end."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import examples.train
from examples.data import Dataset
from examples.methods import METHODS
from examples.train import train
from tests.examples.tiny import shrink, tiny
from tests.processes import needs_gloo, run

pytestmark = needs_gloo

# Passes of three steps (4, 4 and 3 unlabelled images: unlike shares), validations at 3 and 4.
SIZES = {"pool_size": 4, "unlabeled_batch": 4, "iterations": 4, "eval_every": 1}


def in_double_precision() -> None:
    """So that what differs differs by more than by the order of sums."""
    shrink()
    examples.data.phantom.TRAIN = 11
    load, net = examples.train.load, examples.train.UNet
    examples.train.UNet = lambda *sizes: net(*sizes).double()
    for name, method in METHODS.items():
        METHODS[name] = lambda *parts, method=method: method(*parts).double()

    def load_in_double(config) -> Dataset:
        data = load(config)
        parts = ("labeled", "unlabeled", "validation", "test")
        images = {part: getattr(data, part) for part in parts}
        return replace(data, **{part: replace(them, images=them.images.double()) for part, them in images.items()})

    examples.train.load = load_in_double


def result(out: Path) -> dict:
    content = json.loads((out / "result.json").read_text())
    for name in ("seconds", "environment", "config", "earlier_environments"):
        del content[name]
    return content | {"lines": [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]}


def assert_close(got, expected) -> None:
    """Up to the rounding of weights and clusters, which are float32."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for name in expected:
            assert_close(got[name], expected[name])
    elif isinstance(expected, list):
        for ours, theirs in zip(got, expected, strict=True):
            assert_close(ours, theirs)
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-7)
    else:
        assert got == expected


def train_here(rank, world, folder, configs) -> None:
    in_double_precision()
    for config in configs:
        train(replace(config, out=folder / config.out))


def runs() -> list:
    configs = [tiny(Path(method), method=method, **SIZES) for method in METHODS]
    configs.append(tiny(Path("bank"), bank_mib=4.0, bank_age=2, base_channels=16, **SIZES))
    return configs


def test_two_processes_are_one(tmp_path):
    for processes in (1, 2):
        run(partial(train_here, folder=tmp_path / str(processes), configs=runs()), processes, tmp_path)
        (tmp_path / "meet").unlink(missing_ok=True)
    for config in runs():
        one, two = (result(tmp_path / str(processes) / config.out) for processes in (1, 2))
        print(config.out)
        assert_close(two, one)
