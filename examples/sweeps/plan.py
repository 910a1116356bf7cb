"""Which runs a sweep is made of, which of them are finished, and how long the others may take."""

from __future__ import annotations

import io
import itertools
import statistics
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from examples.command_line import parse_command
from examples.config import Config, DatasetName, MethodName, applies_to, require
from examples.engine.distributed import default_device
from examples.json_files import read_json
from examples.logging.run_folder import is_begun, is_finished

PLANNED = ("dataset", "method", "labeled", "split", "seed", "out")

ExecutorName = Literal["local", "slurm"]
Varied = tuple[tuple[str, str], ...]  # (option, value) as typed


@dataclass(frozen=True)
class Sweep:
    """Train every combination of the options given."""

    datasets: tuple[DatasetName, ...]
    """Data sets."""

    methods: tuple[MethodName, ...]
    """Methods."""

    labeled: tuple[int, ...] = (3,)
    """Numbers of labeled images, N_l."""

    splits: tuple[int, ...] = (0,)
    """Draws of labeled and validation images."""

    seeds: tuple[int, ...] = (0,)
    """Seeds."""

    vary: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """An option of examples.train and its values, such as --vary k 0.25 0.5; once for each option. A method that the
    option does not apply to is run once."""

    out: Path = Path("runs")
    """Folder of all results; each in {out}/{dataset}/{method}-n{labeled}-s{split}-seed{seed}[-{option}={value}]."""

    executor: ExecutorName = "local"
    """This machine, or the SLURM cluster that it belongs to; there a GPU is asked for with -- --device cuda."""

    jobs: int = 2
    """local: runs at a time, each with one thread."""

    hours: float = 48.0
    """Time after which a run is ended."""

    partition: str | None = None
    """slurm: partition."""

    dry_run: bool = False
    """Print the plan, what of it is finished and how long the rest may take; start nothing."""

    def __post_init__(self) -> None:
        for name in ("datasets", "methods", "labeled", "splits", "seeds"):
            require(bool(getattr(self, name)), name, "none", "at least one")
        require(self.jobs >= 1, "jobs", self.jobs, "1 or more")
        require(self.hours > 0, "hours", self.hours, "more than 0")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    config: Config
    finished: bool = False
    begun: bool = False  # but not finished: it goes on

    @property
    def out(self) -> Path:
        return self.config.out_dir

    @property
    def name(self) -> str:
        return f"{self.config.dataset}/{self.out.name}"


def plan(sweep: Sweep, options: Sequence[str]) -> list[Cell]:
    """Return every combination, as validated configurations; a method varies by the options that apply to it.

    ``options`` are words of the command line of examples.train, the same for all cells.
    """
    names = [option_name(words[0]) for words in sweep.vary if words]
    check_options(sweep.vary, names, options)
    cells: dict[Path, Cell] = {}
    errors = []
    combined = itertools.product(sweep.datasets, sweep.methods, sweep.labeled, sweep.splits, sweep.seeds)
    for dataset, method, n, split, seed in combined:
        choices = [
            [(name, value) for value in words[1:]]
            for name, words in zip(names, sweep.vary, strict=True)
            if applies_to(method, name)
        ]
        for varied in itertools.product(*choices):
            folder = sweep.out / dataset / folder_name(method, n, split, seed, varied)
            arguments = [
                dataset, "--method", method, "--labeled", str(n), "--split", str(split), "--seed", str(seed),
                "--out", str(folder), *itertools.chain.from_iterable(arguments_for(*option) for option in varied),
                *options,
            ]  # fmt: skip
            config, error = parse(arguments, sweep.datasets)
            if config is None:
                errors.append(f"  {dataset}/{folder.name}: {error}")
                continue
            try:
                cells[folder] = Cell(config, finished := is_finished(config), not finished and is_begun(config))
            except ValueError as stale:
                errors.append(f"  {dataset}/{folder.name}: {stale}")
    if errors:
        raise ValueError(f"nothing was started; {len(errors)} of {len(errors) + len(cells)} cells cannot run:\n"
                         + "\n".join(errors))  # fmt: skip
    return list(cells.values())


