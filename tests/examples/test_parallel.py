"""A run shared out over processes is the run of one: the same numbers, one writer, one end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import examples.data.loaders
import examples.engine.run
from examples.config import Config
from examples.data import Dataset, load
from examples.data.loaders import UnlabeledBatches
from examples.data.phantoms import chest as phantom
from examples.engine.checkpoint import Checkpoints, load_verified
from examples.engine.distributed import SyncedBatchNorm
from examples.engine.loop import train
from examples.engine.signals import Interrupted
from examples.methods import METHODS
from examples.methods.supervised import Supervised
from tests.examples.tiny import shrink, signal_at_step, tiny
from tests.processes import needs_gloo, run

pytestmark = needs_gloo

# Passes of three steps (4, 4 and 3 unlabeled images: unlike shares), validations at 3 and 4.
SIZES = {"pool_size": 4, "unlabeled_batch": 4, "iterations": 4, "eval_every": 3}


def in_double_precision() -> None:
    """So that what differs differs by more than by the order of sums."""
    shrink()
    for name, count in (("TRAIN", 11), ("VALIDATION", 1), ("TEST", 3)):  # one validates nothing
        setattr(phantom, name, count)
    load, build = examples.engine.run.load, examples.engine.run.build_network
    examples.engine.run.build_network = lambda *given: build(*given).double()
    for name, method in METHODS.items():
        METHODS[name] = lambda *parts, method=method: method(*parts).double()

    def load_in_double(config) -> Dataset:
        data = load(config)
        parts = ("labeled", "unlabeled", "validation", "test")
        images = {part: getattr(data, part) for part in parts}
        return replace(data, **{part: replace(them, images=them.images.double()) for part, them in images.items()})

    examples.engine.run.load = load_in_double


def result(out: Path) -> dict:
    content = json.loads((out / "result.json").read_text())
    for name in ("seconds", "environment", "config", "earlier_environments", "commit"):
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


def runs() -> list[Config]:
    parts_of_others = ("supervised", "nearest_neighbor")  # all have the one, rpg is the other with weights
    configs = [tiny(Path(method), method=method, **SIZES) for method in METHODS if method not in parts_of_others]
    return [*configs, tiny(Path("ema"), ema=True, batch_norm="shared", **SIZES)]


def train_all(rank, world, folder):
    in_double_precision()
    for config in runs():
        train(replace(config, out=folder / config.out))


def test_two_processes_are_one(tmp_path):
    """All that a run logs and measures, with batches and evaluated images in unlike shares."""
    for processes in (1, 2):
        (folder := tmp_path / str(processes)).mkdir()
        run(partial(train_all, folder=folder), processes, folder)
    for config in runs():
        one, two = (result(tmp_path / str(processes) / config.out) for processes in (1, 2))
        assert_close(two, one)


def cut_short(rank: int, config: Config) -> None:
    with signal_at_step(2 if rank == 1 else 0), pytest.raises(Interrupted, match="after step 2 of 4"):
        train(config)


def cut_and_go_on(rank, world, folder):
    in_double_precision()
    config = tiny(folder / "whole", ema=True, **SIZES)
    train(config)
    cut_short(rank, replace(config, out=folder / "cut"))
    train(replace(config, out=folder / "cut"), resume=True)
    plain = tiny(folder / "other number", **SIZES)
    cut_short(rank, plain)
    original = Supervised.forward

    def diverged_on_one(self, net, pool, unlabeled, step):
        outcome = original(self, net, pool, unlabeled, step)
        loss = outcome.loss * (float("nan") if (rank, step) == (1, 2) else 1)
        return outcome._replace(loss=loss, terms={"supervised": loss})

    Supervised.forward = diverged_on_one
    with pytest.raises(FloatingPointError, match="step 2: loss term supervised = nan"):
        train(tiny(folder / "diverged", method="supervised", **SIZES))
    # What one process refuses, all do, and one says it.
    with (
        pytest.raises(ValueError, match="pool_size: got 3 with 2 processes") if rank == 0 else pytest.raises(SystemExit)
    ):
        train(replace(plain, out=folder / "uneven", pool_size=3))
    with pytest.raises(FileExistsError) if rank == 0 else pytest.raises(SystemExit):
        train(config)


def go_on_alone(rank, world, folder):
    in_double_precision()
    config = tiny(folder / "other number", **SIZES)
    train(config, resume=True)
    train(replace(config, out=folder / "one"))


def test_cut_short_together_and_gone_on(tmp_path):
    """One is told to stop, all stop after the same step; what goes on is the same to the bit, or as one process."""
    run(partial(cut_and_go_on, folder=tmp_path), 2, tmp_path)
    assert result(tmp_path / "cut") == result(tmp_path / "whole")
    models = [load_verified(tmp_path / name / "last.pt")["model"] for name in ("cut", "whole")]
    assert all(torch.equal(models[0][name], value) for name, value in models[1].items())
    assert not (tmp_path / "uneven").exists()
    (tmp_path / "meet").unlink(missing_ok=True)
    run(partial(go_on_alone, folder=tmp_path), 1, tmp_path)
    assert_close(result(tmp_path / "other number"), result(tmp_path / "one"))


def test_a_pass_without_repeats_that_all_processes_can_share(monkeypatch):
    shrink(monkeypatch.setattr)
    data = load(tiny(Path()))  # 8 images
    for processes, steps, images in ((1, 3, 8), (2, 3, 8), (3, 2, 6)):
        monkeypatch.setattr(examples.data.loaders, "world_size", lambda processes=processes: processes)
        batches = UnlabeledBatches(data, 3, torch.Generator().manual_seed(0))
        assert batches.steps_per_pass == steps
        drawn = []
        for _ in range(steps):
            before = batches.start if batches.order else 0
            next(batches)
            drawn += batches.order[before : batches.start]
        assert len(set(drawn)) == len(drawn) == images
        next(batches)
        assert batches.start == 3  # a new pass
    monkeypatch.setattr(examples.data.loaders, "world_size", lambda: 9)
    with pytest.raises(ValueError, match="unlabeled: 8 images, expected one or more for each of 9 processes"):
        UnlabeledBatches(data, 9, torch.Generator())


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.1)


def children(process: subprocess.Popen) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_torchrun_is_stopped_and_loses_a_process(tmp_path):
    """SIGTERM to torchrun is saved; where a process is killed, the other ends too and says so."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tests.examples.tiny",
             "phantom", "--method", "supervised", "--pool-size", "4", "--image-size", "32", "--base-channels", "2",
             "--map-size", "8", "--out", str(tmp_path / "run"), "--iterations", "100000", "--checkpoint-every", "2",
             "--eval-every", "100000"]  # fmt: skip
    saved = Checkpoints(tmp_path / "run" / "checkpoints").files
    said = tmp_path / "said"

    def start() -> subprocess.Popen:
        with said.open("w") as file:
            return subprocess.Popen(words, stdout=file, stderr=file, cwd=Path(__file__).parents[2])

    process = start()
    wait_for(saved)
    workers = children(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    lines = [line for line in said.read_text().splitlines() if line.startswith("stopped by SIGTERM after step")]
    assert len(lines) == 1
    assert lines[0].endswith("which is saved; the same command goes on from the last checkpoint")
    step = int(lines[0].split()[5])
    assert saved()[0].name == f"step-{step:08d}.ckpt"

    process = start()
    wait_for(lambda: f"going on after step {step} of" in said.read_text() and saved()[0].name > f"step-{step + 1:08d}")
    workers += children(process)
    process.send_signal(signal.SIGSTOP)  # torchrun's own SIGTERM could end the other before it says why it ends
    os.kill(workers[-1], signal.SIGKILL)
    wait_for(lambda: "ends because another one did" in said.read_text())
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) != 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_statistics_over_processes_are_in_single_precision_under_autocast():
    norm, synced = torch.nn.BatchNorm2d(3), SyncedBatchNorm(3)
    maps = (5 + torch.randn(4, 3, 8, 8)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = norm(maps), synced(maps)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(synced.running_mean, norm.running_mean)
    torch.testing.assert_close(synced.running_var, norm.running_var)
