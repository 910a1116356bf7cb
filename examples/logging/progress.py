"""How a run shows on the screen: a bar with the losses below it, or plain lines where the output is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

SPEED_PERIOD = 120  # seconds that speed and time left are measured over


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Say what takes a while, where no bar does: a spinner, or a line."""
    console = Console(highlight=False)
    if console.is_terminal:
        with console.status(name):
            yield
    else:
        console.print(name, markup=False, soft_wrap=True)
        yield


class RunProgress(Progress):
    """The bar of a run of ``total`` steps, with its phase and a line below it; use as a context manager."""

    def __init__(self, total: int, done: int) -> None:
        console = Console(highlight=False)
        self.note = Text("", style="dim", overflow="ellipsis", no_wrap=True)
        super().__init__(
            TextColumn("{task.description:<10}"), BarColumn(None), MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(),
            TextColumn("left"), console=console, disable=not console.is_terminal,
            speed_estimate_period=SPEED_PERIOD, expand=True,
        )  # fmt: skip
        self.run = self.add_task("training", total=total, completed=done, speed="")

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield self.note

    def phase(self, name: str) -> None:
        self.update(self.run, description=name)

    def step(self) -> None:
        self.update(self.run, advance=1, speed=self.speed)

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        self.console.print(line, markup=False, soft_wrap=True)

    @property
    def speed(self) -> str:
        """Of late; empty until there are two steps to measure it by."""
        speed = self.tasks[0].speed
        if not speed:
            return ""
        return f"{speed:.1f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it"

    @property
    def left(self) -> str:
        """The time to the end at this speed, without validations; empty at the end and where speed is."""
        seconds = self.tasks[0].time_remaining
        return f"{timedelta(seconds=round(seconds))} left" if seconds else ""
