"""The documentation: it builds without a warning, shows what the code and the results hold, and its examples run."""

from __future__ import annotations

import doctest
import html
import json
import re
import statistics
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import rpg_loss

EXTRA = "pip install 'rpg-loss[docs]'"
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
STUB = '''"""RPG in a loop of three lines.

    python -m examples.recipes.plain_pytorch
"""

fence = "```"
'''


@pytest.fixture(scope="module")
def generated():
    pytest.importorskip("griffe", reason=EXTRA)
    pytest.importorskip("matplotlib", reason=EXTRA)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "tools"))
        import generated

        yield generated


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages, built as ``make docs`` does."""
    pytest.importorskip("mkdocs", reason=EXTRA)
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*.html")}


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page))


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_examples_of_the_page_run(page):
    # A fence would be taken for what an example prints.
    code = re.sub(r"^ *```.*$", "", page.read_text(), flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), 0)
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0


def test_the_code_on_the_home_page_runs_as_it_stands():
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    scope: dict[str, object] = {}
    exec(block, scope)
    assert scope["loss"].isfinite()
    assert scope["net"][0].weight.grad.abs().sum() > 0


def test_results_begin_with_a_table_and_a_figure_and_fold_the_rest(site):
    for name in ("index", "acdc", "oct", "phantom"):
        page = site[f"results/{name}.html"]
        open_part = re.sub(r"<details\b.*?</details>", "", page, flags=re.DOTALL)
        before = open_part.partition("<h2")[0]
        assert before.count("<table") == before.count("<img alt") == 1, name
        rows = open_part.count("<tr")
        assert rows < 60, f"{name} shows {rows} rows unfolded"


def test_a_page_for_every_public_name(site):
    for name in rpg_loss.__all__:
        page = site[f"reference/{name}.html"]
        assert f'id="rpg_loss.{name}"' in page, name
        assert "Examples:" in page, name
        assert ">>>" in text_of(page), name
        assert f'href="{name}.html"' in site["reference/index.html"], name


def test_nothing_is_left_of_what_markdown_does_not_know(site):
    for name, page in site.items():
        if name.startswith("reference/"):
            assert not re.search(r":(func|class|meth):|\.\. math::|\\frac", text_of(page)), name
    assert "<math" in site["reference/entropy_weights.html"]


def test_no_page_needs_the_network(site):
    for name, page in site.items():
        loaded = re.findall(r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]*)"', page)
        assert not loaded, f"{name} loads {loaded}"


def test_results_are_those_of_the_files(site):
    files = ROOT / "benchmarks" / "results" / "jsrt"
    scores = [json.loads(path.read_text())["miou"] for path in files.glob("rpg_plus-n3-s?-seed0.json")]
    mean = f"{statistics.fmean(scores):.3f}".removeprefix("0")
    row = re.search(r"^rpg_plus\n(\S+) ", text_of(site["results/index.html"]), re.MULTILINE)
    assert row, "no row of rpg_plus"
    assert row[1] == mean
    shown = re.findall(r'src="\.\./(pictures/jsrt[^"]+)"', site["results/index.html"])
    assert shown


def test_measured_times_are_those_of_the_file(site):
    figures = json.loads((ROOT / "benchmarks" / "results" / "matching-cpu.json").read_text())
    ours = next(row for row in figures["rows"] if row["route"] == "chunked")
    page = text_of(site["performance.html"])
    assert f"\n{1e3 * statistics.median(ours['seconds']):.3g}\n" in page
    assert figures["environment"]["commit"] in page
    assert 'src="pictures/matching-cpu.png"' in site["performance.html"]


def test_options_are_all_there(site):
    from examples.config import Config

    page = text_of(site["trainer/options.html"])
    for field in fields(Config):
        flag = "DATASET" if field.name == "dataset" else f"--{field.name.replace('_', '-')}"
        assert re.search(rf"^{flag}(,|$)", page, re.MULTILINE), flag


def test_a_page_for_every_recipe(generated, tmp_path):
    (tmp_path / "plain_pytorch.py").write_text(STUB)
    (tmp_path / "__init__.py").write_text("")
    pages = generated.recipe_pages(tmp_path)
    assert list(pages) == ["recipes/plain_pytorch.md"]
    hidden, title, opening, call, code = pages["recipes/plain_pytorch.md"].split("\n\n", 4)
    assert hidden == "---\nhide: [toc]\n---"
    assert title == "# Plain PyTorch"
    assert opening == "RPG in a loop of three lines."
    assert call == "    python -m examples.recipes.plain_pytorch"
    assert code == f'````python title="examples/recipes/plain_pytorch.py"\n{STUB}````\n'
    assert generated.recipe_list(tmp_path) == "- [Plain PyTorch](plain_pytorch.md): RPG in a loop of three lines."


def test_no_recipe_is_no_error(generated, tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        assert generated.recipe_pages(folder) == {}
        assert "no recipe" in generated.recipe_list(folder)
