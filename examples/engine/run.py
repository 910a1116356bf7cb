"""What a run consists of: built from its options, kept in its checkpoints, and restored from them."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from examples.config import Config, paper_schedule
from examples.data import load
from examples.data.augment import View
from examples.data.division import Division
from examples.data.loaders import PoolBatches, UnlabeledBatches
from examples.data.prefetch import Prefetched
from examples.engine import distributed as parallel
from examples.engine.checkpoint import Checkpoints
from examples.engine.resuming import (
    GlobalRandomness,
    Stateful,
    changes,
    check_same_run,
    restore,
)
from examples.engine.sharding import share_of
from examples.logging.environment import environment
from examples.logging.progress import phase
from examples.logging.run_folder import write_json
from examples.logging.run_log import RunLog
from examples.methods import METHODS
from examples.models import build_network, network_precision

EVAL_PASSES = 10  # over the unlabeled images, from one validation to the next (paper)
BN_CALIBRATION_POOLS = 20  # labeled pools that batch-norm statistics for evaluation are taken from


class Run:
    """What is trained, on which batches, and how it is saved.

    Attributes:
        start: Steps done before, of a run that goes on.
        iterations: Steps of the whole run.
        eval_every: Steps from one validation to the next.
        step_of_method: ``method(net, ...)`` without its first argument, with gradients over all processes.
        calibration: Batches of images to take batch-norm statistics for evaluation from.
        best: The checkpoint that was best on the validation images; its score is below 0 before the first.
    """

    def __init__(self, config: Config, out: Path, worker: Executor, *, resume: bool) -> None:
        started = time.perf_counter()
        self.config = config
        self.out = out
        self.checkpoints = Checkpoints(out / "checkpoints")
        self.saved, self.environments = parallel.broadcast_from_rank0(lambda: self.begin(resume=resume))
        self.start: int = self.saved["step"] if self.saved else 0
        self.started: float = started - (self.saved["seconds"] if self.saved else 0)
        self.best: dict[str, Any] = self.saved["best"] if self.saved else {"validation": -1.0}

        torch.manual_seed(config.seed)
        assert config.unlabeled_batch is not None  # the data set's was filled in
        with phase("preparing: reading the images"), parallel.fail_together():
            self.data = load(config)
            self.division = Division.of(self.data)
            pools = PoolBatches(self.data, config.pool_size, Generator().manual_seed(config.seed))
            unlabeled = UnlabeledBatches(self.data, config.unlabeled_batch, Generator().manual_seed(config.seed))
            precision = network_precision(config.precision, config.device)
        per_pass = unlabeled.steps_per_pass
        single = config.iterations or paper_schedule(config.dataset).passes * per_pass
        self.iterations = single * (2 if config.double_length else 1)
        self.eval_every = config.eval_every or EVAL_PASSES * per_pass

        self.net = build_network(config, self.data.num_outputs, precision).to(config.device)
        self.method = METHODS[config.method](config, self.data, self.net, self.iterations).to(config.device)
        parallel.with_synced_batch_norm(self.net)
        parallel.with_synced_batch_norm(self.method)
        self.step_of_method = parallel.data_parallel(self.net, self.method)
        weights = [weight for weight in (*self.net.parameters(), *self.method.parameters()) if weight.requires_grad]
        self.optimizer = torch.optim.Adam(
            weights, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.pools, self.unlabeled = Prefetched(pools, worker), Prefetched(unlabeled, worker)
        calibrating = islice(self.pools, BN_CALIBRATION_POOLS)
        self.calibration = [share_of(view).images for view in calibrating]
        self.log = RunLog(out, config, self.iterations, self.data, self.environments, self.start)

    def begin(self, *, resume: bool) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """Return the last checkpoint, if there is one, and the environments of the run, this one last."""
        saved = self.checkpoints.load()
        now = environment(self.config.device) | {"processes": parallel.world_size()}
        if saved is None:
            if resume:
                raise FileNotFoundError(f"resume: {self.out} holds no checkpoint; leave --resume out to begin")
            write_json(self.out / "config.json", self.config.plain() | {"environment": now})
            return None, [now]
        check_same_run(saved["config"], self.config)
        before = saved["environments"]
        if changed := changes(before[-1], now):
            print(f"note: the end may not be that of an uninterrupted run: {'; '.join(changed)}")
        return saved, before + [now] * bool(changed)

    @property
    def seconds(self) -> float:
        """What the run has taken, all its parts together."""
        return time.perf_counter() - self.started

    @property
    def parts(self) -> dict[str, Stateful]:
        """All that has a state."""
        return {
            "net": self.net, "method": self.method, "optimizer": self.optimizer, "pools": self.pools,
            "unlabeled": self.unlabeled, "log": self.log, "random": GlobalRandomness(),
        }  # fmt: skip

    def restore(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        if self.saved:
            restore(self.saved, self.parts, self.division)
            self.saved = None  # it is as large as the network and the optimizer
            print(f"going on after step {self.start} of {self.iterations}")

    def next_batches(self) -> tuple[View, View]:
        """Return this process's shares of the next reference pool and the next unlabeled images."""
        return share_of(next(self.pools)), share_of(next(self.unlabeled))

    def save(self, step: int) -> None:
        """Write a checkpoint after a step.

        Raises:
            FloatingPointError: a weight is NaN or infinite.
            OSError: it could not be written.
        """
        check_weights(step, self.net, self.method)
        self.log.flush()  # nothing that was logged before may be missing when a run goes on from here
        state = {
            "step": step,
            "config": self.config.plain(),
            "environments": self.environments,
            "division": self.division.plain(),
            "seconds": self.seconds,
            "best": self.best,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        with parallel.fail_together():
            if parallel.is_main_process():
                self.checkpoints.save(step, state)


def check_weights(step: int, *modules: nn.Module) -> None:
    """Keep NaN out of all that is saved; the loss would show it one step later."""
    for module in modules:
        for name, values in (*module.named_parameters(), *module.named_buffers()):
            if not values.isfinite().all():
                raise FloatingPointError(f"step {step}: {name} is not finite any more; try a smaller --learning-rate")
