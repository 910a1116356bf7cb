"""Where the time of the example trainer's steps goes, part by part.

    python -m benchmarks.trainer_profile                             # phantoms, 128 px, UNet of 16, rpg_plus
    python -m benchmarks.trainer_profile --size 512 --precision bf16
    python -m benchmarks.trainer_profile --root PATH/TO/JSRT         # JSRT instead of phantoms
    python -m benchmarks.trainer_profile --quick                     # a smoke test

A real run is trained with a clock round its parts; a part's time is without that of the parts inside it. On a CPU it is
the time that the thread computed, so that other work on the machine does not count, with one thread of PyTorch. On a
GPU it is wall time, with a synchronization at both ends, which keeps the parts apart and makes the step longer; the
data thread's parts then contain what they wait for the step. The data thread is no part of the step; what the step
waits for it is wall time.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import conditions, environment, parse, parser_of, synchronize, write_json
from examples.config import Config
from examples.data.augment import StrongAugmentation, WeakAugmentation
from examples.data.loaders import PoolBatches, UnlabeledBatches
from examples.data.prefetch import Prefetched
from examples.engine.loop import train
from examples.logging.run_log import RunLog
from examples.methods import rpg_plus
from examples.models.unet import UNet
from rpg_loss import FixMatchSegLoss, RPGLoss

WARM_UP = 5  # steps
WAITING = "waiting for data (wall)"
# What is called, and the part of the step that it is.
PARTS: list[tuple[Any, str, str]] = [
    (UNet, "forward", "network, forward"),
    (torch.Tensor, "backward", "backward"),
    (RPGLoss, "forward", "RPG loss"),
    (FixMatchSegLoss, "forward", "FixMatch loss"),
    (rpg_plus, "segmentation_cross_entropy", "supervised loss"),
    (StrongAugmentation, "__call__", "strong augmentation"),
    (torch.optim.Adam, "step", "Adam"),
    (RunLog, "step", "log"),
    (PoolBatches, "__next__", "pool: draw and check"),
    (UnlabeledBatches, "__next__", "unlabeled: draw and read"),
    (WeakAugmentation, "__call__", "weak augmentation"),
]


class Clock:
    """Adds up the time of parts by thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.here = threading.local()  # a thread's own: the time inside each part that has begun
        self.main = threading.get_ident()

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.thread_time()
        synchronize(self.device)
        return time.perf_counter()

    def wrap(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            inside = self.here.__dict__.setdefault("inside", [])
            inside.append(0.0)
            start = self.now()
            try:
                return call(*args, **options)
            finally:
                taken = self.now() - start
                where = part if threading.get_ident() == self.main else f"data thread: {part}"
                self.seconds[where] += taken - inside.pop()
                if inside:
                    inside[-1] += taken

        return timed

    def wait(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            outcome = call(*args)
            self.seconds[WAITING] += time.perf_counter() - start
            return outcome

        return timed


def profile(config: Config) -> dict[str, float]:
    """Trains, in this process for good with clocks in it, and returns milliseconds a step by part, "step" the whole."""
    clock = Clock(torch.device(config.device))
    for owner, name, part in PARTS:
        setattr(owner, name, clock.wrap(getattr(owner, name), part))
    setattr(Prefetched, "__next__", clock.wait(Prefetched.__next__))  # noqa: B010
    marks: list[tuple[float, dict[str, float]]] = []
    log_step = RunLog.step

    def step(self: RunLog, number: int, *args: Any) -> None:
        log_step(self, number, *args)
        if number in (WARM_UP, config.iterations):
            marks.append((clock.now(), dict(clock.seconds)))

    setattr(RunLog, "step", step)  # noqa: B010
    train(config)
    (start, before), (end, after) = marks
    count = (config.iterations or 0) - WARM_UP
    times = {part: (seconds - before.get(part, 0)) / count * 1e3 for part, seconds in after.items()}
    whole = (end - start) / count * 1e3
    own = sum(ms for part, ms in times.items() if part != WAITING and not part.startswith("data thread"))
    return {"step": whole, **times, "the rest": whole - own}


def main() -> None:
    parser = parser_of("benchmarks.trainer_profile", __doc__)
    parser.add_argument("--root", type=Path, metavar="DIR", help="of JSRT; without it phantoms are drawn")
    parser.add_argument("--size", type=int, metavar="PX", help="side of the images (default: 128)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="default: %(default)s")
    options = parse(parser)
    usual, channels, map_size, steps = (32, 4, 8, 4) if options.quick else (128, 16, 32, 40)
    size = options.size or usual
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            "jsrt" if options.root else "phantom", root=options.root,
            image_size=size, map_size=map_size, base_channels=channels, k=0.5,
            iterations=WARM_UP + steps, eval_every=10**6, precision=options.precision,
            device=options.device, out=Path(folder, "run"),
        )  # fmt: skip
        times = profile(config)
    record = environment(torch.device(options.device), "benchmarks.trainer_profile")
    print(f"\n{conditions(record)}\n{config.dataset}, {size} px, UNet of {channels},", end=" ")
    print(f"map {map_size}, {options.precision}, mean of {steps} steps\n")
    print("| part | ms | share of the step |\n|---|---|---|")
    for part, ms in sorted(times.items(), key=lambda item: (item[0].startswith("data thread"), -item[1])):
        print(f"| {part} | {ms:.2f} | {ms / times['step']:.1%} |")
    problem = config.plain() | {"root": None, "out": None}
    write_json(options.json, {"benchmark": "trainer_profile", "environment": record, "problem": problem, "ms": times})


if __name__ == "__main__":
    main()
