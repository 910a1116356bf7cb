import json
from dataclasses import replace
from pathlib import Path

import pytest

from examples import sweep
from examples.config import Config
from examples.engine.loop import train
from examples.engine.signals import Interrupted
from examples.sweeps.plan import Cell, Sweep, estimate, plan
from tests.examples.tiny import signal_at_step

TINY = ("--image-size", "32", "--base-channels", "4", "--map-size", "8", "--iterations", "2")


def cells(out: Path, *, datasets=("phantom",), methods=("rpg",), labeled=(3,), splits=(0,), seeds=(0,), vary=(),
          options=TINY) -> list[Cell]:  # fmt: skip
    return plan(Sweep(datasets, methods, labeled, splits, seeds, vary, out), options)


def finish(config: Config, changes: dict | None = None) -> None:
    """Leaves a result as a run of the configuration would."""
    config.out_dir.mkdir(parents=True)
    result = {"method": config.method, "iterations": config.iterations, "seconds": 60.0, "config": config.plain()}
    (config.out_dir / "result.json").write_text(json.dumps(result | (changes or {})))


def test_cells_are_all_combinations(tmp_path):
    planned = cells(tmp_path, methods=("supervised", "rpg"), labeled=(3, 6), splits=(0, 1), seeds=(0, 1))
    assert len(planned) == 16
    assert len({cell.out for cell in planned}) == 16
    config = planned[-1].config
    assert (config.method, config.labeled, config.split, config.seed) == ("rpg", 6, 1, 1)
    assert (config.image_size, config.iterations) == (32, 2)
    assert config.out_dir == tmp_path / "phantom" / "rpg-n6-s1-seed1"


def test_varied_options_are_in_names_and_only_where_they_apply(tmp_path):
    vary = (("k", "0.25", "0.5"), ("--weighted", "true", "false"), ("pool-size", "1", "2"))
    planned = cells(tmp_path, methods=("supervised", "rpg"), vary=vary)
    assert len(planned) == 2 + 8
    assert planned[0].out.name == "supervised-n3-s0-seed0-pool_size=1"
    assert planned[-1].out.name == "rpg-n3-s0-seed0-k=0.5-weighted=false-pool_size=2"
    assert (planned[-1].config.k, planned[-1].config.weighted, planned[-1].config.pool_size) == (0.5, False, 2)


def test_options_that_only_some_cells_read_stop_nothing(tmp_path):
    read_by_retouch = ("--root", "data", "--vendor", "cirrus")
    assert len(cells(tmp_path, datasets=("phantom", "retouch"), options=(*TINY, *read_by_retouch))) == 2
    assert len(cells(tmp_path, methods=("supervised", "rpg"), options=(*TINY, "--threshold", "0.8", "--k", "1"))) == 2
    assert len(cells(tmp_path, vary=(("weighted", "true", "false"), ("lambda_u", "0.5", "1")))) == 4
    with pytest.raises(ValueError, match="vendor: given, but phantom or jsrt does not read it, only retouch"):
        cells(tmp_path, datasets=("phantom", "jsrt"), options=(*TINY, "--vendor", "cirrus"))


