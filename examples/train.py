"""Train a UNet with few labelled and many unlabelled images, by RPG or by what the paper compares it with.

No GPU, a few minutes, no download (python -m examples.demo compares this with supervised):

    python -m examples.train phantom --method rpg_plus --image-size 64 --base-channels 12 --map-size 16 --k 0.5 \\
        --learning-rate 2e-3 --iterations 900

JSRT with three labelled images, small enough for one CPU core in ten minutes or so:

    python -m examples.train jsrt --root PATH/TO/JSRT --method rpg_plus --labeled 3 --split 0 \\
        --image-size 128 --base-channels 16 --map-size 32 --k 0.5 --iterations 1500

One GPU, the paper's setting:

    python -m examples.train jsrt --root PATH/TO/JSRT --method rpg_plus --labeled 3 --split 0 --device cuda

The loss itself is used in examples/methods/, one short file a method; start with rpg.py.
"""

from __future__ import annotations

import math
import sys
import time
from concurrent.futures import Executor
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from examples.acceleration import compile_networks, network_precision
from examples.batches import PoolBatches, UnlabeledBatches
from examples.checkpoints import Checkpoints, save_whole
from examples.command_line import parse_command
from examples.config import Config
from examples.data import load
from examples.evaluation import by_class, evaluate
from examples.interrupts import Interrupted, Interrupts
from examples.methods import METHODS, Step
from examples.pictures import save_overlays, save_pictures
from examples.prefetch import Prefetched, data_thread
from examples.progress import phase
from examples.resuming import GlobalRandomness, Stateful, changes, check_same_run, image_names, restore
from examples.runlog import RunLog, claimed_folder, environment, write_json
from examples.trained import Labels
from examples.unet import UNet, settle_batch_norm

SETTLING_POOLS = 20  # labelled pools that batch-norm statistics for evaluation are taken from


def train(config: Config, *, resume: bool = False) -> dict[str, Any]:
    """Trains, tests the network that was best on the validation images, and returns what result.json holds.

    A run that was cut short goes on from its last checkpoint to the end that it would have had (on a CPU, to the bit).

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
    with Interrupts() as interrupts, claimed_folder(config) as out, data_thread() as worker:
        return train_in(out, config, interrupts, worker, resume=resume)


def train_in(out: Path, config: Config, interrupts: Interrupts, worker: Executor, *, resume: bool) -> dict[str, Any]:
    started = time.perf_counter()
    checkpoints = Checkpoints(out / "checkpoints")
    saved = checkpoints.load()
    environments = [environment(config.device)]
    if saved is None:
        if resume:
            raise FileNotFoundError(f"resume: {out} holds no checkpoint; leave --resume out to begin")
        write_json(out / "config.json", config.plain() | {"environment": environments[0]})
    else:
        check_same_run(saved["config"], config)
        started -= saved["seconds"]
        if changed := changes(saved["environments"][-1], environments[0]):
            print(f"note: the end may not be that of an uninterrupted run: {'; '.join(changed)}")
        environments = saved["environments"] + environments * bool(changed)
    torch.manual_seed(config.seed)

    with phase("preparing: reading the images"):
        data = load(config)
    precision = network_precision(config.precision, config.device)
    net = UNet(1, data.num_outputs, config.base_channels, precision).to(config.device)
    assert config.epochs is not None  # the data set's were filled in
    assert config.unlabeled_batch is not None
    epoch = math.ceil(len(data.unlabeled) / config.unlabeled_batch)
    iterations = (config.iterations or config.epochs * epoch) * (2 if config.double_length else 1)
    method = METHODS[config.method](config, data, net, iterations).to(config.device)
    if config.compile:
        compile_networks(net, method)
    trained = [weights for weights in (*net.parameters(), *method.parameters()) if weights.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    pools = Prefetched(
        PoolBatches(data, config.pool_size, Generator().manual_seed(config.seed), config.balanced_crops), worker
    )
    unlabeled_views = Prefetched(
        UnlabeledBatches(data, config.unlabeled_batch, Generator().manual_seed(config.seed)), worker
    )

    calibration = [view.images for view in islice(pools, SETTLING_POOLS)]
    best: dict[str, Any] = {"validation": -1.0}
    start = saved["step"] if saved else 0
    with RunLog(out, config, iterations, data, environments, start) as log, interrupts.deferred():
        parts: dict[str, Stateful] = {
            "net": net, "method": method, "optimizer": optimizer, "pools": pools, "unlabeled": unlabeled_views,
            "log": log, "random": GlobalRandomness(),
        }  # fmt: skip
        if saved:
            restore(saved, parts, data)
            best = saved["best"]
            if "model" in best:
                save_whole(out / "best.pt", best)  # the file may be from after the checkpoint
            print(f"going on after step {start} of {iterations}")
        for step in range(start + 1, iterations + 1):
            net.train()
            method.train()  # a teacher was in evaluation mode after a validation
            pool, unlabeled = next(pools), next(unlabeled_views)
            result = method(net, pool, unlabeled, step)
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
                settle_batch_norm(evaluated, calibration)
                iou = evaluate(evaluated, data.validation, data)
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
                save_whole(out / "last.pt", checkpoint)
                if is_best:
                    best = deepcopy(checkpoint)
                    save_whole(out / "best.pt", best)
                log.look(step, evaluated, method, pool)
                log.progress.phase("training")

            stopped_by = interrupts.received
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
                checkpoints.save(step, state)
            if stopped_by:
                raise Interrupted(stopped_by, f"after step {step} of {iterations}, which is saved")

    net.load_state_dict(best["model"])
    with phase(f"testing on {len(data.test)} images"):
        iou = evaluate(net, data.test, data)
        # On the images learned from, their labels held back: what options are to be chosen by, for the test set is not.
        held_back = evaluate(net, data.unlabeled, data)
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
        "miou_unlabeled": float((held_back.per_class() if data.score == "miou" else held_back.pooled()).nanmean()),
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
        save_overlays(out / "overlays.png", net, method, pool := next(pools), data)
        write_json(out / "result.json", summary)
        checkpoints.remove()
        log.finish(net, method, pool)
    return summary


def stop_if_not_finite(step: int, result: Step) -> None:
    if not result.loss.isfinite():
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
    try:
        config, resume = parse_command(description=__doc__, prog="python -m examples.train")
        summary = train(config, resume=resume)
    except (ValueError, OSError, FloatingPointError) as error:  # the message says what to do; a traceback would bury it
        sys.exit(f"error: {error}")
    except Interrupted as interrupted:
        again = "the same command" + " without --overwrite" * config.overwrite
        print(f"{interrupted}; {again} goes on from the last checkpoint", file=sys.stderr)
        sys.exit(128 + interrupted.number)
    print(f"test mIoU {summary['miou']:.3f} on {summary['data']}; see {config.out_dir / 'report.html'}")


if __name__ == "__main__":
    main()
