"""A run that was cut short, in whatever way, comes to the end that it would have had."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import examples.engine.run
import examples.engine.validation
import examples.train
from examples.config import Config
from examples.data import Dataset, load
from examples.data.loaders import PoolBatches, UnlabeledBatches
from examples.data.phantoms import chest as phantom
from examples.engine.checkpoint import Checkpoints, atomic_save, atomic_write, load_verified
from examples.engine.loop import train
from examples.engine.signals import Interrupted, Interrupts
from examples.logging.run_folder import is_finished
from examples.methods import METHODS
from examples.methods.supervised import Supervised
from examples.reporting.run_page import write_page
from examples.train import main
from tests.examples.files import save_image
from tests.examples.tiny import at_step, signal_at_step, small, tiny


@pytest.fixture(autouse=True)
def _ctrl_c_handled():
    """Shells start what they run in the background with SIGINT ignored, and it stays so for what that starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


pytestmark = pytest.mark.usefixtures("shrunk")


@pytest.fixture(scope="module")
def whole(shrunk, tmp_path_factory) -> Config:
    """An uninterrupted run, which no test changes."""
    config = tiny(tmp_path_factory.mktemp("whole") / "run")
    train(config)
    return config


@pytest.fixture(scope="module")
def data(shrunk) -> Dataset:
    return load(tiny(Path()))


@pytest.fixture
def kept(monkeypatch) -> None:
    """The last checkpoints stay after the end, to be compared: they hold everything."""
    monkeypatch.setattr(Checkpoints, "remove", lambda self: None)


def interrupt(config: Config, step: int) -> None:
    with signal_at_step(step), pytest.raises(Interrupted, match=f"after step {step} of"):
        train(config)


def checkpoints(config: Config) -> list[Path]:
    return Checkpoints(config.out_dir / "checkpoints").files()