def test_all_invalid_cells_are_named(tmp_path):
    with pytest.raises(ValueError, match="nothing was started; 2 of 3 cells") as refused:
        cells(tmp_path, vary=(("map_size", "8", "64", "x"),), options=(*TINY[:4], *TINY[6:]))
    assert "map_size=64: map_size: got 64, expected at most --image-size 32" in str(refused.value)
    assert "map_size=x: " in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vary": (("magic", "1"),)}, "vary: got magic, expected one of .*base_channels"),
        ({"vary": (("k",),)}, "vary: got k without values"),
        ({"vary": (("k", "1"), ("k", "2"))}, "vary: got k twice"),
        ({"vary": (("seed", "1"),)}, "vary: got seed, expected one of"),
        ({"vary": (("k", "0.5"),), "options": (*TINY, "--k", "0.2")}, "k: given after -- although"),
        ({"vary": (("weighted", "true"),), "options": (*TINY, "--no-weighted")}, "weighted: given after --"),
        ({"options": (*TINY, "--split=3")}, "split: given after --"),
        ({"options": ("--magic", "3")}, "Unrecognized options: --magic"),
    ],
)
def test_bad_options_are_refused_before_anything_starts(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        cells(tmp_path, **changes)


def test_finished_cells_are_known_by_their_configuration(tmp_path):
    first, second = cells(tmp_path, splits=(0, 1))
    finish(replace(first.config, device="cuda"))  # elsewhere, but the same run
    assert [cell.finished for cell in cells(tmp_path, splits=(0, 1))] == [True, False]
    finish(replace(second.config, iterations=3))
    with pytest.raises(ValueError, match=r"rpg-n3-s1-seed0: .*other options \(iterations 3 there, 2 now\)"):
        cells(tmp_path, splits=(0, 1))
    assert not any(cell.finished for cell in cells(tmp_path, splits=(0, 1), options=(*TINY, "--overwrite")))


def test_results_from_before_an_option_count_with_the_datasets_own_default(tmp_path):
    options = tuple(word for word in TINY if word not in ("--iterations", "2"))
    sets = ("phantom", "retouch")
    before = cells(tmp_path, datasets=sets, options=options)
    assert [cell.config.unlabeled_batch for cell in before] == [2, 5]
    for cell in before:
        old = {name: value for name, value in cell.config.plain().items()
               if name not in ("iterations", "unlabeled_batch", "vendor", "retina")}  # fmt: skip
        finish(cell.config, {"config": old | {"a_deleted_option": 3}})
    assert all(cell.finished for cell in cells(tmp_path, datasets=sets, options=options))
    with pytest.raises(ValueError, match="unlabeled_batch 5 there, 2 now"):
        cells(tmp_path, datasets=("retouch",), options=(*options, "--unlabeled-batch", "2"))


def test_results_that_do_not_tell_their_configuration_are_not_taken_for_finished(tmp_path):
    (cell,) = cells(tmp_path)
    finish(cell.config, {"config": {}})
    with pytest.raises(ValueError, match="does not say what a run was made with"):
        cells(tmp_path)
    (cell.out / "result.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        cells(tmp_path)


def test_estimate_is_by_results_of_the_same_kind(tmp_path):
    (first,) = cells(tmp_path)
    finish(replace(first.config, iterations=2))  # 30 s a step
    planned = cells(tmp_path, methods=("rpg", "supervised"), splits=(1,), options=(*TINY[:-1], "10"))
    seconds = estimate(planned, tmp_path)
    assert list(seconds.values()) == [300, None]


def test_dry_run_shows_the_plan_and_starts_nothing(tmp_path, command):
    (first,) = cells(tmp_path)
    finish(first.config)
    words = ("--datasets", "phantom", "--methods", "rpg", "--splits", 0, 1, 2, "--out", tmp_path, "--dry-run")
    status, shown, _ = command(sweep.main, *words, "--", *TINY)
    assert status == 0
    assert "phantom/rpg-n3-s0-seed0: finished" in shown
    assert "phantom/rpg-n3-s1-seed0: to run, about 60 s" in shown
    assert "3 cells, 2 to run" in shown
    assert "time: about 60 s 2 at a time" in shown
    assert [path.name for path in (tmp_path / "phantom").iterdir()] == ["rpg-n3-s0-seed0"]


def test_dry_run_says_so_where_no_result_tells_the_time(tmp_path, command):
    words = ("--datasets", "phantom", "--methods", "rpg", "--out", tmp_path / "new", "--dry-run")
    status, shown, _ = command(sweep.main, *words, "--", *TINY)
    assert status == 0
    assert "phantom/rpg-n3-s0-seed0: to run, for a time that is not known yet\n1 cells, 1 to run\n" in shown
    assert f"time: not known before one of them is finished below {tmp_path / 'new'}" in shown
    assert "unknown" not in shown


def test_a_folder_named_like_a_checkpoint_is_no_run_that_has_begun(tmp_path):
    (cell,) = cells(tmp_path)
    (cell.out / "checkpoints" / "step-00000001.ckpt").mkdir(parents=True)
    assert [cell.begun for cell in cells(tmp_path)] == [False]


@pytest.mark.parametrize("content", ["{}", "7", "[]"])
def test_an_unfinished_run_that_does_not_tell_its_options_is_refused(tmp_path, content):
    (cell,) = cells(tmp_path)
    (cell.out / "checkpoints").mkdir(parents=True)
    (cell.out / "checkpoints" / "step-00000001.ckpt").write_bytes(b"")
    (cell.out / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json does not say what a run was made with; take another --out"):
        cells(tmp_path)


def test_invalid_cells_stop_the_command(tmp_path, command):
    words = ("--datasets", "phantom", "--methods", "rpg", "--out", tmp_path)
    assert "expected a multiple of 16" in command(sweep.main, *words, "--", "--image-size", "30").status
    assert not list(tmp_path.iterdir())


def test_a_failing_cell_is_named_and_an_unfinished_one_goes_on(tmp_path, monkeypatch, command):
    pytest.importorskip("submitit")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the sweep sets it: put it back afterwards
    runs, options = tmp_path / "runs", (*TINY, "--root", str(tmp_path / "nowhere"))  # which phantom does not need
    both = {"datasets": ("jsrt", "phantom"), "methods": ("supervised",)}
    cell = cells(runs, **both, options=options)[1]
    with signal_at_step(1), pytest.raises(Interrupted, match="after step 1 of 2"):
        train(cell.config)
    assert [cell.begun for cell in cells(runs, **both, options=options)] == [False, True]
    with pytest.raises(ValueError, match=r"unfinished run with other options \(iterations 2 there, 3 now\)"):
        cells(runs, methods=("supervised",), options=(*TINY[:-1], "3"))

    words = ("--datasets", "jsrt", "phantom", "--methods", "supervised", "--out", runs)
    assert "less what is done of it" in command(sweep.main, *words, "--dry-run", "--", *options).out
    status, shown, _ = command(sweep.main, *words, "--", *options)
    assert status == 1
    assert "FAILED jsrt/supervised-n3-s0-seed0: " in shown
    assert str(tmp_path / "nowhere") in shown
    log = Path(shown.partition("; log: ")[2].splitlines()[0])
    assert "Traceback" in log.read_text()
    (log,) = (cell.out / "log").glob("*_log.out")
    assert "going on after step 1 of 2" in log.read_text()
    result = json.loads((cell.out / "result.json").read_text())
    assert result["threads"] == 1
    assert f"mIoU {result['miou']:.3f}" in shown

    # Once more: what is finished is skipped.
    words = ("--datasets", "phantom", "--methods", "supervised", "--out", runs, "--", *TINY)
    assert "1 cells, 1 of them finished" in command(sweep.main, *words).out


def test_missing_submitit_is_explained(tmp_path, monkeypatch, command):
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: None)
    words = ("--datasets", "phantom", "--methods", "rpg", "--out", tmp_path, "--", *TINY)
    assert "pip install 'rpg-loss[examples]'" in command(sweep.main, *words).status
