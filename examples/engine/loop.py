"""One run from its options to its result: the training loop, and what has to hold around it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from examples.config import Config
from examples.data.prefetch import data_thread
from examples.engine import distributed as parallel
from examples.engine.checkpoint import atomic_save
from examples.engine.run import Run
from examples.engine.sharding import check_shares
from examples.engine.signals import Interrupted, Interrupts
from examples.engine.validation import finish, validate
from examples.logging.run_folder import lock_run_dir
from examples.methods import Step


def train(config: Config, *, resume: bool = False) -> dict[str, Any]:
    """Train, test the network that was best on the validation images, and return what result.json holds.

    A run that was cut short goes on from its last checkpoint to the end that it would have had (on a CPU, to the bit).
    On several processes (see examples/engine/distributed.py) all call this, and the first writes.

    Args:
        config: Of the run.
        resume: Go on with an unfinished run, and fail if there is none.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the step under way was finished and saved.
        FileExistsError: the folder holds a finished run, or one is under way in it.
        FloatingPointError: the loss or a weight is NaN or infinite; the last checkpoint is from before.
        OSError: something cannot be read or written.
        ValueError: options or data cannot be right, or belong to another run than the one in the folder.
    """
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        with parallel.fail_together():
            config = replace(config, device=parallel.own_device(config.device))
            check_shares(config)
            if parallel.is_main_process():
                out = stack.enter_context(lock_run_dir(config))
            else:
                out = Path(stack.enter_context(TemporaryDirectory()))
        worker = stack.enter_context(data_thread())
        run = Run(config, out, worker, resume=resume)
        with run.log, interrupts.deferred():
            run.restore()
            if "model" in run.best and parallel.is_main_process():
                atomic_save(out / "best.pt", run.best)  # the file may be from after the checkpoint
            train_steps(run, interrupts)
        return finish(run, interrupts)


def train_steps(run: Run, interrupts: Interrupts) -> None:
    """Train to the end, or to the end of the step in which a signal comes."""
    for step in range(run.start + 1, run.iterations + 1):
        run.net.train()
        run.method.train()  # an average was in evaluation mode after a validation
        pool, unlabeled = run.next_batches()
        result: Step = run.step_of_method(pool, unlabeled, step)  # method(net, pool, unlabeled, step)
        run.optimizer.zero_grad()
        result.loss.backward()
        result = result._replace(terms={name: parallel.all_reduce_mean(term) for name, term in result.terms.items()})
        check_loss(step, result)  # waits for a GPU, which by now has all of the backward pass to do
        run.optimizer.step()
        run.method.after_step(run.net, step)
        run.log.step(step, result, unlabeled)

        validates = step % run.eval_every == 0 or step == run.iterations
        if validates:
            validate(run, step, pool)
        stopped_by = parallel.all_reduce_max(interrupts.received)
        if validates or step % run.config.checkpoint_every == 0 or stopped_by:
            run.save(step)
        if stopped_by:
            raise Interrupted(stopped_by, f"after step {step} of {run.iterations}, which is saved")


def check_loss(step: int, result: Step) -> None:
    # With several processes the loss is this one's and the terms are those of all, which so stop together.
    if not all(value.isfinite() for value in (result.loss, *result.terms.values())):
        bad = ", ".join(f"{name} = {value.item()}" for name, value in result.terms.items() if not value.isfinite())
        raise FloatingPointError(f"step {step}: loss term {bad}; try a smaller --learning-rate")
