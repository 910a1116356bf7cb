"""Pages, blocks of pages and pictures made of the code, its docstrings and what was measured."""

from __future__ import annotations

import ast
import functools
import json
import re
import statistics
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import griffe
import matplotlib.pyplot as plt

import rpg_loss
from benchmarks.measure import conditions
from benchmarks.plots import mebibytes, milliseconds, number, sizes
from examples.command_line import Command
from examples.config import DATASET_HELP
from examples.reporting import label_studies as studied
from examples.reporting import plotting, report, tables
from examples.reporting.results import Run, Section, read_results, sections

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RECIPES = ROOT / "examples" / "recipes"
RESULTS = ROOT / "benchmarks" / "results"

SPELLINGS = {
    "3d": "3-D", "ddp": "DDP", "huggingface": "Hugging Face", "monai": "MONAI", "pytorch": "PyTorch", "unet": "UNet",
}  # fmt: skip


def pages() -> dict[str, str]:
    """The Markdown of every page that is made as a whole, by its place below docs/."""
    return reference_pages() | recipe_pages()


def pictures() -> dict[str, bytes]:
    """Every picture that a page shows, by its place below docs/."""
    found = (RESULTS / "plots").glob("*.png")
    drawn = {name: content for folder in shown("results") for name, content in drawn_report(folder).pictures.items()}
    drawn |= {f"reliability-{folder}.png": drawn_reliability(folder) for folder in shown("label_studies")}
    return {f"pictures/{path.name}": path.read_bytes() for path in found} | {
        f"pictures/{name}": content for name, content in drawn.items() if content
    }


def reference_pages() -> dict[str, str]:
    """A page per public name."""
    names = sorted(rpg_loss.__all__, key=str.lower)
    return {f"reference/{name}.md": reference_page(name) for name in names}


def reference_page(name: str) -> str:
    return f"---\ntitle: {name}\nhide: [toc]\n---\n\n::: rpg_loss.{name}\n"


def reference_list() -> str:
    """Public names with the first sentence of what they are."""
    sentences = {name: (getattr(rpg_loss, name).__doc__ or "").partition("\n")[0] for name in rpg_loss.__all__}
    return "\n".join(f"- [`{name}`]({name}.md): {sentences[name]}" for name in sorted(sentences, key=str.lower))


def recipe_pages(folder: Path = RECIPES) -> dict[str, str]:
    """A page per file of the folder: its docstring, then the file."""
    return {f"recipes/{path.stem}.md": recipe_page(path) for path in recipes(folder)}


def recipes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))


def recipe_page(path: Path) -> str:
    code = path.read_text()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    place = f"examples/recipes/{path.name}"
    heading = f"---\nhide: [toc]\n---\n\n# {recipe_title(path.stem)}"
    return f'{heading}\n\n{opening(code)}\n\n{fence}python title="{place}"\n{code.rstrip()}\n{fence}\n'


def opening(code: str) -> str:
    """The docstring of a module, its indented blocks left as they are."""
    return (ast.get_docstring(ast.parse(code), clean=False) or "").strip()


def recipe_title(stem: str) -> str:
    words = " ".join(SPELLINGS.get(word, word) for word in stem.split("_"))
    return words[0].upper() + words[1:]


def recipe_list(folder: Path = RECIPES) -> str:
    """The recipes with the first line of what they say."""
    lines = []
    for path in recipes(folder):
        first = opening(path.read_text()).partition("\n")[0]
        lines.append(f"- [{recipe_title(path.stem)}]({path.stem}.md): {first}")
    return "\n".join(lines) or "There is no recipe in this checkout."


def options() -> str:
    """Every option of the trainer with its values, default and help, by the groups that --help shows."""
    modules = [griffe.load(f"examples.{name}", search_paths=[ROOT]) for name in ("config", "command_line")]
    classes = [member for module in modules for member in module.members.values() if member.kind is griffe.Kind.CLASS]
    documented = {
        name: member for group in classes if group.name != "Command" for name, member in group.members.items()
    }
    rows = []
    for title, group in typing.get_type_hints(Command).items():
        hints = typing.get_type_hints(group)
        rows.append([f"**{title}**", "", "", group.__doc__])
        for field in fields(group):
            docstring = documented[field.name].docstring
            help_text = docstring.value if docstring else {"dataset": DATASET_HELP}[field.name]
            flag = field.name.upper() if field.default is MISSING else f"--{field.name.replace('_', '-')}"
            flags = [flag, flag.replace("--", "--no-", 1)] if hints[field.name] is bool else [flag]
            default = "" if field.default is MISSING else f"`{plain(field.default)}`"
            names = ", ".join(f"`{flag}`" for flag in flags)
            rows.append(
                [names, values(hints[field.name]), default, re.sub(r"(?<![\w`])(--[a-z-]+)", r"`\1`", help_text)]
            )
    header, *body = tables.markdown(["option", "values", "default", "what it is"], rows).split("\n")
    return "\n".join([header, "|---|---|---|---|", *body[1:]])


