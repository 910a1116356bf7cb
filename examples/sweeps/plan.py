"""Which runs a sweep is made of, which of them are finished, and how long the others may take."""

from __future__ import annotations

import io
import itertools
import json
import statistics
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from examples.command_line import parse_command
from examples.config import Config
from examples.reporting.results import ABLATIONS, applies_to

PLANNED = ("dataset", "method", "labeled", "split", "seed", "out")

Varied = tuple[tuple[str, str], ...]  # (option, value) as typed


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


def plan(
    out: Path,
    datasets: Sequence[str],
    methods: Sequence[str],
    labeled: Sequence[int],
    splits: Sequence[int],
    seeds: Sequence[int],
    vary: Sequence[Sequence[str]],
    options: Sequence[str],
) -> list[Cell]:
    """Every combination, as validated configurations; methods are not varied by options that they do not heed.

    Args:
        out: Folder of all cells.
        datasets: Of examples.train, as all below.
        methods: ...
        labeled: ...
        splits: ...
        seeds: ...
        vary: Each an option's name and its values.
        options: Of the command line of examples.train, the same for all cells.

    Raises:
        ValueError: cells are invalid, each named with the reason; or an option is given twice; or a folder holds the
            result of another configuration.
    """
    names = [option_name(words[0]) for words in vary if words]
    check_options(vary, names, options)
    cells: dict[Path, Cell] = {}
    errors = []
    for dataset, method, n, split, seed in itertools.product(datasets, methods, labeled, splits, seeds):
        choices = [
            [(name, value) for value in words[1:]]
            for name, words in zip(names, vary, strict=True)
            if name not in ABLATIONS or applies_to(method, name)
        ]
        for varied in itertools.product(*choices):
            folder = out / dataset / folder_name(method, n, split, seed, varied)
            arguments = [
                dataset, "--method", method, "--labeled", str(n), "--split", str(split), "--seed", str(seed),
                "--out", str(folder), *itertools.chain.from_iterable(arguments_for(*option) for option in varied),
                *options,
            ]  # fmt: skip
            config, error = parse(arguments, datasets, names)
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
    """Refuses what would be given in two ways, and options to vary that do not exist or have no values."""
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
    """As examples.train names a run's folder, with the varied options behind."""
    parts = [f"{method}-n{labeled}-s{split}-seed{seed}", *(f"{name}={value}" for name, value in varied)]
    return "-".join(parts).replace("/", "_")


def arguments_for(name: str, value: str) -> list[str]:
    """The command line of an option; truth values are flags there."""
    flag = name.replace("_", "-")
    default = next(field.default for field in fields(Config) if field.name == name)
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            return [f"--{flag}={value}"]  # refused with a reason
        return [f"--{flag}" if value.lower() == "true" else f"--no-{flag}"]
    return [f"--{flag}", value]


def parse(
    arguments: Sequence[str], datasets: Sequence[str] = (), varied: Sequence[str] = ()
) -> tuple[Config | None, str]:
    """The configuration, or what the command line of examples.train says is wrong."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse_command(arguments, prog="examples.train", datasets=datasets, varied=varied)[0], ""
    except ValueError as error:
        return None, str(error)
    except SystemExit:
        return None, plain_text(said.getvalue())


def plain_text(box: str) -> str:
    """What stands in the first part of the framed message."""
    lines = [line.strip("│ ").strip() for line in box.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("╭", "╰"))]
    rule = next((i for i, line in enumerate(lines) if set(line) == {"─"}), len(lines))
    return " ".join(lines[:rule]).removeprefix("Error parsing Command: ") or "refused"


def is_finished(config: Config) -> bool:
    """Whether the folder holds the result of just this configuration.

    Raises:
        ValueError: it holds that of another.
    """
    path = config.out_dir / "result.json"
    if not path.exists() or config.overwrite:
        return False
    try:
        made_with = json.loads(path.read_text()).get("config")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it") from error
    if not made_with:
        raise ValueError(f"{path} does not say what it was made with; remove it or take another --out")
    other = config.differences(made_with)
    if other:
        raise ValueError(
            f"{path} was made with other options ({'; '.join(other)}); take another --out, or pass --overwrite after --"
        )
    return True


def is_begun(config: Config) -> bool:
    """Whether the folder holds an unfinished run of just this configuration, which goes on.

    Raises:
        ValueError: it holds that of another.
    """
    path = config.out_dir / "config.json"
    if config.overwrite or not any((config.out_dir / "checkpoints").glob("step-*.ckpt")):
        return False
    try:
        begun_with = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); take another --out, or pass --overwrite after --"
        ) from error
    if other := config.differences(begun_with):
        raise ValueError(
            f"{path.parent} holds an unfinished run with other options ({'; '.join(other)}); take another --out, or"
            " pass --overwrite after --"
        )
    return True


def estimate(cells: Iterable[Cell], out: Path) -> dict[Path, float | None]:
    """Seconds that each cell may take, by results below ``out`` of the same method, data, sizes and device."""
    known: dict[tuple[Any, ...], list[float]] = {}
    lengths: dict[tuple[Any, ...], list[int]] = {}
    for path in sorted(out.rglob("result.json")):
        try:
            result = json.loads(path.read_text())
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
    """What the time of a step depends on most."""
    return tuple(options[name] for name in ("dataset", "method", "image_size", "base_channels", "device"))


def length_of(options: dict[str, Any]) -> tuple[Any, ...]:
    """What the number of steps depends on, where it is given in epochs."""
    return tuple(options[name] for name in ("dataset", "epochs", "iterations", "unlabeled_batch", "double_length"))
