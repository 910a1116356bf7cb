"""JSON from files that may hold anything: what cannot be read is a ValueError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def parse_json(text: str) -> Any:
    """Return what the text says.

    Raises:
        ValueError: it is not JSON, or nested so deeply that Python cannot read it.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
    """Return what a file of UTF-8 says, with a byte order mark before it or without.

    Raises:
        OSError: it cannot be read.
        ValueError: as :func:`parse_json`.
    """
    return parse_json(path.read_text(encoding="utf-8-sig"))
