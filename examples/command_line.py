"""The command line of a run: all options of its configuration, and two about other runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tyro

from examples.config import Config


@dataclass(frozen=True)
class Command(Config):
    """Train a UNet with few labelled and many unlabelled images; the defaults are the paper's."""

    config: Path | None = None
    """A run's config.json: its options are the defaults, so that it repeats the run (into another --out)."""

    resume: bool = False
    """Fail if there is no unfinished run to go on with; without it, the same command goes on or else begins."""


def parse_command(
    words: Sequence[str] | None = None, *, description: str | None = None, prog: str | None = None
) -> tuple[Config, bool]:
    """Reads a command line, by default that of this process.

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
    check_contradictions(command, words)
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


def check_contradictions(command: Command, words: Sequence[str]) -> None:
    """Refuses options that cannot both be meant; what one method heeds and another does not is no contradiction."""
    if command.iterations is not None and any(word.partition("=")[0] == "--epochs" for word in words):
        raise ValueError(
            f"epochs: given, but iterations is {command.iterations} and decides alone; leave --epochs out, or pass"
            " --iterations None"
        )
    if command.resume and command.overwrite:
        raise ValueError("resume: --resume goes on with a run and --overwrite replaces it; leave one of them out")
