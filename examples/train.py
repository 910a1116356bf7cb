"""Train a UNet with few labelled and many unlabelled images, by RPG or by what the paper compares it with.

No GPU, a few minutes, no download (python -m examples.demo compares this with supervised):

    python -m examples.train phantom --method rpg_plus --image-size 64 --base-channels 12 --map-size 16 --k 0.5 \\
        --learning-rate 2e-3 --iterations 900

JSRT with three labelled images, small enough for one CPU core in ten minutes or so:

    python -m examples.train jsrt --root PATH/TO/JSRT --method rpg_plus --labeled 3 --split 0 \\
        --image-size 128 --base-channels 16 --map-size 32 --k 0.5 --iterations 1500

One GPU, the paper's setting:

    python -m examples.train jsrt --root PATH/TO/JSRT --method rpg_plus --labeled 3 --split 0 --device cuda

Two GPUs, or two processes on a CPU; every process takes its share of each batch:

    torchrun --nproc-per-node 2 -m examples.train jsrt --root PATH/TO/JSRT --pool-size 4 --device cuda

The loss itself is used in examples/methods/, one short file a method; start with rpg.py.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import Executor
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Generator, nn

from examples.command_line import ignored_flags, parse_command
from examples.config import Config
from examples.data import load
from examples.data.loaders import PoolBatches, UnlabeledBatches
from examples.data.prefetch import Prefetched, data_thread
from examples.engine import distributed as parallel
from examples.engine.checkpoint import Checkpoints, atomic_save
from examples.engine.evaluation import by_class, evaluate, mean_iou, unlabeled_with_truth
from examples.engine.precision import compile_networks, network_precision
from examples.engine.resuming import (
    GlobalRandomness,
    Stateful,
    changes,
    check_same_processes,
    check_same_run,
    image_names,
    restore,
)
from examples.engine.sharding import PerRankState, check_shares, of_all_images, own_images, share_of
from examples.engine.signals import Interrupted, Interrupts
from examples.inference.trained import Labels
from examples.logging.pictures import save_overlays, save_pictures
from examples.logging.progress import phase
from examples.logging.run_log import RunLog, environment, lock_run_dir, write_json
from examples.methods import METHODS, Step
from examples.models.unet import UNet, recalibrate_batch_norm

BN_CALIBRATION_POOLS = 20  # labelled pools that batch-norm statistics for evaluation are taken from
PERCENTILES = (5, 25, 50, 75)  # of the test images by their IoU: how bad the bad ones are


def train(config: Config, *, resume: bool = False) -> dict[str, Any]:
    """Trains, tests the network that was best on the validation images, and returns what result.json holds.

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
            check_shares(config)
            if parallel.is_main_process():
                out = stack.enter_context(lock_run_dir(config))
            else:
                out = Path(stack.enter_context(TemporaryDirectory()))
        worker = stack.enter_context(data_thread())
        return train_in(out, config, interrupts, worker, resume=resume)


def begin(out: Path, config: Config, checkpoints: Checkpoints, *, resume: bool) -> tuple[dict[str, Any] | None, Any]:
    """The last checkpoint, if there is one, and the environments of the run, of which the last is this one."""
    saved = checkpoints.load()
    now = environment(config.device) | {"processes": parallel.world_size()}
    if saved is None:
        if resume:
            raise FileNotFoundError(f"resume: {out} holds no checkpoint; leave --resume out to begin")
        write_json(out / "config.json", config.plain() | {"environment": now})
        return None, [now]
    check_same_run(saved["config"], config)
    before = saved["environments"]
    check_same_processes(before[-1], config)
    if changed := changes(before[-1], now):
        print(f"note: the end may not be that of an uninterrupted run: {'; '.join(changed)}")
    return saved, before + [now] * bool(changed)


