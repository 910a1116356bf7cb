"""Runs so small that a test can train dozens."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import examples.engine.run
import examples.engine.validation
import examples.logging.run_log
import examples.methods.transfer
import examples.train
from examples.config import Config
from examples.data.phantoms import chest as phantom
from examples.engine import distributed
from examples.logging.run_log import RunLog


def encode_small(setattr=setattr) -> None:
    """Transfer labels of 32 px at 64 px, not at 256."""
    setattr(examples.methods.transfer, "IMAGE_SIZE", 64)
    setattr(examples.methods.transfer, "GRID", 32)


def shrink(setattr=setattr) -> None:
    """Few phantoms, and neither pictures nor waiting for the disk, which take longer than the training."""
    for name, count in (("TRAIN", 8), ("VALIDATION", 2), ("TEST", 2)):
        setattr(phantom, name, count)
    encode_small(setattr)
    setattr(examples.engine.run, "BN_CALIBRATION_POOLS", 2)
    setattr(distributed, "default_device", lambda: "cpu")
    setattr(os, "fsync", lambda descriptor: None)
    setattr(examples.engine.validation, "save_overlays", lambda *args: None)
    setattr(examples.engine.validation, "save_pictures", lambda *args: {})
    setattr(examples.logging.run_log.RunLog, "draw", lambda *args: {})
    setattr(examples.logging.run_log, "write_page", lambda folder: None)


def small(dataset: str, **changes) -> Config:
    """A run that no test trains for long, if at all."""
    return Config(dataset, **{"image_size": 32, "base_channels": 2, "map_size": 8, "k": 0.5, **changes})


def tiny(out: Path, **changes) -> Config:
    """Passes of three steps (3, 3 and 2 unlabeled images), a validation every second pass."""
    lengths = {"unlabeled_batch": 3, "iterations": 22, "eval_every": 6, "checkpoint_every": 4}
    return small("phantom", out=out, **{"method": "rpg_plus", "threshold": 0.6, **lengths, **changes})


@contextmanager
def at_step(step: int, do: Callable[[], object] | BaseException) -> Iterator[None]:
    """Have something done, or raised, at the end of that step of the runs within."""
    original = RunLog.step

    def log_step(self, number, *args):
        original(self, number, *args)
        if number == step and isinstance(do, BaseException):
            raise do
        if number == step:
            do()

    RunLog.step = log_step
    try:
        yield
    finally:
        RunLog.step = original


def signal_at_step(step: int, number: int = signal.SIGTERM) -> AbstractContextManager[None]:
    return at_step(step, lambda: os.kill(os.getpid(), number))


if __name__ == "__main__":  # a command line that starts such a run, for torchrun
    shrink()
    examples.train.main()
