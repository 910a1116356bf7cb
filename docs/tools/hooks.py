"""What MkDocs builds besides the pages that are written: pages and pictures from outside docs/, and blocks of pages.

A line ``*Built by `make docs`: name*`` or ``*Built by `make docs`: name argument*`` of a page becomes what the function
of that name in BLOCKS returns. Readers of the bare file are so told what they do not see.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # this checkout, wherever another one is installed

from generated import BLOCKS, pages, pictures, recipe_pages, reference_pages  # noqa: E402

LINE = re.compile(r"^\*Built by `make docs`: (\w+)(?: (.+))?\*$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> None:
    made = {"Recipes": recipe_pages(), "Reference": reference_pages()}
    for section in config.nav or []:
        for title in made.keys() & (section.keys() if isinstance(section, dict) else ()):
            section[title] += list(made[title])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for uri, content in pages().items():
        files.append(File.generated(config, uri, content=content))
    for uri, picture in pictures().items():
        files.append(File.generated(config, uri, content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    def made(match: re.Match[str]) -> str:
        name, argument = match.groups()
        try:
            return BLOCKS[name](*([argument] if argument else []))
        except (KeyError, TypeError, OSError, ValueError) as error:
            raise PluginError(f"{page.file.src_uri}: {match[0]}: {error!r}") from error

    return LINE.sub(made, markdown)
