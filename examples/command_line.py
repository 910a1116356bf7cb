"""The command line of a run: all options of its configuration by group, and two about other runs."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import tyro

from examples.config import (
    ABLATIONS,
    DATASET_FLAGS,
    AblationOptions,
    Config,
    DataOptions,
    DeviceOptions,
    MainOptions,
    MethodOptions,
    OutputOptions,
    ScheduleOptions,
    applies_to,
)
from examples.logging.run_folder import options_in
from examples.typed_fields import typed_fields

FILES_ARE_WHOLE = "; every file that was written is whole, and --overwrite begins again"


@contextmanager
def ending_in_words(when_interrupted: str = "") -> Iterator[None]:
    """End the process with the message of an error, which says what to do; a traceback would bury it.

    All that a user can cause is one of these, wherever it is raised.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # names of files may be no text
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"interrupted{when_interrupted}", file=sys.stderr)
        sys.exit(130)


def end_naming(faults: Sequence[str]) -> NoReturn:
    """End the process, with status 1 if there are faults, which are named."""
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


@dataclass(frozen=True)
class FolderOptions(OutputOptions):
    """The run's folder, and other runs."""

    config: Path | None = None
    """A run's config.json: its options are the defaults, so that it repeats the run (into another --out)."""

    resume: bool = False
    """Fail if there is no run yet; without it, the same command goes on or else begins."""


@dataclass(frozen=True)
class Command:
    """Train a UNet with few labeled and many unlabeled images; the defaults are the paper's."""

    main: MainOptions
    data: DataOptions = field(default_factory=DataOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    method: MethodOptions = field(default_factory=MethodOptions)
    ablation: AblationOptions = field(default_factory=AblationOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)
    output: FolderOptions = field(default_factory=FolderOptions)


def parse_command(
    words: Sequence[str] | None = None,
    *,
    description: str | None = None,
    prog: str | None = None,
    datasets: Collection[str] = (),
) -> tuple[Config, bool]:
    """Read a command line, by default that of this process.

    Args:
        words: Of the command line.
        description: For --help.
        prog: Name of the command, for --help.
        datasets: All that the same options are for, of which one must read each; empty: only this command's.

    Returns:
        The configuration, and whether it has to be a run that goes on.

    Raises:
        SystemExit: an option is unknown or not of its type; tyro has said so.
    """
    words = sys.argv[1:] if words is None else words
    only_config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only_config.add_argument("--config", type=Path)
    path = only_config.parse_known_args(words)[0].config
    options: dict[str, Any] = {}
    if path is not None:
        options["default"] = read_command(path)
    command: Command = tyro.cli(
        Command, args=words, config=(tyro.conf.OmitArgPrefixes,), description=description, prog=prog, **options
    )
    groups = [getattr(command, group.name) for group in fields(command)]
    values = {option.name: getattr(group, option.name) for group in groups for option in fields(group)}
    del values["config"]
    resume = values.pop("resume")
    config = Config(**values)
    if resume and config.overwrite:
        raise ValueError("resume: --resume goes on with a run and --overwrite replaces it; leave one of them out")
    check_read(given_options(words), datasets or (config.dataset,))
    return config, resume


def read_command(path: Path) -> Command:
    """Return the options that a run's config.json or result.json holds, without those about other runs.

    They are taken by their types and never as words, of which one could be another option.
    """
    try:
        options = options_in(path, ", expected a run's config.json or result.json")
    except ValueError as error:
        raise ValueError(f"config: {error}") from error
    kept = {name: value for name, value in options.items() if name not in ("environment", "overwrite")}
    try:
        values = typed_fields(Config, kept)
    except ValueError as error:
        raise ValueError(f"config: {path} holds what is no option of a run ({error})") from error
    groups = get_type_hints(Command)
    return Command(
        **{
            name: group(**{option.name: values[option.name] for option in fields(group) if option.name in values})
            for name, group in groups.items()
        }
    )


def given_options(words: Sequence[str]) -> set[str]:
    """Return the names of the options that were typed."""
    flags = [word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")]
    return {flag.removeprefix("no-").replace("-", "_") for flag in flags}


def check_read(given: Collection[str], datasets: Collection[str]) -> None:
    """Refuse an option that none of the data sets reads.

    What one method reads and another does not is no error: see :func:`ignored_flags`.
    """
    for option, readers in DATASET_FLAGS.items():
        if option in given and not set(readers) & set(datasets):
            raise ValueError(
                f"{option}: given, but {' or '.join(datasets)} does not read it, only {', '.join(readers)}; leave"
                f" --{option.replace('_', '-')} out"
            )


def ignored_flags(config: Config, words: Sequence[str] | None = None) -> list[str]:
    """Return the options that were typed and do not apply to the method: a command may be for several methods."""
    given = given_options(sys.argv[1:] if words is None else words)
    # The log of every method's pseudo-labels is taken on the map.
    names = [name for name in ABLATIONS if name in given and name != "map_size" and not applies_to(config.method, name)]
    return ["--" + name.replace("_", "-") for name in names]
