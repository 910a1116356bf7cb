"""What a run shows and leaves behind: metrics.jsonl, TensorBoard, pictures, status.json and report.html."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from examples.config import Config
from examples.data import Dataset, Images
from examples.data.augment import View
from examples.engine.checkpoint import atomic_write
from examples.engine.metrics import PseudoLabelMeter
from examples.json_files import parse_json, read_json
from examples.logging.pictures import columns, encoded, evenly, printable, showing_all, strips, visualize
from examples.logging.progress import RunProgress
from examples.logging.run_folder import write_json
from examples.methods import Method, Step
from examples.models.base import Network
from examples.reporting.run_page import config_table, write_page

LOG_EVERY = 20  # steps from one line of metrics.jsonl to the next
POINTS = 25  # of the history in result.json
MAX_LOGGED_IMAGES = 10  # times a run that pictures are drawn
IMAGES_PER_PART = 2  # that pictures are drawn of
WORST_DRAWN, LABELED_DRAWN = 4, 6  # at the end
LINES = 20  # printed in a run whose output is no terminal
SLOW = 5.0  # seconds a step
SMALL = "--image-size 128 --base-channels 16 --map-size 32 --iterations 1500"
METERS = ("recent", "last_tenth", "since_history")


def open_lines(path: Path, step: int) -> TextIO:
    """Open metrics.jsonl to be written on after a step; drop what a run that was cut short wrote later."""

    def belongs(line: str) -> bool:
        try:
            return bool(parse_json(line)["step"] <= step)
        except (ValueError, KeyError, TypeError):  # written by halves, or no line of a log
            return False

    before = path.read_text(errors="replace").splitlines(keepends=True) if step and path.exists() else []
    atomic_write(path, "".join(filter(belongs, before)).encode())
    return path.open("a", buffering=1)


def read_pictures(path: Path) -> dict[str, Any]:
    """Return the pictures that an earlier part of the run named in status.json; none where there is no such file."""
    try:
        return dict(read_json(path)["pictures"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@contextmanager
def log_errors(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say what went wrong with a picture or page, and no more: neither is worth the end of a run."""
    try:
        yield
    except Exception as error:
        say(f"note: {what} could not be written: {type(error).__name__}: {error}")