def same(a, b) -> bool:
    """Whether two states agree to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def result(config: Config) -> dict:
    """What must not depend on whether a run was cut short; files may change while tests run."""
    content = json.loads((config.out_dir / "result.json").read_text())
    del content["seconds"], content["config"]["out"], content["commit"], content["environment"]["commit"]
    return content


def assert_same_end(config: Config, reference: Config) -> None:
    assert result(config) == result(reference)
    for name in ("best.pt", "last.pt"):
        a, b = (load_verified(each.out_dir / name) for each in (config, reference))
        assert same(a["model"], b["model"])
        assert (a["step"], a["validation"]) == (b["step"], b["validation"])
    lines, expected = ((each.out_dir / "metrics.jsonl").read_text() for each in (config, reference))
    assert lines == expected


# --- the same end


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_and_resumed_is_uninterrupted(method, tmp_path, kept):
    """Between two validations, in the middle of a pass and before a line of the log is due."""
    whole, cut = (tiny(tmp_path / name, method=method, iterations=10) for name in ("whole", "cut"))
    train(whole)
    interrupt(cut, 8)
    assert not (cut.out_dir / "result.json").exists()
    train(cut)
    assert_same_end(cut, whole)
    a, b = (load_verified(checkpoints(config)[0]) for config in (cut, whole))
    assert same(a["parts"], b["parts"])  # optimizer, average, heads, streams, meters
    assert same(a["best"]["model"], b["best"]["model"])


def test_interrupted_again_and_again(whole, tmp_path):
    cut = tiny(tmp_path / "cut")
    interrupt(cut, 3)
    interrupt(cut, 5)
    assert not (cut.out_dir / "best.pt").exists()  # there has been no validation
    interrupt(cut, 22)  # the last step: what is left is the test
    train(cut, resume=True)
    assert_same_end(cut, whole)


def test_what_was_logged_after_the_checkpoint_is_dropped(tmp_path):
    whole, cut = (
        tiny(tmp_path / name, iterations=44, checkpoint_every=15, eval_every=100) for name in ("whole", "cut")
    )
    train(whole)
    # A power cut: two lines were written, one of them after the last checkpoint.
    with at_step(40, RuntimeError()), pytest.raises(RuntimeError):
        train(cut)
    with (cut.out_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "ki')
    train(cut)
    assert_same_end(cut, whole)
    board = EventAccumulator(str(cut.out_dir)).Reload()
    assert [event.step for event in board.Scalars("loss/rpg")] == [20, 40, 44]


def test_best_weights_are_those_of_the_checkpoint(tmp_path, monkeypatch):
    """The best validation was before the cut, and a later one may have replaced best.pt."""
    scores = iter([0.9, 0.1, 0.1, 0.1] * 2)
    evaluate = examples.engine.validation.evaluate

    def evaluate_as_told(net, images, data, *into):
        iou = evaluate(net, images, data, *into)
        if images is data.validation:
            score = torch.full((len(data.class_names),), next(scores))
            iou.per_class = lambda: score
        return iou

    monkeypatch.setattr(examples.engine.validation, "evaluate", evaluate_as_told)
    whole, cut = (tiny(tmp_path / name) for name in ("whole", "cut"))
    train(whole)
    interrupt(cut, 14)
    atomic_save(cut.out_dir / "best.pt", {"model": {}, "step": 20})
    train(cut)
    assert_same_end(cut, whole)
    assert load_verified(cut.out_dir / "best.pt")["step"] == 6


@given(steps=st.integers(0, 8), seed=st.integers(0, 99))
def test_streams_go_on_where_their_state_was_taken(data, steps, seed):
    for stream in (PoolBatches, UnlabeledBatches):
        one, other = (stream(data, 3, torch.Generator().manual_seed(number)) for number in (seed, seed + 1))
        for _ in range(steps):
            next(one)
        other.load_state_dict(one.state_dict())
        for _ in range(4):
            a, b = next(one), next(other)
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)


# --- which run it is


def test_only_the_same_run_goes_on(tmp_path):
    config = tiny(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint; leave --resume out"):
        train(config, resume=True)
    interrupt(config, 5)
    with pytest.raises(ValueError, match="holds an unfinished run with other options") as refused:
        train(replace(config, k=0.25, seed=3))
    assert "seed 0 there, 3 now" in str(refused.value)
    assert "k 0.5 there, 0.25 now" in str(refused.value)
    assert load_verified(checkpoints(config)[0])["step"] == 5
    train(replace(config, checkpoint_every=100), resume=True)
    assert not (config.out_dir / "checkpoints").exists()
    with pytest.raises(FileExistsError, match="already holds a result"):
        train(config, resume=True)


def test_overwriting_starts_again(tmp_path, capsys):
    config = tiny(tmp_path / "run", method="supervised", iterations=6, seed=1)
    interrupt(config, 5)
    train(replace(config, seed=2, overwrite=True))
    assert "going on" not in capsys.readouterr().out
    train(replace(config, seed=3, overwrite=True))  # a finished one as well
    assert result(config)["seed"] == 3


def test_other_images_are_another_run(tmp_path, monkeypatch):
    config = tiny(tmp_path / "run")
    interrupt(config, 5)
    monkeypatch.setattr(phantom, "TRAIN", 9)
    with pytest.raises(ValueError, match=r"the \w+ images are not those the run was started with \(1 new"):
        train(config)


@pytest.fixture
def folder(tmp_path) -> Config:
    """A run on a folder of twelve images with masks."""
    root = tmp_path / "data"
    for number in range(12):
        mask = np.zeros((32, 32), np.uint8)
        mask[4 : 12 + number, 6:20] = 1
        save_image(root / "images" / f"{number}.png", 40 + 160 * mask)
        save_image(root / "masks" / f"{number}.png", mask)
    changes = {"iterations": 6, "eval_every": 3, "checkpoint_every": 2, "unlabeled_batch": 2}
    return small("folder", root=root, out=tmp_path / "run", method="supervised", **changes)


def changed_copy(root: Path) -> Path:
    """The same images with other masks."""
    copy = shutil.copytree(root, root.with_name("other"))
    for path in (copy / "masks").iterdir():
        save_image(path, np.array(Image.open(path))[::-1].copy())
    return copy


def test_masks_that_were_changed_are_another_run(folder, tmp_path):
    """Else the best checkpoint would be chosen on other masks than it is tested on."""
    interrupt(folder, 4)
    other = changed_copy(folder.root)
    with pytest.raises(
        ValueError, match=r"root: \d+ images have another mask than in the run, such as \d+; bring back"
    ):
        train(replace(folder, root=other))
    moved = folder.root.rename(tmp_path / "moved")
    train(replace(folder, root=moved))  # where they are does not matter


def test_what_is_said_of_the_test_is_what_ranks_methods(folder, command):
    """Of class maps IoU pooled over the images, as of the validations before."""
    train(folder)
    said = command(examples.train.run_command, "folder", "--config", folder.out_dir / "config.json", "--overwrite")
    assert f"test mIoU {result(folder)['miou_pooled']:.3f} (pooled) on 12 images" in said.out


def test_a_finished_run_is_that_of_its_data(folder, tmp_path):
    train(folder)
    other = changed_copy(folder.root)
    assert is_finished(replace(folder, root=Path(os.path.relpath(folder.root))))
    with pytest.raises(ValueError, match=r"was made with other data \(root .*data there\); take another --out"):
        is_finished(replace(folder, root=other))
    assert is_finished(replace(folder, root=folder.root.rename(tmp_path / "moved")))


def test_code_that_does_not_fit_the_checkpoint_says_so(tmp_path, monkeypatch):
    config = tiny(tmp_path / "run", method="supervised")
    interrupt(config, 5)

    class Changed(Supervised):
        def __init__(self, *args):
            super().__init__(*args)
            self.head = torch.nn.Linear(1, 1)

    monkeypatch.setitem(METHODS, "supervised", Changed)
    with pytest.raises(ValueError, match="does not fit this code"):
        train(config)


def test_another_environment_is_noted(tmp_path, monkeypatch, capsys):
    config = tiny(tmp_path / "run", method="supervised")
    interrupt(config, 5)
    before = examples.engine.run.environment("cpu") | {"processes": 1}
    monkeypatch.setattr(examples.engine.run, "environment", lambda device: before | {"threads": 7})
    train(config)
    assert f"threads {before['threads']} then, 7 now" in capsys.readouterr().out
    content = result(config)
    assert content["earlier_environments"] == [before]
    assert content["environment"]["threads"] == content["threads"] == 7


def test_two_runs_in_one_folder(tmp_path):
    config = tiny(tmp_path / "run", method="supervised")
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(FileExistsError, match="another run is under way"):
        train(config)
    assert [path.name for path in config.out_dir.iterdir()] == [".lock"]
    train(config)


# --- damaged files


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(damage, whole, tmp_path, capsys):
    cut = tiny(tmp_path / "cut")
    interrupt(cut, 14)
    newest, before = checkpoints(cut)
    assert (newest.name, before.name) == ("step-00000014.ckpt", "step-00000012.ckpt")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"cut": content[:-10], "flipped": content, "empty": b""}[damage])
    (newest.parent / "step-00000015.ckpt-12345678.tmp").write_bytes(b"half")
    train(cut)
    said = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert len(said) == 1
    assert str(newest) in said[0]
    assert "going on from step-00000012.ckpt" in said[0]
    assert_same_end(cut, whole)


def test_nothing_starts_again_silently_where_all_checkpoints_are_damaged(tmp_path):
    config = tiny(tmp_path / "run")
    interrupt(config, 14)
    for path in checkpoints(config):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="pass --overwrite to start again") as refused:
        train(config)
    assert all(str(path) in str(refused.value) for path in checkpoints(config))
    train(replace(config, overwrite=True))


def test_the_last_two_checkpoints_are_kept_and_a_folder_of_such_a_name_is_left_alone(tmp_path):
    (tmp_path / "step-00000019.ckpt").mkdir()
    store = Checkpoints(tmp_path)
    assert store.load() is None
    for step in (5, 10, 15):
        store.save(step, {"step": step})
    assert [path.name for path in store.files()] == ["step-00000015.ckpt", "step-00000010.ckpt"]
    again = Checkpoints(tmp_path)
    assert again.load() == {"step": 15}
    again.save(16, {"step": 16})
    assert [path.name for path in again.files()] == ["step-00000016.ckpt", "step-00000015.ckpt"]
    again.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000019.ckpt"]


# --- signals


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_its_step(number, status, overwrite, tmp_path, monkeypatch, capsys):
    config = tiny(tmp_path / "run", method="supervised", overwrite=overwrite)
    monkeypatch.setattr(examples.train, "parse_command", lambda **kwargs: (config, False))
    with signal_at_step(7, number), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert signal.Signals(number).name in said[0]
    assert "after step 7 of 22" in said[0]
    assert f"the same command{' without --overwrite' * overwrite} goes on" in said[0]
    assert load_verified(checkpoints(config)[0])["step"] == 7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_while_results_are_written_waits_for_all_of_them_and_says_that_the_run_is_finished(
    tmp_path, monkeypatch, capsys
):
    config = tiny(tmp_path / "run", method="supervised")
    monkeypatch.setattr(examples.train, "parse_command", lambda **kwargs: (config, False))
    monkeypatch.setattr(examples.engine.validation, "save_overlays", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    drawn = []
    monkeypatch.setattr(examples.engine.validation, "save_pictures", lambda *args: drawn.append(args))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 143
    assert "the same command says that the run is finished" in capsys.readouterr().err
    assert len(drawn) == 1
    assert json.loads((config.out_dir / "status.json").read_text())["state"] == "finished"
    assert checkpoints(config) == []
    main()
    assert "already finished" in capsys.readouterr().out


def test_what_a_kill_after_the_result_left_undone_is_done_by_the_same_command(tmp_path, monkeypatch, capsys):
    config = tiny(tmp_path / "run", method="supervised", iterations=6)
    monkeypatch.setattr(examples.train, "parse_command", lambda **kwargs: (config, False))
    monkeypatch.setattr(examples.train, "write_page", write_page)
    with monkeypatch.context() as killed:
        killed.setattr(examples.engine.validation, "log_errors", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main()
    assert checkpoints(config)
    main()
    assert "already finished" in capsys.readouterr().out
    assert ">finished<" in (config.out_dir / "report.html").read_text()
    assert checkpoints(config) == []


def test_a_signal_acts_at_once_where_nothing_is_lost_and_when_it_comes_again():
    with Interrupts(), pytest.raises(Interrupted, match="nothing to save"):
        os.kill(os.getpid(), signal.SIGTERM)
    with Interrupts() as interrupts, pytest.raises(Interrupted, match="after the last step"), interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
    interrupts = Interrupts()
    interrupts.deferring = True
    for _ in range(2):  # from the terminal and from a parent: one Ctrl-C
        interrupts.handle(signal.SIGINT, None)
    interrupts.since -= 3
    with pytest.raises(Interrupted, match="step under way is lost"):
        interrupts.handle(signal.SIGINT, None)


# --- what the disk does


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_leaves_the_checkpoint_before(whole, tmp_path, monkeypatch):
    cut = tiny(tmp_path / "cut")
    original = Path.open

    def fill(self, *args, **kwargs):
        return original(Path("/dev/full") if self.name.startswith("step-00000008.ckpt-") else self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", fill)
        with pytest.raises(OSError, match=r"was not written; step-00000006\.ckpt is whole") as refused:
            train(cut)
    assert refused.value.errno == errno.ENOSPC
    assert checkpoints(cut)[0].name == "step-00000006.ckpt"
    train(cut)
    assert_same_end(cut, whole)


def test_a_file_is_old_or_new_but_never_half(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, fail)
            with pytest.raises(OSError, match=r"No space left on device: .*file"):
                atomic_write(path, b"new")
        assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file", b"old")]


def test_files_whose_long_names_begin_alike_are_written_at_once(tmp_path, monkeypatch):
    """As those of DICOM: one would be renamed to the other."""
    paths = [tmp_path / f"{'1.2.840.113619' * 8}.{number}.png" for number in range(2)]
    original = os.replace

    def meanwhile(*names):
        monkeypatch.setattr(os, "replace", original)
        atomic_write(paths[1], b"1")
        original(*names)

    monkeypatch.setattr(os, "replace", meanwhile)
    atomic_write(paths[0], b"0")
    assert [path.read_bytes() for path in paths] == [b"0", b"1"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write there; pass another --out"):
        train(tiny(tmp_path / "file" / "run"))

    def read_only(self, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(OSError, match="Read-only file system: cannot write there"):
        train(tiny(tmp_path / "run"))


# --- losses and weights that are no numbers


def assert_finite(path: Path) -> None:
    content = load_verified(path)

    def tensors(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list)):
            for each in value.values() if isinstance(value, dict) else value:
                yield from tensors(each)

    assert all(values.isfinite().all() for values in tensors(content))


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_nan_stops_the_run_and_gets_into_no_checkpoint(what, tmp_path, monkeypatch):
    """At step 12 there would be both a validation and a checkpoint."""
    config = tiny(tmp_path / "run", method="supervised")
    original = Supervised.forward

    def forward(self, net, pool, unlabeled, step):
        outcome = original(self, net, pool, unlabeled, step)
        bad = outcome.loss * float("nan")
        return outcome._replace(loss=bad, terms={"supervised": bad}) if (what, step) == ("loss", 12) else outcome

    def after_step(self, net, step):
        if (what, step) == ("weights", 12):
            with torch.no_grad():
                net.head.bias[1] = float("nan")

    monkeypatch.setattr(Supervised, "forward", forward)
    monkeypatch.setattr(Supervised, "after_step", after_step)
    expected = {"loss": "step 12: loss term supervised = nan", "weights": "step 12: head.bias is not finite"}[what]
    with pytest.raises(FloatingPointError, match=expected):
        train(config)
    assert [path.name for path in checkpoints(config)] == ["step-00000008.ckpt", "step-00000006.ckpt"]
    for path in (*checkpoints(config), config.out_dir / "best.pt", config.out_dir / "last.pt"):
        assert_finite(path)
