"""The tutorials run as they are printed: the Python of one, the commands of the others at a tiny setting."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from examples.data.phantoms import chest
from tests.examples.tiny import encode_small

PAGES = Path(__file__).parents[2] / "docs" / "tutorials"
TINY = {
    "--iterations": "4", "--image-size": "32", "--base-channels": "2", "--map-size": "8", "--k": "0.5",
}  # fmt: skip
TO_TYPE = {"check", "evaluate", "folder", "predict", "report", "sweep", "train", "transfer"}


@pytest.fixture(autouse=True)
def _away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("TRAIN", 8), ("VALIDATION", 2), ("TEST", 2)):
        monkeypatch.setattr(chest, name, count)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)


def commands(page: str) -> list[list[str]]:
    lines = [line for block in blocks(page, "console") for line in block.replace("\\\n", "").splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("python -m ")]


def test_the_loop_runs_as_it_stands(capsys):
    scope: dict[str, object] = {}
    for block in blocks("own-loop.md", "python"):
        exec(block, scope)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert float(lines[-1].split()[1]) < float(lines[0].split()[1])
    assert Path("net.pt").is_file()


def test_the_story_of_a_folder(command, monkeypatch):
    """check, transfer, train, predict, evaluate and report, each with what the one before has left."""
    encode_small(monkeypatch.setattr)
    typed = commands("own-images.md")
    assert {module.rpartition(".")[2] for module, *_ in typed} == TO_TYPE - {"sweep"}
    for module, *words in typed:
        transfers = module == "examples.transfer" or "transfer" in words
        if transfers and importlib.util.find_spec("efficientnet_lite_pytorch") is None:
            continue
        words = [TINY.get(before, word) for before, word in zip(["", *words], words, strict=False)]
        if module.endswith("phantoms.folder"):
            words += ["--images", "20", "--masks", "16", "--size", "48"]
        assert command(importlib.import_module(module).main, *words).status == 0
    for file in ("contact.png", "runs/rpg_plus/report.html", "report/report.md", "predicted/masks/patient019.png"):
        assert Path(file).stat().st_size, file
    assert list(Path("runs/rpg_plus").glob("evaluation-*.csv"))


def test_the_commands_of_the_paper(command):
    """On drawn images, for JSRT cannot be passed on."""
    typed = [" ".join(words) for words in commands("paper.md")]
    assert [words.split()[0] for words in typed] == [
        "examples.data.check", "examples.train", "examples.sweep", "examples.report",
    ]  # fmt: skip
    small = " --image-size 32 --base-channels 2 --map-size 8 --k 0.5 --iterations 4"
    for words in typed[1:]:
        words = re.sub(r" (--root|--)(?= PATH)| PATH/TO/JSRT", "", words.replace("jsrt", "phantom"))
        words = words.replace("--labeled 3 6 12 24", "--labeled 3 6").replace("--splits 0 1 2 3 4", "--splits 0")
        if words.startswith("examples.train"):
            words += f" --out runs{small}"
        elif words.startswith("examples.sweep"):
            words = words.removesuffix(" --root").removesuffix(" --") + f" --{small}"
        module, *rest = shlex.split(words)
        assert command(importlib.import_module(module).main, *rest).status == 0
    assert Path("report/report.md").stat().st_size
