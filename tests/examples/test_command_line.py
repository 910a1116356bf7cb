"""The options of a run: all explained, none misunderstood, and all of a run's own file taken up again."""

import ast
import inspect
import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.command_line import Command, FolderOptions, ignored_flags, parse_command
from examples.config import ABLATIONS, DATASET_FLAGS, RUN_ENV_FIELDS, Config, paper_schedule
from examples.data import DATASETS
from examples.engine import distributed
from examples.engine.distributed import own_device, resolve_device
from examples.engine.loop import train
from examples.methods import METHODS
from examples.train import main
from tests.examples.tiny import tiny

WHOLE = Path(__file__).parents[2]
DEFAULT_DEVICE = distributed.default_device  # before fixtures replace it


def written(folder: Path, config: Config, **more) -> str:
    (folder / "config.json").write_text(json.dumps(config.plain() | more))
    return str(folder / "config.json")


def test_a_run_is_repeated_by_its_config(shrunk, tmp_path):
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
        ("[]", "does not say what a run was made with, expected"),
        ("7", "does not say what a run was made with, expected"),
        ("{}", "does not say what a run was made with, expected"),
        ('{"config": 7}', "does not say what a run was made with, expected"),
        ("[" * 100_000, "cannot be read .*nested too deeply"),
        ('{"dataset": ' + '{"a":' * 100_000, "cannot be read .*nested too deeply"),
        ('{"seed": 1}', "does not say what a run was made with, expected"),
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
        (["phantom", "--method", "magic"], "rpg_plus"),
    ],
)
def test_unknown_options_and_values_are_refused_with_a_suggestion(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_command(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"itertions": 4}, "itertions: no option of this version"),
        ({"labeled": "three"}, "labeled: got 'three', expected .*int"),
        ({"weighted": "--overwrite"}, "weighted: got '--overwrite', expected .*bool"),
        ({"weighted": "true"}, "weighted: got 'true', expected .*bool"),
        ({"labeled": "3 --overwrite"}, "labeled: got '3 --overwrite', expected .*int"),
        ({"method": "--overwrite"}, "method: got '--overwrite', expected"),
        ({"dataset": "--overwrite"}, "dataset: got '--overwrite', expected"),
        ({"dataset": ["phantom"]}, r"dataset: got \['phantom'\], expected"),
        ({"resume": True}, "resume: no option of this version"),
        ({"k": float("nan")}, "k: got nan, expected a share"),
        ({"iterations": 1e400}, "iterations: got inf, expected"),
        ({"seed": None}, "seed: got None, expected .*int"),
    ],
)
def test_bad_options_in_the_file_are_refused(more, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse_command(["--config", written(tmp_path, tiny(tmp_path), **more)])
    with pytest.raises(ValueError, match="image_size: got 30"):
        parse_command(["--config", written(tmp_path, tiny(tmp_path), image_size=30)])


@settings(max_examples=15)
@given(data=st.data())
def test_no_value_in_the_file_is_read_as_another_option(data, tmp_path_factory):
    """Whatever it holds, it is this option's value or refused, and nothing is ever replaced."""
    folder = tmp_path_factory.getbasetemp()
    plain = tiny(folder, device="cpu").plain()
    name = data.draw(st.sampled_from(sorted(plain)))
    words = st.sampled_from(["--overwrite", "--resume", "x --overwrite", "a\n--overwrite", "--out=/", "true", "1"])
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    )
    value = data.draw(anything)
    path = written(folder, tiny(folder, device="cpu"), **{name: value})
    try:
        config, resume = parse_command(["--config", path])
    except ValueError:
        return
    assert not resume
    assert not config.overwrite
    others = {option: config.plain()[option] for option in plain if option not in (name, "overwrite")}
    assert others == {option: plain[option] for option in others}
    if (name, value) == ("unlabeled_batch", None):
        value = paper_schedule("phantom").unlabeled_batch
    if name != "overwrite":
        assert config.plain()[name] == (str(Path(value)) if name in ("root", "out", "fuse") and value else value)


def test_contradictions_are_refused():
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
        "phantom --no-weighted",
    ):
        parse_command(words.split())
    parse_command(["--config", written(tmp_path, tiny(tmp_path))])


def test_options_that_do_not_apply_to_the_method_are_named():
    """A command for several methods passes them to all."""
    options = "--threshold 0.8 --k 0.5 --map-size 16 --no-weighted --cutout=ignore"
    words = f"phantom --method rpg {options}".split()
    assert ignored_flags(parse_command(words)[0], words) == ["--threshold", "--cutout"]
    words = f"phantom --method supervised {options}".split()
    assert set(ignored_flags(parse_command(words)[0], words)) == {"--threshold", "--k", "--weighted", "--cutout"}


def test_devices_that_are_not_there_are_refused():
    assert own_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device: got gpu, expected auto, cpu, cuda"):
        own_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: got cuda:1, but this PyTorch sees no GPU; pass --device cpu"):
            own_device("cuda:1")


def test_auto_is_a_gpu_if_there_is_one(monkeypatch):
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(distributed, "default_device", DEFAULT_DEVICE)
        assert resolve_device("auto") == device


def test_bad_options_are_one_line(command):
    assert command(main, "phantom", "--resume", "--overwrite").status.startswith("error: resume: ")


def test_every_option_is_explained_in_its_group(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = re.sub(r"[\s│]+", " ", command(main, "--help").out)
    groups = ["main", "data", "schedule", "method", "ablation", "device", "output"]
    assert [group.name for group in fields(Command)] == groups
    assert all(f" {group} options " in shown for group in groups)
    assert all(f" {name}: " in shown for name in DATASETS)
    explained = {"dataset"}
    for source in (*Config.__mro__[:-1], FolderOptions):
        (definition,) = ast.parse(inspect.getsource(source)).body
        for option, text in pairwise(definition.body):
            if isinstance(option, ast.AnnAssign) and option.target.id != "dataset":
                assert isinstance(text, ast.Expr), option.target.id
                assert len(text.value.value.split()) >= 4, option.target.id
                assert "\n" not in text.value.value, option.target.id
                assert text.value.value.split()[0] in shown
                assert f"--{option.target.id.replace('_', '-')}" in shown
                explained.add(option.target.id)
    assert explained == {field.name for field in fields(Config)} | {"config", "resume"}


def test_rules_name_options_and_methods_that_there_are():
    assert {*ABLATIONS, *DATASET_FLAGS, *RUN_ENV_FIELDS} <= {field.name for field in fields(Config)}
    assert set().union(*ABLATIONS.values()) == set(METHODS)
    assert set().union(*DATASET_FLAGS.values()) <= set(DATASETS)


def test_the_environment_is_recorded(shrunk, tmp_path):
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