class RunLog:
    """Show and store how a run goes; use as a context manager.

    Pseudo-labels are compared with the held-back labels of their view, here and nowhere else. Of a run that goes on,
    ``start`` steps were done before; ``load_state_dict`` brings what the log knew then.
    """

    def __init__(
        self, folder: Path, config: Config, iterations: int, data: Dataset, environments: Sequence[Any], start: int = 0
    ) -> None:
        self.folder = folder
        self.config = config
        self.iterations = iterations
        self.data = data
        self.begun = start  # steps
        self.lines = open_lines(folder / "metrics.jsonl", start)
        if not start:
            for stale in (*folder.glob("events.out.tfevents.*"), folder / "status.json"):
                stale.unlink(missing_ok=True)
        self.board = SummaryWriter(str(folder), purge_step=start + 1 if start else None)
        self.board.add_text("configuration", config_table(config.plain()), start)
        self.print_every = LOG_EVERY * math.ceil(iterations / LINES / LOG_EVERY)
        self.progress = RunProgress(iterations, start)
        self.last_step = time.perf_counter()
        self.losses: list[dict[str, Tensor]] = []
        self.new_meter = partial(PseudoLabelMeter, data.class_names, config.side)
        self.recent, self.last_tenth, self.since_history = self.new_meter(), self.new_meter(), self.new_meter()
        self.history: list[dict[str, Any]] = []  # for result.json: a validation, or a share of the run, a point
        self.point_every = math.ceil(iterations / POINTS)
        self.learned = False  # whether there are pseudo-labels
        self.status: dict[str, Any] = {
            "state": "under way",
            "reason": None,
            "step": start,
            "iterations": iterations,
            "data": data.found,
            "score": data.score,
            "evaluated": list(data.evaluated_names),
            "learned": list(data.class_names),
            "environments": environments,
            "pictures": read_pictures(folder / "status.json"),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that later lines and the result depend on."""
        meters = {name: getattr(self, name).state_dict() for name in METERS}
        return {"losses": self.losses, "history": self.history, "learned": self.learned, **meters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in METERS:
            getattr(self, name).load_state_dict(state[name])
        self.losses = [
            {name: loss.to(self.config.device) for name, loss in losses.items()} for losses in state["losses"]
        ]
        self.history, self.learned = state["history"], state["learned"]

    def flush(self) -> None:
        """Bring all that was written to the disk."""
        self.lines.flush()
        os.fsync(self.lines.fileno())
        self.board.flush()

    def __enter__(self) -> RunLog:
        self.progress.start()
        self.report()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.progress.stop()
        self.board.close()
        self.lines.close()
        if error is not None:
            self.report(state="stopped", reason=str(error) or type(error).__name__)

    def step(self, step: int, result: Step, unlabeled: View) -> None:
        """Count a step; every LOG_EVERY steps write mean losses and the measures of the pseudo-labels."""
        self.losses.append({name: value.detach() for name, value in result.terms.items()})
        self.learned = result.pseudo_labels is not None
        if result.pseudo_labels:
            self.recent.update(result.pseudo_labels, unlabeled)
            self.since_history.update(result.pseudo_labels, unlabeled)
            if step > 0.9 * self.iterations:
                self.last_tenth.update(result.pseudo_labels, unlabeled)
        self.status["step"] = step
        self.progress.step()
        now = time.perf_counter()
        if step == self.begun + 2:
            self.say_cost(step, now - self.last_step)
        self.last_step = now
        if step % LOG_EVERY == 0 or step == self.iterations:
            losses = {name: float(torch.stack([loss[name] for loss in self.losses]).mean()) for name in result.terms}
            shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self.progress.note.plain = shown
            if step % self.print_every == 0 and not self.progress.console.is_terminal:
                parts = (f"step {step}/{self.iterations}", shown, self.progress.speed, self.progress.left)
                self.progress.say("  ".join(filter(None, parts)))
            self.write(step, "loss", losses)
            for kind, by_class in self.recent.measures().items():
                self.write(step, kind, by_class)
            self.losses, self.recent = [], self.new_meter()
        if step % self.point_every == 0:
            self.point(step, None, learned=self.learned)

    def say_cost(self, step: int, seconds: float) -> None:
        """Say, where no bar does, what a step costs; where that is much, name a smaller setting."""
        left = timedelta(seconds=round(seconds * (self.iterations - step)))
        each = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
        cost = f"step {step}/{self.iterations}  {each} s a step, {left} for the rest without validations"
        if seconds > SLOW and self.config.image_size > 128:
            self.progress.say(f"{cost}; a smaller setting for a first try: {SMALL}")
        elif not self.progress.console.is_terminal:
            self.progress.say(cost)

    def point(self, step: int, miou: float | None, *, learned: bool) -> None:
        """Add to the history: a validation's score, or how good pseudo-labels were since the last point."""
        measures = self.since_history.measures()
        self.history.append({"step": step, "miou": miou, **(measures if learned else dict.fromkeys(measures))})
        if learned:
            self.since_history = self.new_meter()

    def validation(self, step: int, iou: dict[str, float], *, best: bool) -> None:
        """Write the IoU of a validation: its mean under "miou", and by class."""
        self.write(step, "validation", iou)
        self.point(step, iou["miou"], learned=False)
        praise = ", the best so far" if best else ""
        self.progress.say(f"step {step}/{self.iterations}  validation mIoU {iou['miou']:.3f}{praise}")

    def log_images(self, step: int, net: Network, method: Method, pool: View) -> None:
        """At a validation: bring report.html up to date and, ten times a run, draw pictures for it and TensorBoard."""
        before = max((point["step"] for point in self.history[:-1] if point["miou"] is not None), default=0)
        if MAX_LOGGED_IMAGES * step // self.iterations > MAX_LOGGED_IMAGES * before // self.iterations:
            labeled = set(self.data.labeled.names)
            unlabeled = [i for i, name in enumerate(self.data.unlabeled.names) if name not in labeled]
            for part, images, chosen in (
                ("validation", self.data.validation, evenly(len(self.data.validation), IMAGES_PER_PART)),
                ("unlabeled", self.data.unlabeled, [unlabeled[i] for i in evenly(len(unlabeled), IMAGES_PER_PART)]),
            ):
                # Each by itself: other processes go on to the next part, which takes all of them.
                with log_errors("pictures", self.progress.say):
                    for tag, picture in self.draw(part, step, images, chosen, net, method, pool).items():
                        self.board.add_image(tag, picture, step, dataformats="HWC")
        self.report()

    def finish(self, net: Network, method: Method, pool: View, worst: Sequence[str]) -> None:
        """Draw test images, the worst ones by name, and labeled ones, and write the last report.html.

        result.json is there.
        """
        test, labeled = self.data.test, self.data.labeled
        with log_errors("pictures", self.progress.say):
            for part, images, chosen in (
                ("test", test, showing_all(test, len(self.data.class_names))),
                ("worst", test, [test.names.index(name) for name in worst[:WORST_DRAWN]]),
                ("labeled", labeled, evenly(len(labeled), LABELED_DRAWN)),
            ):
                self.draw(part, self.iterations, images, chosen, net, method, pool)
        self.report(state="finished")

    def draw(
        self, part: str, step: int, images: Images, chosen: Sequence[int], net: Network, method: Method, pool: View
    ) -> dict[str, NDArray[np.uint8]]:
        """Write strips of a few images to pictures/, name them in the status, and return them (H, W, 4) by name."""
        if not chosen:
            return {}
        shown = visualize(drawn := images[chosen], net, method, pool, self.data)
        (self.folder / "pictures").mkdir(exist_ok=True)
        rows, tagged = [], {}
        for number, (name, strip) in enumerate(zip(drawn.names, strips(shown), strict=True)):
            file = f"pictures/{part}-{number}.png"
            atomic_write(self.folder / file, encoded(Image.fromarray(strip.numpy())), flush=False)
            rows.append({"name": name, "file": file, "miou": float(shown.score[number])})
            tagged[f"{part}: {', '.join(columns(shown))}/{printable(name)}"] = strip.numpy()
        self.status["pictures"][part] = {"step": step, "columns": columns(shown), "rows": rows}
        return tagged

    def report(self, **changes: Any) -> None:
        """Write status.json and, from it and what else is in the folder, report.html."""
        self.status |= changes | {"written": datetime.now().astimezone().isoformat(timespec="seconds")}
        with log_errors("report.html", self.progress.say):
            write_json(self.folder / "status.json", self.status)
            write_page(self.folder)

    def write(self, step: int, kind: str, metrics: Mapping[str, float | None]) -> None:
        """Write a line of metrics.jsonl, and the same to TensorBoard; nothing where nothing was measured."""
        measured = {name: value for name, value in metrics.items() if value is not None and not math.isnan(value)}
        if measured:
            self.lines.write(json.dumps({"step": step, "kind": kind, **measured}) + "\n")
        for name, value in measured.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)
