"""The command line of a run: all options of its configuration, and two about other runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tyro

from examples.config import OWN, Config
from examples.reporting.results import ABLATIONS, applies_to

# Options about data, and the data sets that read them.
DATASET_FLAGS = {
    "root": ("jsrt", "retouch", "folder"),
    "group_pattern": ("folder",),
    "vendor": ("retouch",),
    "retina": ("retouch",),
    "skip_unreadable": ("jsrt", "folder"),
    "fine_labels": ("phantom_fine",),
}


@dataclass(frozen=True)
class Command(Config):
    """Train a UNet with few labelled and many unlabelled images; the defaults are the paper's."""

    config: Path | None = None
    """A run's config.json: its options are the defaults, so that it repeats the run (into another --out)."""

    resume: bool = False
    """Fail if there is no unfinished run to go on with; without it, the same command goes on or else begins."""


def parse_command(
    words: Sequence[str] | None = None,
    *,
    description: str | None = None,
    prog: str | None = None,
    datasets: Collection[str] = (),
    varied: Collection[str] = (),
) -> tuple[Config, bool]:
    """Reads a command line, by default that of this process.

    Args:
        words: Of the command line.
        description: For --help.
        prog: ...
        datasets: All that the same options are for, of which one must read each; empty: only this command's.
        varied: Options whose values are tried against each other, so that some combinations may mean nothing.

    Returns:
        The configuration, and whether it has to be a run that goes on.

    Raises:
        SystemExit: an option is unknown or not of its type; tyro has said so.
        ValueError: a value is out of range, options contradict each other, or the file of --config cannot be used.
    """
    words = sys.argv[1:] if words is None else words
    only_config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only_config.add_argument("--config", type=Path)
    path = only_config.parse_known_args(words)[0].config
    options: dict[str, Any] = {}
    if path is not None:
        options["default"] = tyro.cli(Command, args=words_for(read_options(path)), prog=f"--config {path}")
    command = tyro.cli(Command, args=words, description=description, prog=prog, **options)
    check_contradictions(command, given_options(words), datasets or (command.dataset,), varied)
    return Config(**{field.name: getattr(command, field.name) for field in fields(Config)}), command.resume


def read_options(path: Path) -> dict[str, Any]:
    """The options that a run's config.json or result.json holds, without those about other runs.

    Raises:
        ValueError: it cannot be read, or holds no options.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"config: {path} cannot be read ({error}), expected a run's config.json") from error
    options = content.get("config", content) if isinstance(content, dict) else None
    if not isinstance(options, dict) or "dataset" not in options:
        raise ValueError(f"config: {path} holds no options of a run, expected a run's config.json or result.json")
    return {name: value for name, value in options.items() if name not in ("environment", "overwrite")}


def words_for(options: dict[str, Any]) -> list[str]:
    """Options as they would be typed."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if name == "dataset":
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag}={value}")
    return words


def given_options(words: Sequence[str]) -> set[str]:
    """The names of the options that were typed."""
    flags = [word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")]
    return {flag.removeprefix("no-").replace("-", "_") for flag in flags}


def check_contradictions(
    command: Command, given: Collection[str], datasets: Collection[str], varied: Collection[str]
) -> None:
    """Refuses options that cannot be meant: two that exclude each other, or one that nothing reads.

    What one method applies_to and another does not is no contradiction: see :func:`ignored_flags`.
    """
    if command.iterations is not None and "epochs" in given:
        raise ValueError(
            f"epochs: given, but iterations is {command.iterations} and decides alone; leave --epochs out, or pass"
            " --iterations None"
        )
    if command.resume and command.overwrite:
        raise ValueError("resume: --resume goes on with a run and --overwrite replaces it; leave one of them out")
    for option, readers in DATASET_FLAGS.items():
        if option in given and not set(readers) & set(datasets):
            raise ValueError(
                f"{option}: given, but {' or '.join(datasets)} does not read it, only {', '.join(readers)}; leave"
                f" --{option.replace('_', '-')} out"
            )
    if "bank_age" in given and not command.bank_mib and "bank_mib" not in varied:
        raise ValueError("bank_age: given, but there is no bank; pass --bank-mib 1, say, or leave --bank-age out")
    unweighted = not command.weighted and command.normalize_by == "weights"
    if unweighted and not {"weighted", "normalize_by"} & set(varied):
        raise ValueError(
            "normalize_by: weights, but with --no-weighted all are 1; leave --no-weighted or --normalize-by out"
        )


def ignored_flags(config: Config, words: Sequence[str] | None = None) -> list[str]:
    """The options that were typed although the method does not heed them: a command may be for several methods."""
    given = given_options(sys.argv[1:] if words is None else words)
    # The log of every method's pseudo-labels is taken on the map.
    names = [
        name
        for name in ABLATIONS
        if name in given
        and (name in OWN.get(config.method, ()) or (name != "map_size" and not applies_to(config.method, name)))
    ]
    return ["--" + name.replace("_", "-") for name in names]
