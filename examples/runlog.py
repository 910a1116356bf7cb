"""What a run leaves behind: a progress bar, metrics.jsonl, TensorBoard, checkpoints and JSON files."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from examples.augment import View
from examples.checkpoints import Checkpoints, write_whole
from examples.config import Config
from examples.methods import Step
from examples.metrics import PseudoLabelMeter

LOG_EVERY = 20  # steps from one line of metrics.jsonl to the next
POINTS = 25  # of the history in result.json
LINES = 20  # printed in a run whose output is no terminal
METERS = ("recent", "last_tenth", "since_history")
PACKAGES = ("torch", "numpy", "kornia", "pillow", "triton")


@contextmanager
def claimed_folder(config: Config) -> Iterator[Path]:
    """Makes the output folder and keeps other runs out of it; the system ends the claim with the process.

    Raises:
        FileExistsError: it holds a result and ``config.overwrite`` is False, or another run is under way in it.
        OSError: it cannot be written.
    """
    out = config.out_dir
    lock = FileLock(out / ".lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(f"out: another run is under way in {out}; wait for it or pass another --out") from None
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: cannot write there; pass another --out", str(out)) from error
    try:
        if config.overwrite:
            for name in ("result.json", "best.pt", "last.pt"):
                (out / name).unlink(missing_ok=True)
            Checkpoints(out / "checkpoints").remove()
        elif (out / "result.json").exists():
            raise FileExistsError(f"out: {out} already holds a result.json; pass --overwrite or another --out")
        yield out
    finally:
        lock.release()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(without_nan(content), indent=2) + "\n").encode())


def without_nan(content: Any) -> Any:
    """Replaces NaN, which JSON does not know, by None."""
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def git_commit() -> str:
    """The commit these examples were run at, with -dirty if files have changed since; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def environment(device: str) -> dict[str, Any]:
    """What a run depends on beside its options and data: versions, machine, device, threads, commit."""
    gpu = torch.device(device).type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if gpu else device,
        "cuda": torch.version.cuda if gpu else None,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "commit": git_commit(),
    }


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def open_lines(path: Path, step: int) -> TextIO:
    """Opens metrics.jsonl to be written on after a step; what a run that was cut short wrote later is dropped."""

    def belongs(line: str) -> bool:
        try:
            return bool(json.loads(line)["step"] <= step)
        except (ValueError, KeyError):  # written by halves
            return False

    before = path.read_text(errors="replace").splitlines(keepends=True) if step and path.exists() else []
    write_whole(path, "".join(filter(belongs, before)).encode())
    return path.open("a", buffering=1)


class RunLog:
    """Shows and stores how a run goes; use as a context manager.

    Pseudo-labels are compared with the held-back labels of their view, here and nowhere else.

    Args:
        folder: Where metrics.jsonl and the TensorBoard file go.
        config: Of the run.
        iterations: Steps of the whole run.
        class_names: The classes without background.
        start: Steps done before, of a run that goes on; ``load_state_dict`` brings what the log knew then.
    """

    def __init__(self, folder: Path, config: Config, iterations: int, class_names: Sequence[str], start: int = 0):
        self.iterations = iterations
        self.device = config.device
        self.lines = open_lines(folder / "metrics.jsonl", start)
        if not start:
            for stale in folder.glob("events.out.tfevents.*"):
                stale.unlink()
        self.board = SummaryWriter(str(folder), purge_step=start + 1 if start else None)
        self.print_every = LOG_EVERY * math.ceil(iterations / LINES / LOG_EVERY)
        self.console = Console()
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.progress.add_task("starting", total=iterations, completed=start, speed="")
        self.losses: list[dict[str, Tensor]] = []
        self.new_meter = partial(PseudoLabelMeter, class_names, config.side)
        self.recent, self.last_tenth, self.since_history = self.new_meter(), self.new_meter(), self.new_meter()
        self.history: list[dict[str, Any]] = []  # for result.json: a validation, or a share of the run, a point
        self.point_every = math.ceil(iterations / POINTS)
        self.learned = False  # whether there are pseudo-labels

    def state_dict(self) -> dict[str, Any]:
        """All that later lines and the result depend on."""
        meters = {name: getattr(self, name).state_dict() for name in METERS}
        return {"losses": self.losses, "history": self.history, "learned": self.learned, **meters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in METERS:
            getattr(self, name).load_state_dict(state[name])
        self.losses = [{name: loss.to(self.device) for name, loss in losses.items()} for losses in state["losses"]]
        self.history, self.learned = state["history"], state["learned"]

    def flush(self) -> None:
        """Brings all that was written to the disk."""
        self.lines.flush()
        os.fsync(self.lines.fileno())
        self.board.flush()

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
        self.learned = result.pseudo_labels is not None
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
            self.point(step, None, learned=self.learned)

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
