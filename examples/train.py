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
from itertools import islice
from typing import Any

import torch
import tyro
from torch import Generator

from examples.batches import pool_batches, unlabeled_batches
from examples.config import Config
from examples.data import load
from examples.evaluation import by_class, evaluate
from examples.methods import METHODS, Step
from examples.pictures import save_overlays, save_pictures
from examples.runlog import RunLog, claim_folder, git_commit, save_checkpoint, write_json
from examples.unet import UNet, settle_batch_norm

SETTLING_POOLS = 20  # labelled pools that batch-norm statistics for evaluation are taken from


def train(config: Config) -> dict[str, Any]:
    """Trains, tests the checkpoint that was best on the validation images, and returns what result.json holds."""
    started = time.perf_counter()
    out = claim_folder(config)
    torch.manual_seed(config.seed)

    data = load(config)
    net = UNet(1, data.num_outputs, config.base_channels).to(config.device)
    epoch = math.ceil(len(data.unlabeled) / config.unlabeled_batch)
    iterations = (config.iterations or config.epochs * epoch) * (2 if config.double_length else 1)
    method = METHODS[config.method](config, data, net, iterations).to(config.device)
    trained = [weights for weights in (*net.parameters(), *method.parameters()) if weights.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    pools = pool_batches(data, config.pool_size, Generator().manual_seed(config.seed), config.balanced_crops)
    unlabeled_views = unlabeled_batches(data, config.unlabeled_batch, Generator().manual_seed(config.seed))

    calibration = [view.images for view in islice(pools, SETTLING_POOLS)]
    best = -1.0
    with RunLog(out, config, iterations, data.class_names) as log:
        for step in range(1, iterations + 1):
            net.train()
            method.train()  # a teacher was in evaluation mode after a validation
            pool, unlabeled = next(pools), next(unlabeled_views)
            result = method(net, pool, unlabeled, step)
            stop_if_not_finite(step, result)
            optimizer.zero_grad()
            result.loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            method.after_step(net, step)
            log.step(step, result, unlabeled)

            if step % (config.eval_every * epoch) == 0 or step == iterations:
                evaluated = method.evaluated(net)
                settle_batch_norm(evaluated, calibration)
                iou = evaluate(evaluated, data.validation, data)
                per_class = iou.per_class() if data.score == "miou" else iou.pooled()
                # 0 where no class is there to be found or missed: then the last checkpoint is as good as any.
                score = float(per_class.nanmean().nan_to_num())
                log.validation(step, {"miou": score, **by_class(data.evaluated_names, per_class)}, best=score >= best)
                checkpoint = {
                    "model": evaluated.state_dict(),
                    "config": config.plain(),
                    "step": step,
                    "validation": score,
                }
                save_checkpoint(out / "last.pt", checkpoint)
                if score >= best:
                    best = score
                    save_checkpoint(out / "best.pt", checkpoint)

    net.load_state_dict(torch.load(out / "best.pt", map_location=config.device, weights_only=True)["model"])
    iou = evaluate(net, data.test, data)
    measures = log.last_tenth.measures()
    summary = {
        "dataset": config.dataset,
        "method": config.method,
        "labeled": config.labeled,
        "split": config.split,
        "seed": config.seed,
        "iterations": iterations,
        "image_size": config.image_size,
        "commit": git_commit(),
        "score": data.score,
        "miou": float(iou.per_class().nanmean()),
        "miou_pooled": float(iou.pooled().nanmean()),
        "iou_per_class": by_class(data.evaluated_names, iou.per_class()),
        "iou_per_class_pooled": by_class(data.evaluated_names, iou.pooled()),
        "validation": best,
        **(measures if result.pseudo_labels else dict.fromkeys(measures)),
        "seconds": time.perf_counter() - started,
        "data": data.found,
        "device": torch.cuda.get_device_name(config.device) if net.head.weight.is_cuda else config.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "config": config.plain(),
        "history": log.history,
        "pictures": save_pictures(out, net, data),
    }
    save_overlays(out / "overlays.png", net, method, next(pools), data)
    write_json(out / "result.json", summary)
    return summary


def stop_if_not_finite(step: int, result: Step) -> None:
    if not result.loss.isfinite():
        bad = ", ".join(f"{name} = {value.item()}" for name, value in result.terms.items() if not value.isfinite())
        raise FloatingPointError(f"step {step}: loss term {bad}; try a smaller --learning-rate")


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    torch.set_flush_denormal(True)  # tiny activations of a trained net would slow a CPU down
    try:
        summary = train(config)
    except (ValueError, OSError, FloatingPointError) as error:  # the message says what to do; a traceback would bury it
        sys.exit(f"error: {error}")
    print(f"test mIoU {summary['miou']:.3f} on {summary['data']}; results and pictures in {config.out_dir}")


if __name__ == "__main__":
    main()
