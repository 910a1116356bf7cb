import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest

from examples.data.phantoms import chest
from examples.engine import distributed


@pytest.fixture(scope="session", autouse=True)
def _on_the_cpu():
    """What is compared to the last bit, or with tensors of the test's own, is computed on the CPU.

    Nothing waits for the disk, and what is drawn is drawn once.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed, "default_device", lambda: "cpu")
        patched.setattr(os, "fsync", lambda descriptor: None)
        patched.setattr(chest, "draw_phantom", cache(chest.draw_phantom))
        yield


@pytest.fixture(scope="module")
def shrunk():
    """Runs of the module are tiny; what it makes once asks for this first."""
    from tests.examples.tiny import shrink

    with pytest.MonkeyPatch.context() as patched:
        shrink(patched.setattr)
        yield


class Ended(NamedTuple):
    """Exit status, or the message in its place, and what was printed to stdout and stderr."""

    status: int | str
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., Ended]:
    """Run the ``main`` of a command with words, in this process."""

    def run(main: Callable[[], Any], *words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
        return Ended(status, *capsys.readouterr())

    return run
