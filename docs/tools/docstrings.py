"""What Markdown does not know of our docstrings: Sphinx's roles and formulas, and a section named ``Example``."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import griffe
from latex2mathml.converter import convert

import rpg_loss

ROLE = re.compile(r":(?:class|func|meth):`([\w.]+)`")
MATH = re.compile(r"^\.\. math::(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **kwargs: Any) -> None:
        if isinstance(obj, griffe.Object) and obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value, obj)


def to_markdown(text: str, obj: griffe.Object) -> str:
    """The docstring of an object with links, MathML and ``Examples:``."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        if name.partition(".")[0] in rpg_loss.__all__:
            place = "rpg_loss"
        else:
            place = obj.parent.path if obj.parent and name in obj.parent.members else obj.module.path
        return f"[`{name}`][{place}.{name}]"

    def formula(match: re.Match[str]) -> str:
        return f'<div class="formula">{convert(dedent(match[1]).strip(), display="block")}</div>'

    return EXAMPLE.sub("Examples:", MATH.sub(formula, ROLE.sub(link, text)))