def values(hint: Any) -> str:
    """A type as what may be typed on the command line."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(hint))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(values(kind) for kind in typing.get_args(hint))
    words = {bool: "flag", int: "integer", float: "number", str: "text", Path: "path", type(None): "`None`"}
    return words.get(hint, f"`{hint}`")


def plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measured(mode: str) -> str:
    """The tables of all files of benchmarks.matching in a mode."""
    return "\n\n".join(matching_table(figures) for figures in benchmarks("matching") if figures["mode"] == mode)


def matching_table(figures: dict[str, Any]) -> str:
    rows = []
    for row in figures["rows"]:
        caption = row["caption"]
        if row["problem"]["sets"] != figures["problem"]["sets"]:
            caption += f", {row['problem']['sets']} label sets"
        time, memory = milliseconds(row), mebibytes(row)
        rows.append([caption, *(number(value) if value else "not measured" for value in (time, memory))])
    caption = f"*{sizes(figures['problem'])}; `{command(figures)}`: {conditions(figures['environment'])}.*"
    return f"{tables.markdown(['route', 'median ms', 'peak extra MiB'], rows)}\n\n{caption}"


def training_step() -> str:
    """The tables of all files of benchmarks.training_step."""
    parts = []
    for figures in benchmarks("training_step"):
        problem = figures["problem"]
        rows = [
            [row["name"], number(1e3 * statistics.median(row["step"])) if row["step"] else "not measured"]
            for row in figures["rows"]
        ]
        parts.append(
            f"{tables.markdown(['pseudo-labels by', 'median ms a step'], rows)}\n\n*{problem['size']} px, UNet of "
            f"{problem['base_channels']} channels, {problem['unlabeled']} unlabeled and {problem['pool']} labeled "
            f"images, map {problem['map_size']}, k {tables.percent(problem['k'])}; `{command(figures)}`: "
            f"{conditions(figures['environment'])}.*"
        )
    return "\n\n".join(parts)


def plots(mode: str) -> str:
    """The pictures of benchmarks.matching in a mode, which say themselves what they were measured on."""
    parts = []
    for path in sorted(RESULTS.glob("*.json")):
        figures = json.loads(path.read_text())
        if figures.get("mode") == mode and (RESULTS / "plots" / f"{path.stem}.png").exists():
            told = f"{command(figures)}, {conditions(figures['environment'])}"
            parts.append(f"![{told}](pictures/{path.stem}.png)")
    return "\n\n".join(parts)


def benchmarks(name: str) -> Iterator[dict[str, Any]]:
    for path in sorted(RESULTS.glob("*.json")):
        figures = json.loads(path.read_text())
        if figures.get("benchmark") == name:
            yield figures


def command(figures: dict[str, Any]) -> str:
    """How it was called, but for where it wrote the file."""
    return re.sub(r" --json \S+", "", figures["environment"]["command"])


def legend() -> str:
    return tables.LEGEND


def shown(block: str) -> set[str]:
    """The folders of benchmarks/results of which a page has such a block."""
    marker = re.compile(rf"^\*Built by `make docs`: {block} (\w+)\*$", re.MULTILINE)
    return {name for page in DOCS.rglob("*.md") for name in marker.findall(page.read_text())}


def results(folder: str) -> str:
    """The sections that examples.report makes of a folder of benchmarks/results, and the list of its runs."""
    runs, blocks, _ = drawn_report(folder)
    text = [folded(report.heading(section), body) for section, body in blocks]
    return placed("\n\n".join([*text, folded("All runs", [tables.runs_table(runs)])]))


def label_studies(folder: str) -> str:
    """What examples.report makes of the label studies in a folder of benchmarks/results."""
    found = studied.read_label_studies([RESULTS / folder])
    tables_ = folded("All networks", [studied.CAPTION, *(studied.label_study_table(content) for _, content in found)])
    if not drawn_reliability(folder):
        return tables_
    return f"![{studied.RELIABILITY}](../pictures/reliability-{folder}.png)\n\n*{studied.RELIABILITY}.*\n\n{tables_}"


@functools.cache
def drawn_reliability(folder: str) -> bytes:
    """The picture of the label studies in a folder, empty if they have none."""
    contents = [content for _, content in studied.read_label_studies([RESULTS / folder])]
    with TemporaryDirectory() as scratch, plt.rc_context(plotting.LOOK):
        path = Path(scratch) / "reliability.png"
        return path.read_bytes() if studied.draw_reliability(contents, path) else b""


class Drawn(NamedTuple):
    """A folder of benchmarks/results: its runs, every section with its blocks, and the pictures in them by name."""

    runs: list[Run]
    sections: list[tuple[Section, list[str]]]
    pictures: dict[str, bytes]


@functools.cache
def drawn_report(folder: str) -> Drawn:
    runs, warnings = read_results([RESULTS / folder])
    if warnings:
        raise ValueError("; ".join(warnings))
    blocks = []
    with TemporaryDirectory() as scratch:
        drawn: list[Path] = []
        for number_, section in enumerate(sections(runs), start=1):
            body, files = report.section_text(section, f"{folder}-{number_}-{section.dataset}", Path(scratch))
            blocks.append((section, body))
            drawn += files
        pictures = {path.name: path.read_bytes() for path in drawn}
    return Drawn(runs, blocks, pictures)


def headline(folder: str) -> str:
    """The first table and the first figure of the section with most runs, which come before what is said about them."""
    section, body = max(drawn_report(folder).sections, key=lambda found: len(found[0].runs))
    table = next(block for block in body if "\n|" in block)
    figure = [block for block in body if block.startswith("![")][:1]
    return placed("\n\n".join([f"*{report.heading(section)}.*", table, *figure]))


def folded(title: str, blocks: Iterable[str]) -> str:
    """Blocks behind a title that opens them."""
    return "\n\n".join([f'??? abstract "{title}"', *(textwrap.indent(block, "    ") for block in blocks)])


def placed(text: str) -> str:
    """Text with the pictures that it names where the documentation has them."""
    return re.sub(r"\]\(([^()/]+\.png)\)", r"](../pictures/\1)", text)


BLOCKS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        headline,
        label_studies,
        legend,
        measured,
        options,
        plots,
        recipe_list,
        reference_list,
        results,
        training_step,
    )
}
