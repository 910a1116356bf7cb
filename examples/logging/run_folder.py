"""The folder of a run: who may write there, and whether it holds a run already."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from examples.config import Config
from examples.data import load
from examples.data.division import Division
from examples.engine.checkpoint import Checkpoints, atomic_write, make_folder, unwritable
from examples.json_files import read_json

REPLACE = "take another --out, or pass --overwrite (in a sweep after --)"


@contextmanager
def lock_run_dir(config: Config) -> Iterator[Path]:
    """Make the output folder and keep other runs out of it; the lock ends with the process, however that ends."""
    out = config.out_dir
    make_folder(out)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(f"out: another run is under way in {out}; wait for it or pass another --out") from None
    except OSError as error:
        raise unwritable(error, out) from error
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


def is_finished(config: Config) -> bool:
    """Return whether the folder holds the result of just this configuration, and is not to be overwritten."""
    path = config.out_dir / "result.json"
    if config.overwrite or not path.exists():
        return False
    options = options_in(path)
    if other := config.differences(options):
        raise ValueError(f"{path} was made with other options ({'; '.join(other)}); {REPLACE}")
    if config.root is not None and config.root.resolve() != Path(str(options.get("root"))).resolve():
        # The folder may have moved; that it is another one would be told by nothing else.
        now = Division.of(load(replace(config, device="cpu"))).summary()
        if now != read_json(path).get("division"):
            raise ValueError(f"{path} was made with other data (root {options.get('root')} there); {REPLACE}")
    return True


def is_begun(config: Config) -> bool:
    """Return whether the folder holds an unfinished run of just this configuration, which goes on."""
    if config.overwrite or not has_checkpoint(config.out_dir):
        return False
    if other := config.differences(options_in(config.out_dir / "config.json")):
        raise ValueError(f"{config.out_dir} holds an unfinished run with other options ({'; '.join(other)}); {REPLACE}")
    return True


def has_checkpoint(folder: Path) -> bool:
    """Return whether there is something that a run can go on from."""
    return any(path.is_file() for path in (folder / "checkpoints").glob("step-*.ckpt"))


def options_in(path: Path, advice: str = f"; {REPLACE}") -> dict[str, Any]:
    """Return the options that a run's config.json or result.json holds; errors end with the advice."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}){advice}") from error
    options = content.get("config", content) if isinstance(content, dict) else None
    if not isinstance(options, dict) or "dataset" not in options:
        raise ValueError(f"{path} does not say what a run was made with{advice}")
    return options


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, all of it or nothing, with None for NaN, which JSON does not know."""
    atomic_write(path, (json.dumps(without_nan(content), indent=2) + "\n").encode())


def without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
