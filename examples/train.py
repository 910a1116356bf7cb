"""Train a UNet with few labeled and many unlabeled images, by RPG or by what the paper compares it with.

No GPU, a few minutes, no download (python -m examples.demo compares this with supervised):

    python -m examples.train phantom --method rpg_plus --image-size 64 --base-channels 12 --map-size 16 --k 0.5 \\
        --learning-rate 2e-3 --iterations 900

JSRT with three labeled images, small enough for one CPU core in ten minutes or so:

    python -m examples.train jsrt --root PATH/TO/JSRT --method rpg_plus --labeled 3 --split 0 \\
        --image-size 128 --base-channels 16 --map-size 32 --k 0.5 --iterations 1500

The paper's setting, which wants a GPU:

    python -m examples.train jsrt --root PATH/TO/JSRT --method rpg_plus --labeled 3 --split 0

Two GPUs, or two processes on a CPU; every process takes its share of each batch:

    torchrun --nproc-per-node 2 -m examples.train jsrt --root PATH/TO/JSRT --pool-size 4

The loss itself is used in examples/methods/, one short file a method; start with rpg.py. The training loop is in
examples/engine/loop.py.
"""

from __future__ import annotations

import sys

import torch

from examples.command_line import ignored_flags, parse_command
from examples.engine import distributed as parallel
from examples.engine.checkpoint import Checkpoints
from examples.engine.loop import train
from examples.engine.signals import Interrupted
from examples.logging.run_folder import has_checkpoint, is_finished
from examples.reporting.run_page import write_page


def main() -> None:
    torch.set_flush_denormal(True)  # tiny activations of a trained net would slow a CPU down
    with parallel.started_by_torchrun():
        run_command()


def run_command() -> None:
    try:
        with parallel.fail_together():
            config, resume = parse_command(description=__doc__, prog="python -m examples.train")
        if ignored := ignored_flags(config):
            print(f"note: {', '.join(ignored)} not used by {config.method}")
        if parallel.broadcast_from_rank0(lambda: is_finished(config)):
            if parallel.is_main_process() and has_checkpoint(config.out_dir):  # its end was cut off
                write_page(config.out_dir)
                Checkpoints(config.out_dir / "checkpoints").remove()
            print(f"already finished, see {config.out_dir / 'report.html'}; --overwrite starts it again")
            return
        summary = train(config, resume=resume)
    except (ImportError, OSError, ValueError, FloatingPointError) as error:
        # The message says what to do; a traceback would bury it. What is not finite is so on all processes.
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
        if (config.out_dir / "result.json").exists():
            then = "says that the run is finished"
        else:
            then = "goes on from the last checkpoint" if has_checkpoint(config.out_dir) else "begins the run"
        if parallel.is_main_process():
            print(f"{interrupted}; {again} {then}", file=sys.stderr)
        sys.exit(128 + interrupted.number)
    pooled = " (pooled)" if summary["score"] == "miou_pooled" else ""
    print(
        f"test mIoU {summary[summary['score']]:.3f}{pooled} on {summary['data']}; see {config.out_dir / 'report.html'}"
    )


if __name__ == "__main__":
    main()
