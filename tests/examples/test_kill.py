"""SIGKILL at random moments: what is left always leads to the end of an uninterrupted run.

A moment is the n-th call or return, of Python or C, in a phase of the run: that reaches into the middle of writing a
file, and is the same every time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch

from examples.engine.checkpoint import Checkpoints, atomic_write, load_verified
from examples.engine.evaluation import evaluate
from examples.engine.loop import train
from tests.examples.tiny import shrink, tiny

PHASES = {evaluate.__code__: "validation", Checkpoints.save.__code__: "checkpoint", atomic_write.__code__: "writing"}
EACH = 3  # moments of every phase
SEED = 8

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
STEPS = {"iterations": 9, "eval_every": 3, "checkpoint_every": 2}  # validations at 3, 6 and 9


class Moments:
    """Counts calls and returns by phase, and kills the process at one of them."""

    def __init__(self, phase: str | None = None, number: int = 0) -> None:
        self.counts = {"training": 0, **dict.fromkeys(PHASES.values(), 0)}
        self.phase, self.number = phase, number
        self.stack = ["training"]

    def __call__(self, frame, event, argument) -> None:
        if event == "call" and frame.f_code in PHASES:
            self.stack.append(PHASES[frame.f_code])
        phase = self.stack[-1]
        self.counts[phase] += 1
        if phase == self.phase and self.counts[phase] == self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "return" and frame.f_code in PHASES:
            self.stack.pop()


def run(out: Path, moments: Moments | None = None, counted: Path | None = None) -> None:
    """A whole process's work."""
    shrink()
    sys.setprofile(moments)
    train(tiny(out, **STEPS))
    sys.setprofile(None)
    if moments and counted:
        counted.write_text(json.dumps(moments.counts))


def in_process(*arguments) -> int:
    process = multiprocessing.get_context("fork").Process(target=run, args=arguments)  # others import PyTorch anew
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        pytest.fail("a run hangs")
    return process.exitcode


def end(out: Path) -> dict:
    content = json.loads((out / "result.json").read_text())
    del content["seconds"], content["config"]["out"]
    models = {name: load_verified(out / name)["model"] for name in ("best.pt", "last.pt")}
    return {"result": content, "lines": (out / "metrics.jsonl").read_text(), **models}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict, dict]:
    """The end of an uninterrupted run, and how many moments each of its phases has."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        shrink(patched.setattr)
        train(tiny(folder / "run", **STEPS))  # in this process, so that its copies find everything loaded
    assert in_process(folder / "counted", Moments(), folder / "counts.json") == 0
    return end(folder / "run"), json.loads((folder / "counts.json").read_text())


@pytest.mark.parametrize("phase", ["training", "validation", "checkpoint", "writing"])
def test_killed_and_resumed_is_uninterrupted(phase, whole, tmp_path):
    expected, counts = whole
    draw = random.Random(f"{SEED} {phase}")
    for trial in range(EACH):
        number = draw.randint(1, int(0.95 * counts[phase]))  # the counts of two processes differ by a few
        out = tmp_path / f"run{trial}"
        assert in_process(out, Moments(phase, number)) == -signal.SIGKILL
        if not (out / "result.json").exists():  # else it was tidying up
            assert in_process(out) == 0
        found = end(out)
        assert found["result"] == expected["result"], (phase, number)
        assert found["lines"] == expected["lines"], (phase, number)
        for name in ("best.pt", "last.pt"):
            assert all(torch.equal(found[name][key], value) for key, value in expected[name].items()), (phase, number)