def train_in(out: Path, config: Config, interrupts: Interrupts, worker: Executor, *, resume: bool) -> dict[str, Any]:
    started = time.perf_counter()
    checkpoints = Checkpoints(out / "checkpoints")
    saved, environments = parallel.broadcast_from_rank0(lambda: begin(out, config, checkpoints, resume=resume))
    if saved:
        started -= saved["seconds"]
    torch.manual_seed(config.seed)

    assert config.epochs is not None  # the data set's were filled in
    assert config.unlabeled_batch is not None
    with phase("preparing: reading the images"), parallel.fail_together():
        data = load(config)
        pool_batches = PoolBatches(data, config.pool_size, Generator().manual_seed(config.seed), config.balanced_crops)
        unlabeled_batches = UnlabeledBatches(data, config.unlabeled_batch, Generator().manual_seed(config.seed))
        precision = network_precision(config.precision, config.device)
    net = UNet(1, data.num_outputs, config.base_channels, precision).to(config.device)
    epoch = unlabeled_batches.steps_per_pass
    iterations = (config.iterations or config.epochs * epoch) * (2 if config.double_length else 1)
    method = METHODS[config.method](config, data, net, iterations).to(config.device)
    if config.sync_batch_norm:
        parallel.with_synced_batch_norm(net)
        parallel.with_synced_batch_norm(method)
    if config.compile:
        compile_networks(net, method)
    step_of_all = parallel.data_parallel(net, method)
    trained = [weights for weights in (*net.parameters(), *method.parameters()) if weights.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    pools, unlabeled_views = Prefetched(pool_batches, worker), Prefetched(unlabeled_batches, worker)

    calibrating = islice(pools, BN_CALIBRATION_POOLS)
    # Whole pools on every process where the statistics are not those of all anyway.
    calibration = [(share_of(view) if config.sync_batch_norm else view).images for view in calibrating]
    best: dict[str, Any] = {"validation": -1.0}
    start = saved["step"] if saved else 0
    with RunLog(out, config, iterations, data, environments, start) as log, interrupts.deferred():
        parts: dict[str, Stateful] = {
            "net": net, "method": method, "optimizer": optimizer, "pools": pools, "unlabeled": unlabeled_views,
            "log": log, "random": GlobalRandomness(),
            "banks": PerRankState(getattr(method, "bank", None)),
        }  # fmt: skip
        if saved:
            restore(saved, parts, data)
            best = saved["best"]
            if "model" in best and parallel.is_main_process():
                atomic_save(out / "best.pt", best)  # the file may be from after the checkpoint
            print(f"going on after step {start} of {iterations}")
        for step in range(start + 1, iterations + 1):
            net.train()
            method.train()  # a teacher was in evaluation mode after a validation
            pool, unlabeled = share_of(next(pools)), share_of(next(unlabeled_views))
            result = step_of_all(pool, unlabeled, step)
            result = result._replace(
                terms={name: parallel.all_reduce_mean(term) for name, term in result.terms.items()}
            )
            optimizer.zero_grad()
            result.loss.backward()
            stop_if_not_finite(step, result)  # waits for a GPU, which by now has all of the backward pass to do
            optimizer.step()
            method.after_step(net, step)
            log.step(step, result, unlabeled)

            validates = step % (config.eval_every * epoch) == 0 or step == iterations
            if validates:
                log.progress.phase("validating")
                stop_if_weights_are_not_finite(step, net, method)
                evaluated = method.evaluated(net)
                recalibrate_batch_norm(evaluated, calibration)
                iou = of_all_images(evaluate(evaluated, own_images(data.validation), data))
                per_class = iou.per_class() if data.score == "miou" else iou.pooled()
                # 0 where no class is there to be found or missed: then the last checkpoint is as good as any.
                score = float(per_class.nanmean().nan_to_num())
                is_best = score >= best["validation"]
                log.validation(step, {"miou": score, **by_class(data.evaluated_names, per_class)}, best=is_best)
                checkpoint = {
                    "model": evaluated.state_dict(),
                    "config": config.plain(),
                    "labels": Labels.of(data).plain(),
                    "step": step,
                    "validation": score,
                }
                if is_best:
                    best = deepcopy(checkpoint)
                with parallel.fail_together():
                    for name in ("last.pt", "best.pt") if is_best else ("last.pt",):
                        if parallel.is_main_process():
                            atomic_save(out / name, checkpoint)
                log.look(step, evaluated, method, pool)
                log.progress.phase("training")

            stopped_by = parallel.all_reduce_max(interrupts.received)
            if validates or step % config.checkpoint_every == 0 or stopped_by:
                stop_if_weights_are_not_finite(step, net, method)
                log.flush()  # nothing that was logged before may be missing when a run goes on from here
                state = {
                    "step": step,
                    "config": config.plain(),
                    "environments": environments,
                    "images": image_names(data),
                    "seconds": time.perf_counter() - started,
                    "best": best,
                    "parts": {name: part.state_dict() for name, part in parts.items()},
                }
                with parallel.fail_together():
                    if parallel.is_main_process():
                        checkpoints.save(step, state)
            if stopped_by:
                raise Interrupted(stopped_by, f"after step {step} of {iterations}, which is saved")

    net.load_state_dict(best["model"])
    with phase(f"testing on {len(data.test)} images"):
        iou = of_all_images(evaluate(net, own_images(data.test), data))
        # What options are to be chosen by, for the test set is not.
        unseen = unlabeled_with_truth(data)
        iou_unlabeled = of_all_images(evaluate(net, own_images(unseen), data)) if len(unseen) else None
    measures = log.last_tenth.measures()
    summary = {
        "dataset": config.dataset,
        "method": config.method,
        "labeled": config.labeled,
        "split": config.split,
        "seed": config.seed,
        "iterations": iterations,
        "image_size": config.image_size,
        "commit": environments[-1]["commit"],
        "score": data.score,
        "miou": float(iou.per_class().nanmean()),
        "miou_pooled": float(iou.pooled().nanmean()),
        "iou_per_class": by_class(data.evaluated_names, iou.per_class()),
        "iou_per_class_pooled": by_class(data.evaluated_names, iou.pooled()),
        "iou_percentiles": {
            str(percent): by_class(data.evaluated_names, iou.at_percentile(percent)) for percent in PERCENTILES
        },
        "miou_unlabeled": None if iou_unlabeled is None else mean_iou(iou_unlabeled, data),
        "validation": best["validation"],
        **(measures if log.learned else dict.fromkeys(measures)),
        "seconds": time.perf_counter() - started,
        "data": data.found,
        "device": environments[-1]["device"],
        "threads": environments[-1]["threads"],
        "torch": torch.__version__,
        "environment": environments[-1],
        "earlier_environments": environments[:-1],  # of a run that went on elsewhere
        "config": config.plain(),
        "history": log.history,
        "pictures": save_pictures(out, net, data),
    }
    with phase("writing results and pictures"):
        save_overlays(out / "overlays.png", net, method, pool := share_of(next(pools)), data)
        write_json(out / "result.json", summary)
        checkpoints.remove()
        log.finish(net, method, pool)
    return summary


def stop_if_not_finite(step: int, result: Step) -> None:
    # With several processes the loss is this one's and the terms are those of all, which so stop together.
    if not all(value.isfinite() for value in (result.loss, *result.terms.values())):
        bad = ", ".join(f"{name} = {value.item()}" for name, value in result.terms.items() if not value.isfinite())
        raise FloatingPointError(f"step {step}: loss term {bad}; try a smaller --learning-rate")


def stop_if_weights_are_not_finite(step: int, *modules: nn.Module) -> None:
    """Keeps NaN out of all that is saved; the loss would show it one step later."""
    for module in modules:
        for name, values in (*module.named_parameters(), *module.named_buffers()):
            if not values.isfinite().all():
                raise FloatingPointError(f"step {step}: {name} is not finite any more; try a smaller --learning-rate")


def main() -> None:
    torch.set_flush_denormal(True)  # tiny activations of a trained net would slow a CPU down
    with parallel.started_by_torchrun():
        run_command()


def run_command() -> None:
    try:
        with parallel.fail_together():
            config, resume = parse_command(description=__doc__, prog="python -m examples.train")
            config = replace(config, device=parallel.own_device(config.device))
        if unread := ignored_flags(config):
            print(f"note: {config.method} does not heed {', '.join(unread)}")
        summary = train(config, resume=resume)
    except (ValueError, OSError, FloatingPointError) as error:  # the message says what to do; a traceback would bury it
        # What is not finite is so on all processes.
        sys.exit(f"error: {error}" if parallel.is_main_process() or not isinstance(error, FloatingPointError) else 1)
    except RuntimeError as error:
        if not parallel.is_peer_failure(error):
            raise
        sys.exit(
            f"error: process {parallel.rank()} ends because another one did; the last message of that one says why, and"
            " the same command goes on from the last checkpoint"
        )
    except Interrupted as interrupted:
        again = "the same command" + " without --overwrite" * config.overwrite
        if parallel.is_main_process():
            print(f"{interrupted}; {again} goes on from the last checkpoint", file=sys.stderr)
        sys.exit(128 + interrupted.number)
    print(f"test mIoU {summary['miou']:.3f} on {summary['data']}; see {config.out_dir / 'report.html'}")


if __name__ == "__main__":
    main()
