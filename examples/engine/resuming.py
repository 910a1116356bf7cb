"""What it takes to go on with a run: everything that has a state, and that it is the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from examples.config import Config
from examples.data.division import Division
from examples.logging.environment import flat


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class GlobalRandomness:
    """PyTorch's own random streams, from which the weights are drawn; a method or network might draw more."""

    def state_dict(self) -> dict[str, Any]:
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "gpus": gpus}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["cpu"])
        if len(state["gpus"]) == torch.cuda.device_count():  # elsewhere than before there is nothing to restore
            torch.cuda.set_rng_state_all(state["gpus"])


def check_same_run(options: Mapping[str, Any], config: Config) -> None:
    """Refuse to go on with a run of other options than those that it was started with."""
    if other := config.differences(options):
        raise ValueError(
            f"out: {config.out_dir} holds an unfinished run with other options ({'; '.join(other)}); pass those to go"
            " on with it, --overwrite to start again, or another --out"
        )


def restore(saved: dict[str, Any], parts: Mapping[str, Stateful], division: Division) -> None:
    """Bring all parts of a run to where they were when it was saved."""
    if other := division.differences(Division.from_plain(saved["division"])):
        raise ValueError(f"root: {other}; bring back what the run had, or pass --overwrite to start again")
    try:
        for name, stateful in parts.items():
            stateful.load_state_dict(saved["parts"][name])
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the checkpoint does not fit this code ({type(error).__name__}: {reason}); it was written by commit"
            f" {saved['environments'][-1]['commit']}: go on with that, or pass --overwrite to start again"
        ) from error


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what has changed between two environments, in words."""
    was = flat(before)
    return [f"{name} {was.get(name)} then, {value} now" for name, value in flat(now).items() if was.get(name) != value]
