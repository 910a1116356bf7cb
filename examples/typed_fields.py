"""Plain values, as JSON and checkpoints hold them, for the fields of a dataclass: by their types, never as words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def typed_fields(kind: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by field.

    Raises:
        ValueError: a field is unknown, missing or not of its type; the message names it.
    """
    if unknown := sorted(plain.keys() - {field.name for field in fields(kind)}, key=str):
        raise ValueError(f"{', '.join(map(str, unknown))}: no option of this version")
    for field in fields(kind):
        if field.default is MISSING and field.name not in plain:
            raise ValueError(f"{field.name}: missing")
    return known_fields(kind, plain)


def known_fields(kind: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of fields that there are; results of other versions may hold more of them, or fewer."""
    hints = get_type_hints(kind)
    return {name: typed(name, plain[name], hint) for name, hint in hints.items() if name in plain}


def typed(name: str, value: object, hint: Any) -> Any:
    """Return a value as an option of that type holds it."""
    accepted = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in accepted:
        if type(value) is kind or (get_origin(kind) is Literal and value in get_args(kind)):
            return value
    if Path in accepted and isinstance(value, str):
        return Path(value)
    if float in accepted and type(value) is int:
        return float(value)
    raise ValueError(f"{name}: got {value!r:.60}, expected {' or '.join(map(str, accepted))}")
