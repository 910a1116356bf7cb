"""What a run leaves behind: a progress bar, metrics.jsonl, TensorBoard, checkpoints and JSON files."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from examples.augment import View
from examples.config import Config
from examples.methods import Step
from examples.metrics import PseudoLabelMeter

LOG_EVERY = 20  # steps from one line of metrics.jsonl to the next
POINTS = 25  # of the history in result.json
LINES = 20  # printed in a run whose output is no terminal


def claim_folder(config: Config) -> Path:
    """Makes the output folder and writes config.json.

    Raises:
        FileExistsError: it holds a result, and ``config.overwrite`` is False.
    """
    out = config.out_dir
    if (out / "result.json").exists():
        if not config.overwrite:
            raise FileExistsError(f"out: {out} already holds a result.json; pass --overwrite or another --out")
        (out / "result.json").unlink()
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", config.plain())
    return out


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(without_nan(content), indent=2) + "\n")


def without_nan(content: Any) -> Any:
    """Replaces NaN, which JSON does not know, by None."""
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes aside and renames, so that a run cut short leaves the old file whole."""
    aside = path.with_suffix(".tmp")
    torch.save(content, aside)
    os.replace(aside, path)


def git_commit() -> str:
    """The commit these examples were run at, with -dirty if files have changed since; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


class RunLog:
    """Shows and stores how a run goes; use as a context manager.

    Pseudo-labels are compared with the held-back labels of their view, here and nowhere else.

    Args:
        folder: Where metrics.jsonl and the TensorBoard file go.
        config: Of the run.
        iterations: Steps of the whole run.
        class_names: The classes without background.
    """

    def __init__(self, folder: Path, config: Config, iterations: int, class_names: Sequence[str]):
        self.iterations = iterations
        self.lines = (folder / "metrics.jsonl").open("w", buffering=1)
        for stale in folder.glob("events.out.tfevents.*"):
            stale.unlink()
        self.board = SummaryWriter(str(folder))
        self.print_every = LOG_EVERY * math.ceil(iterations / LINES / LOG_EVERY)
        self.console = Console()
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.progress.add_task("starting", total=iterations, speed="")
        self.losses: list[dict[str, Tensor]] = []
        self.new_meter = partial(PseudoLabelMeter, class_names, config.side)
        self.recent, self.last_tenth, self.since_history = self.new_meter(), self.new_meter(), self.new_meter()
        self.history: list[dict[str, Any]] = []  # for result.json: a validation, or a share of the run, a point
        self.point_every = math.ceil(iterations / POINTS)

    def __enter__(self) -> RunLog:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()
        self.board.close()
        self.lines.close()

    def step(self, step: int, result: Step, unlabeled: View) -> None:
        """Counts a step; every LOG_EVERY steps writes mean losses and the measures of the pseudo-labels."""
        self.losses.append({name: value.detach() for name, value in result.terms.items()})
        if result.pseudo_labels:
            self.recent.update(result.pseudo_labels, unlabeled)
            self.since_history.update(result.pseudo_labels, unlabeled)
            if step > 0.9 * self.iterations:
                self.last_tenth.update(result.pseudo_labels, unlabeled)
        speed = self.progress.tasks[self.task].speed
        self.progress.update(self.task, advance=1, speed=f"{speed:.1f} it/s" if speed else "")
        if step % LOG_EVERY == 0 or step == self.iterations:
            losses = {name: float(torch.stack([loss[name] for loss in self.losses]).mean()) for name in result.terms}
            shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self.progress.update(self.task, description=shown)
            if step % self.print_every == 0 and not self.console.is_terminal:
                self.console.print(f"step {step}/{self.iterations}  {shown}", soft_wrap=True)
            self.write(step, "loss", losses)
            for kind, by_class in self.recent.measures().items():
                self.write(step, kind, by_class)
            self.losses, self.recent = [], self.new_meter()
        if step % self.point_every == 0:
            self.point(step, None, learned=result.pseudo_labels is not None)

    def point(self, step: int, miou: float | None, *, learned: bool) -> None:
        """Adds to the history: a validation's score, or how good pseudo-labels were since the last point."""
        measures = self.since_history.measures()
        self.history.append({"step": step, "miou": miou, **(measures if learned else dict.fromkeys(measures))})
        if learned:
            self.since_history = self.new_meter()

    def validation(self, step: int, iou: dict[str, float], *, best: bool) -> None:
        """Writes the IoU of a validation: its mean under "miou", and by class."""
        self.write(step, "validation", iou)
        self.point(step, iou["miou"], learned=False)
        praise = ", the best so far" if best else ""
        self.console.print(f"step {step}/{self.iterations}  validation mIoU {iou['miou']:.3f}{praise}")

    def write(self, step: int, kind: str, metrics: Mapping[str, float | None]) -> None:
        """One line of metrics.jsonl, and the same to TensorBoard; nothing where nothing was measured."""
        measured = {name: value for name, value in metrics.items() if value is not None and not math.isnan(value)}
        if measured:
            self.lines.write(json.dumps({"step": step, "kind": kind, **measured}) + "\n")
        for name, value in measured.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)
