"""The options of a run: all explained, none misunderstood, and all of a run's own file taken up again."""

import ast
import inspect
import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from examples.command_line import Command, ignored_flags, parse_command
from examples.config import Config
from examples.data import DATASETS
from examples.engine.distributed import own_device
from examples.train import main, train
from tests.examples.tiny import shrink, tiny

WHOLE = Path(__file__).parents[2]


def written(folder: Path, config: Config, **more) -> str:
    (folder / "config.json").write_text(json.dumps(config.plain() | more))
    return str(folder / "config.json")


def test_a_run_is_repeated_by_its_config(tmp_path, monkeypatch):
    shrink(monkeypatch.setattr)
    first = train(tiny(tmp_path / "first", method="rpg", iterations=3, k=1, weighted=False, map_size=None))
    for name in ("config.json", "result.json"):
        words = ["--config", str(tmp_path / "first" / name), "--out", str(tmp_path / name)]
        config, resume = parse_command(words)
        assert not resume
        assert config.plain() == first["config"] | {"out": str(tmp_path / name)}
        assert type(config.k) is int
        again = train(config)
        assert first["history"] == again["history"]
        assert first["iou_per_class"] == again["iou_per_class"]
    with pytest.raises(FileExistsError, match="--overwrite or another --out"):
        train(parse_command(["--config", str(tmp_path / "first" / "config.json")])[0])


def test_given_options_replace_those_of_the_file(tmp_path):
    path = written(tmp_path, tiny(tmp_path, seed=3, overwrite=True), environment={})
    config, _ = parse_command([f"--config={path}", "--seed", "4", "--map-size", "None"])
    assert config == replace(tiny(tmp_path), seed=4, map_size=None)  # nothing is overwritten unless asked for again


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no options"),
        ('{"seed": 1}', "holds no options"),
    ],
)
def test_files_that_are_no_configuration(content, message, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_command(["--config", str(tmp_path / "config.json")])
    with pytest.raises(ValueError, match="nowhere cannot be read"):
        parse_command(["--config", str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["phantom", "--iteration", "3"], "--iterations"),
        (["phantom", "--learnin-rate", "3"], "--learning-rate"),
        (["phantom", "--labeled", "three"], "INT"),
        (["fantom"], "phantom"),
    ],
)
def test_unknown_options_and_values_are_refused_with_a_suggestion(words, message, capsys):
    with pytest.raises(SystemExit):
        parse_command(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [({"itertions": 4}, "--iterations"), ({"image_size": 30}, "got 30"), ({"labeled": "three"}, "three")],
)
def test_bad_options_in_the_file_are_refused(more, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_command(["--config", written(tmp_path, tiny(tmp_path), **more)])
    said = capsys.readouterr().err
    assert next(iter(more)).replace("_", "-") in said.replace("_", "-")
    assert message in said


def test_contradictions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="iterations is 900 and decides alone"):
        parse_command(["phantom", "--iterations", "900", "--epochs=3"])
    path = written(tmp_path, tiny(tmp_path))
    with pytest.raises(ValueError, match="pass --iterations None"):
        parse_command(["--config", path, "--epochs", "3"])
    assert parse_command(["--config", path, "--epochs", "3", "--iterations", "None"])[0].epochs == 3
    with pytest.raises(ValueError, match="leave one of them out"):
        parse_command(["phantom", "--resume", "--overwrite"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("phantom --root data", "root: given, but phantom does not read it, only jsrt, retouch, folder; leave --root"),
        ("jsrt --vendor cirrus", "vendor: .* only retouch"),
        ("jsrt --retina=crop", "retina: .* only retouch"),
        ("jsrt --group-pattern a", "group_pattern: .* only folder"),
        ("retouch --skip-unreadable", "skip_unreadable: .* only jsrt, folder"),
        ("phantom --fine-labels 9", "fine_labels: .* only phantom_fine"),
        ("phantom --bank-age 3", "bank_age: .* pass --bank-mib"),
        ("phantom --no-weighted --normalize-by weights", "normalize_by: .* leave"),
    ],
)
def test_options_that_nothing_reads_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_command(words.split())


def test_options_that_something_reads_are_not_refused(tmp_path):
    """Neither those of a run's own file, which holds all options."""
    for words in (
        "retouch --root data --vendor cirrus --retina crop",
        "folder --root data --group-pattern a --skip-unreadable",
        "phantom_fine --fine-labels 9",
        "phantom --bank-mib 1 --bank-age 3",
        "phantom --no-weighted",
    ):
        parse_command(words.split())
    parse_command(["--config", written(tmp_path, tiny(tmp_path))])


def test_options_that_the_method_does_not_heed_are_told():
    """A command for several methods passes them to all."""
    options = "--threshold 0.8 --k 0.5 --map-size 16 --no-balanced-k --cutout=ignore"
    words = f"phantom --method rpg {options}".split()
    assert ignored_flags(parse_command(words)[0], words) == ["--threshold", "--cutout"]
    words = f"phantom --method supervised {options}".split()
    assert set(ignored_flags(parse_command(words)[0], words)) == {"--threshold", "--k", "--balanced-k", "--cutout"}


def test_what_a_method_decides_itself_is_said():
    words = [
        "phantom",
        "--method",
        "rpg_best",
        "--k",
        "0.7",
        "--no-average",
        "--map-size",
        "32",
        "--temperature",
        "0.5",
    ]
    config = parse_command(words)[0]
    assert (config.k, config.average, config.temperature) == (0.1, True, 0.5)
    assert ignored_flags(config, words) == ["--k", "--average"]


def test_devices_that_are_not_there_are_refused():
    assert own_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device: got gpu, expected cpu, cuda"):
        own_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: got cuda:1, but this PyTorch sees no GPU; pass --device cpu"):
            own_device("cuda:1")


def test_bad_options_are_one_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["examples.train", "phantom", "--resume", "--overwrite"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code.startswith("error: resume: ")


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit):
        parse_command(["--help"])
    shown = capsys.readouterr().out
    for source in (Config, Command):
        (definition,) = ast.parse(inspect.getsource(source)).body
        for option, text in pairwise(definition.body):
            if isinstance(option, ast.AnnAssign) and option.target.id == "dataset":
                words = re.sub(r"[\s│]+", " ", shown)
                assert all(f" {name}: " in words for name in DATASETS)
            elif isinstance(option, ast.AnnAssign):
                assert isinstance(text, ast.Expr), option.target.id
                assert len(text.value.value.split()) >= 4, option.target.id
                assert text.value.value.split()[0] in shown
                assert f"--{option.target.id.replace('_', '-')}" in shown


def test_the_environment_is_recorded(tmp_path, monkeypatch):
    shrink(monkeypatch.setattr)
    result = train(tiny(tmp_path / "run", iterations=1))
    environment = json.loads((tmp_path / "run" / "config.json").read_text())["environment"]
    assert environment == result["environment"]
    assert environment["python"] == sys.version.split()[0]
    assert environment["packages"].keys() >= {"torch", "numpy", "kornia"}
    assert environment["commit"] == result["commit"]
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=WHOLE, capture_output=True, text=True
    )
    if status.returncode == 0:
        assert environment["commit"].endswith("-dirty") == bool(status.stdout)
