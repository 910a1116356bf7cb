"""What comes between and after the steps: validation, which chooses the network that is kept, and the test."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import torch

from examples.data.augment import View
from examples.engine.checkpoint import atomic_save
from examples.engine.distributed import fail_together, is_main_process
from examples.engine.evaluation import by_class, evaluate, mean_iou, unlabeled_with_truth
from examples.engine.run import Run, check_weights
from examples.engine.sharding import of_all_images, own_images
from examples.engine.signals import Interrupts
from examples.inference.measures import PER_IMAGE, Measures
from examples.inference.trained import Labels
from examples.logging.pictures import picture_files, save_overlays, save_pictures
from examples.logging.progress import phase
from examples.logging.run_folder import write_json
from examples.logging.run_log import log_errors
from examples.models.unet import recalibrate_batch_norm

WORST = 10  # test images that are named
PERCENTILES = (5, 25, 50, 75)  # of the test images by their IoU: how bad the bad ones are


def validate(run: Run, step: int, pool: View) -> None:
    """Measure the network on the validation images, and write last.pt and, if none was better, best.pt."""
    run.log.progress.phase("validating")
    check_weights(step, run.net, run.method)
    net = run.method.evaluated(run.net)
    recalibrate_batch_norm(net, run.calibration)
    iou = of_all_images(evaluate(net, own_images(run.data.validation), run.data))
    per_class = iou.per_class() if run.data.score == "miou" else iou.pooled()
    # 0 where no class is there to be found or missed: then the last checkpoint is as good as any.
    score = float(per_class.nanmean().nan_to_num())
    is_best = score >= run.best["validation"]
    run.log.validation(step, {"miou": score, **by_class(run.data.evaluated_names, per_class)}, best=is_best)
    checkpoint = {
        "model": net.state_dict(),
        "config": run.config.plain(),
        "labels": Labels.of(run.data).plain(),
        "division": run.division.plain(),
        "step": step,
        "validation": score,
    }
    if is_best:
        run.best = deepcopy(checkpoint)
    with fail_together():
        for name in ("last.pt", "best.pt") if is_best else ("last.pt",):
            if is_main_process():
                atomic_save(run.out / name, checkpoint)
    run.log.log_images(step, net, run.method, pool)
    run.log.progress.phase("training")


def finish(run: Run, interrupts: Interrupts) -> dict[str, Any]:
    """Test the network that was best on the validation images, write result.json and pictures, and return the former.

    The checkpoints to go on from are removed. A signal waits until all is written: with result.json the run is over,
    and the same command would not draw the rest.
    """
    run.net.load_state_dict(run.best["model"])
    summary = summarize(run)
    with phase("writing results and pictures"), interrupts.deferred():
        pool, _ = run.next_batches()
        write_json(run.out / "result.json", summary)
        for name, save in (
            ("overlays.png", partial(save_overlays, run.out / "overlays.png", run.net, run.method, pool, run.data)),
            ("pictures", partial(save_pictures, run.out, run.net, run.data)),
        ):
            with log_errors(name, run.log.progress.say):
                save()
        run.checkpoints.remove()
        run.log.finish(run.net, run.method, pool, list(summary["worst_images"]))
    return summary


def summarize(run: Run) -> dict[str, Any]:
    """Test ``run.net``, and return what result.json holds."""
    config, data, here = run.config, run.data, run.environments[-1]
    with phase(f"testing on {len(data.test)} images"):
        iou = Measures([None] * len(data.test))
        evaluate(run.net, own_images(data.test), data, iou)
        of_all_images(iou)
        # What options are to be chosen by, for the test set is not.
        unseen = unlabeled_with_truth(data)
        iou_unlabeled = of_all_images(evaluate(run.net, own_images(unseen), data)) if len(unseen) else None
    measures = run.log.last_tenth.measures()
    by_image = iou.values()  # (N, C, 6)
    dice, hd95 = (torch.from_numpy(by_image[..., PER_IMAGE.index(name)]).nanmean(0) for name in ("dice", "hd95_px"))
    scores = iou.per_image().nanmean(1)  # NaN: nothing to find, and nothing found
    worst = sorted((float(score), name) for name, score in zip(data.test.names, scores, strict=True) if score >= 0)
    return {
        "dataset": config.dataset,
        "method": config.method,
        "labeled": config.labeled,
        "split": config.split,
        "seed": config.seed,
        "iterations": run.iterations,
        "image_size": config.image_size,
        "commit": here["commit"],
        "score": data.score,
        "miou": float(iou.per_class().nanmean()),
        "miou_pooled": float(iou.pooled().nanmean()),
        "iou_per_class": by_class(data.evaluated_names, iou.per_class()),
        "iou_per_class_pooled": by_class(data.evaluated_names, iou.pooled()),
        "dice_per_class": by_class(data.evaluated_names, dice),
        "hd95_px_per_class": by_class(data.evaluated_names, hd95),
        "worst_images": {name: score for score, name in worst[:WORST]},
        "iou_percentiles": {
            str(percent): by_class(data.evaluated_names, iou.at_percentile(percent)) for percent in PERCENTILES
        },
        "miou_unlabeled": None if iou_unlabeled is None else mean_iou(iou_unlabeled, data),
        "validation": run.best["validation"],
        **(measures if run.log.learned else dict.fromkeys(measures)),
        "seconds": run.seconds,
        "data": data.found,
        "division": run.division.summary(),
        "device": here["device"],
        "threads": here["threads"],
        "torch": torch.__version__,
        "environment": here,
        "earlier_environments": run.environments[:-1],  # of a run that went on elsewhere
        "config": config.plain(),
        "history": run.log.history,
        "pictures": picture_files(data),
    }
