"""Checkpoints that a run goes on from after whatever ended it, and files of networks in the same format.

A file is one line of text with the SHA-256 of all that follows it, and then what ``torch.save`` wrote: one file, so
that content and checksum cannot go out of step. It is written aside, flushed to the disk and renamed. Of those to go on
from the last two are kept: should the newer one be damaged, the run goes on from the other.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

HEADER = b"rpg_loss checkpoint 1, sha256 "
HEADER_BYTES = len(HEADER) + 64 + 1  # with the digest and the end of the line


class Checkpoints:
    """The checkpoints of one run: step-00001234.ckpt in a folder that is made when the first is saved.

    ``say`` is called with a line for each that is damaged.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.say = say
        self.latest: Path | None = None  # the newest that is known to be whole

    def files(self, pattern: str = "step-*.ckpt") -> list[Path]:
        """Return all of them, the newest first; a folder of such a name is none."""
        return sorted((path for path in self.folder.glob(pattern) if path.is_file()), reverse=True)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the checkpoint of a step, and then removes all but it and the one before.

        Raises:
            OSError: it could not be written; those before are as they were.
        """
        path = self.folder / f"step-{step:08d}.ckpt"
        try:
            self.folder.mkdir(exist_ok=True)
            atomic_save(path, state)
        except OSError as error:
            left = f"{self.latest.name} is whole" if self.latest else "there is none before it"
            raise OSError(
                error.errno, f"{error.strerror}: the checkpoint was not written; {left}", str(path)
            ) from error
        for other in set(self.files("step-*")) - {path, self.latest}:
            other.unlink()
        self.latest = path

    def load(self) -> dict[str, Any] | None:
        """Return the newest whole checkpoint, on the CPU; None if there has never been one.

        Raises:
            ValueError: there are checkpoints, and all are damaged.
        """
        faults = []
        for path in self.files():
            try:
                state = load_verified(path)
            except (OSError, ValueError) as error:
                faults.append(f"{path} is damaged: {error}")
                continue
            for fault in faults:
                self.say(f"{fault}; going on from {path.name}")
            self.latest = path
            return state
        if faults:
            raise ValueError("; ".join(faults) + "; there is no other: pass --overwrite to start again")
        return None

    def remove(self) -> None:
        """Remove all checkpoints, and what is left of one that was being written."""
        for path in self.files("step-*"):
            path.unlink()
        with suppress(OSError):  # not there, or the user keeps something in it
            self.folder.rmdir()


def atomic_save(path: Path, content: dict[str, Any]) -> None:
    """Write with ``torch.save``, its checksum before it, aside and renamed."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    written = buffer.getbuffer()
    atomic_write(path, checksum_line(written), written)


def load_verified(path: Path) -> dict[str, Any]:
    """Read what :func:`atomic_save` wrote; run no code that the file may hold.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not what was written; the message says in what way.
    """
    with path.open("rb") as file:
        line = file.read(HEADER_BYTES)
        content = file.read()
    if not line.startswith(HEADER):
        raise ValueError("it does not begin with a checksum")
    if line != checksum_line(content):
        raise ValueError("its checksum does not fit its content")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: torch.load refuses what is neither a tensor nor plain
        raise ValueError(f"torch.load refuses it ({type(error).__name__})") from error
    return state


def checksum_line(content: bytes | memoryview) -> bytes:
    return HEADER + hashlib.sha256(content).hexdigest().encode() + b"\n"


def atomic_write(path: Path, *parts: bytes | memoryview, flush: bool = True) -> None:
    """Write a file aside, flush it to the disk and rename it: the path holds the old content or the new.

    Without ``flush`` that does not hold through a power cut, and nothing waits for the disk.

    Raises:
        OSError: it could not be written; the old content is as it was.
    """
    # Of 255 bytes at most, and one for each path: long names may begin alike.
    of_path = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
    aside = path.with_name(f"{path.name[:60]}-{of_path}.tmp")
    try:
        with aside.open("wb") as file:
            file.writelines(parts)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        os.replace(aside, path)
        if flush:
            flush_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def make_folder(folder: Path, option: str = "out") -> None:
    """Make a folder to write to, and those above it; an error names the option that another one is to be given by."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(error, folder, option) from error


def unwritable(error: OSError, path: Path, option: str = "out") -> OSError:
    """Return what to raise instead of an error, which does not say what to do."""
    return OSError(error.errno, f"{error.strerror}: cannot write there; pass another --{option}", str(path))


def flush_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
