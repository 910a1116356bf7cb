"""Run cells through submitit, on this machine or on a SLURM cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.config import Config
from examples.engine.distributed import default_device
from examples.sweeps.plan import Cell, ExecutorName

POLL_SECONDS = 0.5
GRACE_SECONDS, STOP_SECONDS = 2.0, 15.0  # that jobs have to end after Ctrl-C


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: with a score, or failed for a reason."""

    cell: Cell
    score: float | None
    reason: str
    log: Path | None


def run_cell(config: Config, threads: int | None) -> float:
    """Be the job: train, and return the score (everything else is in result.json)."""
    import torch

    from examples.engine.loop import train

    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # as examples.train does
    result = train(config)
    return float(result[result["score"]])


def run_cells(
    cells: Sequence[Cell],
    executor: ExecutorName,
    jobs: int,
    hours: float,
    partition: str | None,
    say: Callable[[str], None],
) -> list[Outcome]:
    """Run all cells, whatever becomes of each, ``jobs`` at a time; on a cluster, which has a queue for that, all.

    submitit's own local executor would start all at once. ``say`` is called with a line when a cell starts or ends.

    Raises:
        KeyboardInterrupt: all jobs have been told to stop.
        RuntimeError: there is no SLURM here.
    """
    if executor == "local":
        # One thread a job: the libraries below PyTorch read this when they are imported.
        os.environ["OMP_NUM_THREADS"] = "1"
    slots = jobs if executor == "local" else len(cells)
    waiting = list(cells)
    running: dict[Path, tuple[Cell, Any]] = {}
    outcomes: list[Outcome] = []
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                cell = waiting.pop(0)
                running[cell.out] = (cell, submit(cell, executor, hours, partition))
                say(f"started {cell.name}")
            for cell, job in list(running.values()):
                if job.done():
                    del running[cell.out]
                    outcomes.append(outcome(cell, job))
                    score, reason = outcomes[-1].score, outcomes[-1].reason
                    said = f"mIoU {score:.3f}" if score is not None else f"FAILED: {reason}"
                    say(f"{len(outcomes)}/{len(cells)} {cell.name}: {said}")
            time.sleep(POLL_SECONDS)
    except BaseException:
        stop([job for _, job in running.values()])
        raise
    return outcomes


def submit(cell: Cell, executor: ExecutorName, hours: float, partition: str | None) -> Any:
    import submitit

    cluster = submitit.AutoExecutor(folder=cell.out / "log", cluster=executor)
    local = executor == "local"
    device = default_device() if local and cell.config.device == "auto" else cell.config.device
    kind, _, index = device.partition(":")
    cluster.update_parameters(
        name=cell.out.name,
        timeout_min=max(1, round(60 * hours)),
        stderr_to_stdout=True,
        # submitit hides all GPUs but the first so many.
        gpus_per_node=int(index or 0) + 1 if kind == "cuda" else None,
        slurm_partition=partition,
    )
    return cluster.submit(run_cell, cell.config, 1 if local else None)


def outcome(cell: Cell, job: Any) -> Outcome:
    log = Path(str(job.paths.stdout))
    try:
        return Outcome(cell, job.result(), "", log)
    except Exception as error:  # whatever it was, the other cells go on
        # submitit puts the traceback between dashed lines, and what to do with its own objects after it.
        trace = str(error).partition("\n-----")[2].partition("\n-----")[0] or str(error).partition("\n")[0]
        return Outcome(cell, None, trace.strip().splitlines()[-1] if trace.strip() else type(error).__name__, log)


def stop(jobs: Sequence[Any]) -> None:
    """End jobs, and wait until they have, or for STOP_SECONDS.

    A terminal sends Ctrl-C to local jobs, too, which a second signal would disturb while they end: those left over
    after GRACE_SECONDS are cancelled.
    """

    def left(seconds: float) -> list[Any]:
        deadline = time.monotonic() + seconds
        while (alive := [job for job in jobs if not job.done()]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return alive

    for job in left(GRACE_SECONDS):
        job.cancel(check=False)
    left(STOP_SECONDS)