def check_options(vary: Sequence[Sequence[str]], names: Sequence[str], options: Sequence[str]) -> None:
    """Refuse what would be given in two ways, and options to vary that do not exist or have no values."""
    known = {field.name for field in fields(Config)} - {*PLANNED, "overwrite"}
    for name, words in zip(names, vary, strict=True):
        if name not in known:
            raise ValueError(f"vary: got {words[0]}, expected one of {', '.join(sorted(known))}")
        if len(words) < 2:
            raise ValueError(f"vary: got {name} without values, expected --vary {name} VALUE VALUE ...")
        if names.count(name) > 1:
            raise ValueError(f"vary: got {name} twice, expected all its values after one --vary")
    given = {option_name(word.partition("=")[0]) for word in options if word.startswith("--")}
    twice = sorted(name for name in (*PLANNED, *names) if name in given or f"no_{name}" in given)
    if twice:
        raise ValueError(f"{', '.join(twice)}: given after -- although the sweep sets it; leave it out there")


def option_name(word: str) -> str:
    return word.removeprefix("--").replace("-", "_")


def folder_name(method: str, labeled: int, split: int, seed: int, varied: Varied) -> str:
    """Name a folder as examples.train does, with the varied options behind."""
    parts = [f"{method}-n{labeled}-s{split}-seed{seed}", *(f"{name}={value}" for name, value in varied)]
    return "-".join(parts).replace("/", "_")


def arguments_for(name: str, value: str) -> list[str]:
    """Return the command line of an option; truth values are flags there."""
    flag = name.replace("_", "-")
    default = next(field.default for field in fields(Config) if field.name == name)
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            return [f"--{flag}={value}"]  # refused with a reason
        return [f"--{flag}" if value.lower() == "true" else f"--no-{flag}"]
    return [f"--{flag}", value]


def parse(arguments: Sequence[str], datasets: Sequence[str] = ()) -> tuple[Config | None, str]:
    """Return the configuration, or what the command line of examples.train says is wrong."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse_command(arguments, prog="examples.train", datasets=datasets)[0], ""
    except ValueError as error:
        return None, str(error)
    except SystemExit:
        return None, plain_text(said.getvalue())


def plain_text(box: str) -> str:
    """Return what stands in the first part of a framed message."""
    lines = [line.strip("│ ").strip() for line in box.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("╭", "╰"))]
    rule = next((i for i, line in enumerate(lines) if set(line) == {"─"}), len(lines))
    return " ".join(lines[:rule]).removeprefix("Error parsing Command: ") or "refused"


def estimate(cells: Iterable[Cell], out: Path) -> dict[Path, float | None]:
    """Return the seconds that each cell may take, by results below ``out`` of the same method, data, sizes and device.

    None for a cell that there is no such result for.
    """
    known: dict[tuple[Any, ...], list[float]] = {}
    lengths: dict[tuple[Any, ...], list[int]] = {}
    for path in sorted(out.rglob("result.json")):
        try:
            result = read_json(path)
            options = result["config"]
            per_step = result["seconds"] / result["iterations"]
            kind = kind_of(options)
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # the report names broken files
        known.setdefault(kind, []).append(per_step)
        lengths.setdefault(length_of(options), []).append(result["iterations"])
    seconds: dict[Path, float | None] = {}
    for cell in cells:
        options = cell.config.plain()
        per_steps, iterations = known.get(kind_of(options)), lengths.get(length_of(options))
        if cell.config.iterations:
            iterations = [cell.config.iterations * (2 if cell.config.double_length else 1)]
        seconds[cell.out] = statistics.fmean(per_steps) * iterations[0] if per_steps and iterations else None
    return seconds


def kind_of(options: dict[str, Any]) -> tuple[Any, ...]:
    """Return what the time of a step depends on most."""
    names = ("dataset", "method", "image_size", "base_channels")
    device = options["device"]
    return (*(options[name] for name in names), default_device() if device == "auto" else device)


def length_of(options: dict[str, Any]) -> tuple[Any, ...]:
    """Return what the number of steps depends on."""
    return tuple(options[name] for name in ("dataset", "iterations", "unlabeled_batch", "double_length"))
