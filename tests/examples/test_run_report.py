"""A run can be seen while it goes, after it and after it died: on the screen, in TensorBoard and in report.html."""

import base64
import io
import json
import math
import os
import random
import re
import shutil
import signal
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from rich.console import Console
from rich.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import examples.engine.run
import examples.engine.validation
import examples.logging.progress
import examples.logging.run_log
import examples.train
from examples.config import Config
from examples.data import ImageSet, check, load
from examples.data.augment import IGNORE_INDEX, View
from examples.data.phantoms import chest as phantom
from examples.engine.loop import train
from examples.evaluate import Evaluate, measure
from examples.logging.pictures import STRIP_GAP, STRIP_SIDE, save_overlays, showing_all, strips, visualize
from examples.logging.progress import RunProgress
from examples.logging.run_log import RunLog, open_lines
from examples.methods import METHODS
from examples.models.unet import UNet
from examples.report import main
from examples.reporting.run_page import config_table, write_page
from examples.reporting.run_plots import draw_pseudo_labels
from tests.examples.files import edit_json, read_json, save_image
from tests.examples.tiny import at_step, tiny

VALIDATIONS = (8, 16, 24)
TESTED = ("iou_per_class", "iou_per_class_pooled", "dice_per_class", "hd95_px_per_class")
COLUMNS = "image, truth, prediction, pseudo-label, weight"


def small(out: Path, **changes) -> Config:
    """Passes of four steps, a validation every eight steps; clavicles are too thin for most of its maps."""
    return tiny(out, **{"threshold": 0.95, "iterations": 24, "eval_every": 8, **changes})


def shrink(patched: pytest.MonkeyPatch, *, pictures: bool = False) -> None:
    for name, count in (("TRAIN", 12), ("VALIDATION", 3), ("TEST", 5)):
        patched.setattr(phantom, name, count)
    patched.setattr(examples.engine.run, "BN_CALIBRATION_POOLS", 2)
    for name in () if pictures else ("save_overlays", "save_pictures"):
        patched.setattr(examples.engine.validation, name, lambda *args: None)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a whole run; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patched:
        shrink(patched)
        train(small(folder))
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


class Page:
    """What a browser would make of a page, which is XML but for the tags that have no end."""

    def __init__(self, folder: Path) -> None:
        self.source = (folder / "report.html").read_text()
        closed = re.sub(r"<((?:img|meta)\b[^>]*)>", r"<\1/>", self.source.removeprefix("<!doctype html>"))
        self.root = ElementTree.fromstring(closed)
        self.text = "".join(self.root.find("body").itertext())
        self.images = [image.attrib for image in self.root.iter("img")]
        self.warnings = "".join("".join(each.itertext()) for each in self.root.iterfind(".//ul[@class='warnings']"))
        shown = {cell: [float(data.get("value")) for data in cell.iter("data")] for cell in self.root.iter("td")}
        in_tables = {data for cell in shown for data in cell.iter("data")}
        self.scores = [float(data.get("value")) for data in self.root.iter("data") if data not in in_tables]
        self.tables: dict[str, dict[str, list]] = {}  # id -> first cell of a row -> the values of the others, or text
        for table in self.root.iter("table"):
            rows = self.tables[table.get("id")] = {}
            for row in table.iter("tr"):
                first, *rest = ("".join(part.strip() for part in cell.itertext()) for cell in row)
                rows[first] = [value for cell in row for value in shown.get(cell, ())] or rest


# --- report.html


def test_the_page_needs_nothing_but_itself(finished):
    page = Page(finished)
    for element in page.root.iter():
        assert element.tag not in ("script", "link", "iframe", "object", "embed", "base")
        assert not {"href", "srcset", "background", "action"} & element.attrib.keys()
        assert not any(name.startswith("on") for name in element.attrib)
    styles = "".join(style.text for style in page.root.iter("style"))
    assert "url(" not in styles
    assert "@import" not in styles
    assert "prefers-color-scheme: dark" in styles
    kinds = []
    for image in page.images:
        assert image["alt"]
        kind, _, content = image["src"].removeprefix("data:").partition(";base64,")
        kinds.append(kind)
        content = base64.b64decode(content, validate=True)
        if kind == "image/png":
            assert Image.open(io.BytesIO(content)).size == (5 * STRIP_SIDE + 4 * STRIP_GAP, STRIP_SIDE)
        else:
            assert b"prefers-color-scheme:dark" in content
            for element in ElementTree.fromstring(content).iter():
                references = [value for name, value in element.attrib.items() if name.endswith("href")]
                assert all(reference.startswith("#") for reference in references)
    assert kinds == ["image/png"] * (4 + 4 + 2 + 2 + 3) + ["image/svg+xml"] * 3


def test_the_numbers_are_those_of_the_result(finished):
    page, result = Page(finished), read_json(finished / "result.json")
    validations = [line for line in lines(finished) if line["kind"] == "validation"]
    assert tuple(line["step"] for line in validations) == VALIDATIONS
    best = max(validations, key=lambda line: (line["miou"], line["step"]))
    assert (
        page.scores == [result["miou"], result["miou_pooled"], best["miou"]] == [*page.scores[:2], result["validation"]]
    )
    measures = [f"pseudo_label_{name}" for name in ("precision", "recall", "weight", "weight_share", "true_share")]
    for name in phantom.CLASSES:
        expected = [result[key][name] for key in TESTED]
        expected.append(best[name])
        expected += [result[measure][name] for measure in measures]
        assert page.tables["classes"][name.replace("_", " ")] == [value for value in expected if value is not None]
    means = [[value for value in result[key].values() if value is not None] for key in TESTED[2:]]
    expected = [*page.scores[:2], *(statistics.fmean(known) for known in means if known), page.scores[2]]
    assert page.tables["classes"]["mean over classes"] == pytest.approx(expected)
    assert "finished" in page.text
    assert result["data"] in page.text


def lines(folder: Path, *, cut: bool = False) -> list[dict]:
    written = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in (written[:-1] if cut else written)]


def test_dice_distances_and_the_worst_images_are_those_of_an_evaluation(finished):
    result = read_json(finished / "result.json")
    measures = measure(Evaluate(finished, csv=finished / "again.csv", device="cpu"))
    values = torch.from_numpy(measures.measures.values())  # (N, C, 6)
    for key, column in (("dice_per_class", 1), ("hd95_px_per_class", 3)):
        means = values[..., column].nanmean(0).tolist()
        known = [None if math.isnan(mean) else pytest.approx(mean) for mean in means]
        expected = dict(zip(phantom.CLASSES, known, strict=True))
        assert result[key] == expected
    scores = dict(zip(measures.images, values[..., 0].nanmean(1).tolist(), strict=True))
    assert result["worst_images"] == pytest.approx(scores)
    assert list(result["worst_images"]) == sorted(scores, key=scores.__getitem__)
    text = (finished / "report.html").read_text()
    assert "Test images with the lowest IoU" in text
    assert "Labeled images" in text
    assert text.index("test HD95, pixels") > text.index("test Dice per image")


def test_pictures_show_each_class():
    labels = torch.zeros(30, 8, 8, dtype=torch.int64)
    labels[:, 0, 0] = 1
    labels[13, 1, 1] = 2
    labels[17, 2, 2] = 3
    images = ImageSet(torch.zeros(30, 1, 8, 8), labels, tuple(map(str, range(30))))
    assert showing_all(images, 3) == [0, 9, 13, 17, 19, 29]
    assert showing_all(images[[3, 4]], 3) == [0, 1]  # what is nowhere cannot be shown


def test_options_that_are_not_the_defaults_come_first(finished):
    page, options = Page(finished), read_json(finished / "config.json")
    environment = options.pop("environment")
    assert page.tables["configuration"]["k"] == ["0.5", str(7000 / 12288)]
    assert page.tables["configuration"]["image_size"] == ["32", "512"]
    assert page.tables["defaults"]["threshold"] == ["0.95"]
    changed = page.tables["configuration"].keys() - {"option"}
    assert changed | page.tables["defaults"].keys() == options.keys()
    assert not changed & page.tables["defaults"].keys()
    assert page.tables["environment"]["torch"] == [environment["packages"]["torch"]]
    assert page.tables["environment"]["commit"] == [environment["commit"]]


def test_the_command_makes_the_same_page_from_the_files(run, finished, command):
    (run / "report.html").unlink()
    assert command(main, run).out.strip() == str(run / "report.html")
    again, before = ((folder / "report.html").read_text() for folder in (run, finished))
    assert again.replace(str(run), str(finished)) == before


def test_a_folder_of_no_run_is_refused(tmp_path, command):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json, expected the folder of a run"):
        write_page(tmp_path)
    assert "no results below" in command(main, tmp_path).status
    (tmp_path / "config.json").write_text('{"dataset": ')
    assert "config.json is not JSON" in command(main, tmp_path).status


def test_whatever_stands_in_the_files_is_shown_as_text(run):
    hostile = '"><script src=http://example.org></script>'
    edit_json(run / "config.json", group_pattern=hostile)
    status = read_json(run / "status.json")
    status["pictures"]["test"]["rows"][0]["name"] = hostile
    edit_json(run / "status.json", pictures=status["pictures"], reason=hostile)
    result = read_json(run / "result.json")
    for key in ("iou_per_class", "iou_per_class_pooled"):
        result[key][hostile] = 0.5
    edit_json(run / "result.json", **result | {"data": hostile})
    write_page(run)
    page = Page(run)
    assert page.root.find(".//script") is None
    assert page.text.count(hostile) >= 4
    assert hostile in page.tables["classes"]


def test_only_pictures_within_the_run_are_shown(run):
    secret = run.parent / "secret.png"
    picture = run / "pictures" / "test-0.png"
    secret.write_bytes(picture.read_bytes())
    (run / "link.png").symlink_to(secret)
    (run / "words.png").write_text("no picture")
    status = read_json(run / "status.json")
    rows = status["pictures"]["test"]["rows"]
    kept = len(rows)
    rows += [
        rows[0] | {"file": file} for file in ("../secret.png", str(secret), "link.png", "words.png", "config.json")
    ]
    edit_json(run / "status.json", pictures=status["pictures"])
    write_page(run)
    shown = [image for image in Page(run).images if "phantom" in image["alt"]]
    assert len(shown) == kept + 4 + 2 + 2 + 3  # those of the other parts


def test_a_configuration_that_is_none_is_named(run, command):
    whole = (run / "config.json").read_text()
    for content, fault in (
        ('{"dataset": "phantom"}', "no .*method, .*expected the options"),
        ("7", "int, expected"),
        (whole.replace('"weighted": true', '"weighted": "x"'), "what is no option .*weighted: got 'x'"),
    ):
        (run / "config.json").write_text(content)
        assert re.search(rf"config\.json holds {fault}", command(main, run).status)


@pytest.mark.parametrize("file", ["status.json", "result.json"])
def test_files_of_wrong_types_are_refused_or_shown(run, file, monkeypatch):
    """Whatever stands in their place, there is a page or one line that says what is wrong."""
    for draw in ("draw_losses", "draw_validation", "draw_pseudo_labels"):  # which take most of the time
        monkeypatch.setattr(f"examples.reporting.run_page.{draw}", lambda *args: None)
    content, draw = read_json(run / file), random.Random(0)
    refused = 0
    for value in (None, True, -1, 1e400, "<b>", [], [1], {}, {"a": 1}, 10**30):
        for key in draw.sample(sorted(content), 3):
            (run / file).write_text(json.dumps(content | {key: value}))
            try:
                write_page(run)
            except ValueError as error:
                refused += 1
                assert str(error).count("\n") == 0, (key, value)  # noqa: PT017
    assert refused


def test_what_is_no_line_of_a_log_is_left_out(run):
    before = write_page(run).read_text()
    odd = ["7", "[]", "null", '{"step": null, "kind": "loss"}', '{"step": 1, "kind": "loss", "rpg": [1]}', "{"]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n".join(odd))
    assert write_page(run).read_text() == before
    with open_lines(run / "metrics.jsonl", VALIDATIONS[-1]):
        pass
    assert all(line["step"] <= VALIDATIONS[-1] for line in lines(run))


def test_a_run_of_before_there_was_a_status(run):
    for name in ("status.json", "metrics.jsonl"):
        (run / name).unlink()
    write_page(run)
    page = Page(run)
    assert page.images == []
    assert page.scores[0] == read_json(run / "result.json")["miou"]


def test_nothing_to_be_found_in_the_test_images(run):
    nothing = dict.fromkeys(phantom.CLASSES)
    edit_json(run / "result.json", miou=None, miou_pooled=None, worst_images={}, **dict.fromkeys(TESTED, nothing))
    write_page(run)
    page = Page(run)
    assert len(page.scores) == 1
    assert page.tables["classes"]["mean over classes"] == page.scores


# --- a run that is not finished


def unfinish(run: Path) -> None:
    """As a run stands after its second validation."""
    (run / "result.json").unlink()
    kept = [json.dumps(line) for line in lines(run) if line["step"] <= VALIDATIONS[1]]
    (run / "metrics.jsonl").write_text("\n".join(kept) + '\n{"step": 20, "kind": "lo')
    edit_json(run / "status.json", state="under way", step=VALIDATIONS[1])


def test_a_run_under_way_and_one_that_died(run):
    unfinish(run)
    validations = [line for line in lines(run, cut=True) if line["kind"] == "validation"]
    with FileLock(run / ".lock"):
        write_page(run)
    assert Page(run).tables["classes"]
    assert ">under way<" in Page(run).source
    write_page(run)
    page = Page(run)
    assert ">died<" in page.source
    assert "ended without a message after step 16; the same command goes on" in page.text
    assert "16 of 24" in page.text
    assert page.scores == [max(validations, key=lambda line: (line["miou"], line["step"]))["miou"]]
    heads = page.tables["classes"]["class"]
    assert not any("test" in head for head in heads)


def test_a_run_that_stops_says_why(tmp_path):
    config = small(tmp_path / "run")
    error = FloatingPointError("step 14: loss term rpg = nan")
    with at_step(14, error), pytest.raises(FloatingPointError):
        train(config)
    page = Page(config.out_dir)
    assert ">stopped<" in page.source
    assert "step 14: loss term rpg = nan" in page.text
    assert "14 of 24" in page.text
    assert len([image for image in page.images if "png" in image["src"][:20]]) == 4
    train(config)
    assert ">finished<" in Page(config.out_dir).source


def test_what_was_drawn_before_a_cut_is_still_shown_when_the_run_goes_on(tmp_path, monkeypatch):
    config = small(tmp_path / "run", iterations=9, eval_every=4)
    pages = []
    monkeypatch.setattr(RunLog, "finish", lambda self, *args: None)
    original = RunLog.__enter__

    def enter(self):
        original(self)
        pages.append(Page(self.folder))
        if len(pages) == 2:
            raise RuntimeError
        return self

    monkeypatch.setattr(RunLog, "__enter__", enter)
    for _ in range(2):
        with at_step(6, RuntimeError()), pytest.raises(RuntimeError):
            train(config)
    assert pages[0].images == []
    assert [image["alt"] for image in pages[1].images if "phantom" in image["alt"]]


# --- warnings


def test_a_reader_is_warned(run):
    result = read_json(run / "result.json")
    weights = dict.fromkeys(result["pseudo_label_weight"], 0.3) | {"heart": 0.001, "left_lung": None}
    precision = dict.fromkeys(weights, 0.9) | {"right_lung": 0.2, "heart": 0.1}
    here = result["environment"] | {"commit": "0" * 40 + "-dirty"}
    there = here | {"threads": 77}
    edit_json(
        run / "result.json", pseudo_label_weight=weights, pseudo_label_precision=precision, environment=here,
        earlier_environments=[there],
    )  # fmt: skip
    write_page(run)
    warnings = Page(run).warnings
    assert "Pseudo-labels of heart weigh next to nothing" in warnings
    assert "try a smaller --k" in warnings
    assert "No pixel was given the pseudo-label left lung" in warnings
    assert "wrong more often than right (precision): right lung (0.20)." in warnings
    assert "not committed" in warnings
    assert f"threads 77 then, {here['threads']} now" in warnings


def test_nothing_is_warned_of_where_all_is_well(run):
    result = read_json(run / "result.json")
    fine = dict.fromkeys(result["pseudo_label_weight"], 0.9)
    edit_json(
        run / "result.json", pseudo_label_weight=fine, pseudo_label_precision=fine,
        environment=result["environment"] | {"commit": "0" * 40},
    )  # fmt: skip
    scores = zip(VALIDATIONS, (0.5, 0.7, 0.6), strict=True)
    validations = [{"step": step, "kind": "validation", "miou": miou} for step, miou in scores]
    kept = [line for line in lines(run) if line["kind"] != "validation"]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, kept + validations)))
    write_page(run)
    assert Page(run).warnings == ""


# --- pictures and curves


def test_tensorboard_has_pictures_scalars_and_the_configuration(finished):
    board = EventAccumulator(str(finished), size_guidance={"images": 0, "tensors": 0}).Reload()
    tags = board.Tags()
    names = {tag.partition("/")[0] for tag in tags["images"]}
    assert names == {f"validation: {COLUMNS}", f"unlabeled: {COLUMNS}"}
    assert len(tags["images"]) == 4
    for tag in tags["images"]:
        assert tuple(event.step for event in board.Images(tag)) == VALIDATIONS
        picture = Image.open(io.BytesIO(board.Images(tag)[-1].encoded_image_string))
        assert picture.size == (5 * STRIP_SIDE + 4 * STRIP_GAP, STRIP_SIDE)
    assert {"loss/supervised", "loss/rpg", "validation/miou", "validation/heart", "pseudo_label_weight/heart"} <= set(
        tags["scalars"]
    )
    (text,) = board.Tensors("configuration/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert "| **k** | `0.5` |" in table
    assert table.index("**iterations**") < table.index("| threshold |")


def test_pictures_are_drawn_a_few_times_a_run_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(examples.logging.run_log, "write_page", lambda folder: None)
    monkeypatch.setattr(examples.logging.run_log, "MAX_LOGGED_IMAGES", 3)
    config = small(tmp_path / "run", method="supervised", iterations=7, eval_every=1, unlabeled_batch=12)
    train(config)
    board = EventAccumulator(str(config.out_dir), size_guidance={"images": 0}).Reload()
    tag = next(tag for tag in board.Tags()["images"] if tag.startswith("validation: image, truth, prediction/"))
    assert [image.step for image in board.Images(tag)] == [3, 5, 7]


def test_looking_changes_nothing(tmp_path, finished, monkeypatch):
    monkeypatch.setattr(RunLog, "log_images", lambda *args: None)
    unseen = small(tmp_path / "unseen")
    train(unseen)
    a, b = (read_json(folder / "result.json") for folder in (unseen.out_dir, finished))
    for content in (a, b):
        del content["seconds"], content["config"]["out"]
    assert a == b


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_seen(method, tmp_path):
    config = small(tmp_path, method=method)
    data = load(config)
    net = UNet(1, data.num_outputs, config.base_channels)
    images = data.labeled.images
    pool = View(images, data.labeled.labels, torch.ones(3, 32, 32, dtype=torch.bool), images, lambda maps: maps)
    given = visualize(data.test, net, METHODS[method](config, data, net, 10), pool, data)
    (first, *_), panels = strips(given), 5 if given.weights is not None else 3
    assert (panels == 3) == (method in ("supervised", "iic"))
    assert first.shape == (STRIP_SIDE, panels * STRIP_SIDE + (panels - 1) * STRIP_GAP, 4)


def test_truth_that_is_not_known_is_left_clear(tmp_path):
    config = small(tmp_path, method="supervised")
    data = load(config)
    net = UNet(1, data.num_outputs, config.base_channels)
    torch.nn.init.constant_(net.head.bias, 100.0)  # every label everywhere
    shown = torch.ones(2, 32, 32, dtype=torch.bool)
    shown[:, :16] = False  # padding
    labels = data.test.labels[:2].clone()
    labels[1] = IGNORE_INDEX
    images = ImageSet(data.test.images[:2], labels, ("known", "unknown"), shown)
    seen = visualize(images, net, METHODS["supervised"](config, data, net, 10), None, data)
    assert torch.equal(seen.prediction, shown[:, None].expand(-1, 5, -1, -1))
    assert seen.score[1].isnan()
    known, unknown = strips(seen)
    truth = slice(STRIP_SIDE + STRIP_GAP, 2 * STRIP_SIDE + STRIP_GAP)
    assert (known[:, truth, 3] == 255).all()
    assert (unknown[:, truth, 3] == 0).all()
    assert (unknown[:, :STRIP_SIDE, 3] == 255).all()


def test_many_classes_are_drawn_as_their_span():
    names = [f"part_{number}" for number in range(40)]
    points = {
        name: [(20 * step, number / 40) for step in range(1, 5)] for number, name in enumerate([*names, "background"])
    }
    series = {"pseudo_label_precision": points, "pseudo_label_weight": points}
    drawn = draw_pseudo_labels(series, [*names, "background"], 80)
    assert "all 40 classes" in drawn
    assert "part 7" not in drawn
    assert "part 7" in draw_pseudo_labels(series, [*names[:8], "background"], 80)


def test_bars_in_options_do_not_break_the_table():
    options = small(Path("out")).plain() | {"group_pattern": "a|b"}
    assert "| **group_pattern** | `a\\|b` | `None` |" in config_table(options)


# --- what is said


def test_lines_where_the_output_is_no_terminal(tmp_path, capsys):
    train(small(tmp_path / "run", iterations=40, eval_every=400))
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\r" not in said
    first, cost, steps, last, validation, testing, writing = said.splitlines()
    assert first == "preparing: reading the images"
    pattern = (
        r"step 20/40  supervised \d\.\d{3}  rpg \d\.\d{3}  fixmatch \d\.\d{3}  [\d.]+ (it/s|s/it)  \d:\d\d:\d\d left"
    )
    assert re.fullmatch(r"step 2/40  [\d.e-]+ s a step, \d:\d\d:\d\d for the rest without validations", cost)
    assert re.fullmatch(pattern, steps)
    assert last.startswith("step 40/40")
    assert validation.startswith("step 40/40  validation mIoU")
    assert (testing, writing) == ("testing on 5 images", "writing results and pictures")


@pytest.mark.parametrize(("seconds", "size", "hint"), [(150.0, 512, True), (61.0, 64, False), (0.5, 512, False)])
def test_a_slow_step_is_said_early_with_a_smaller_setting(tmp_path, capsys, seconds, size, hint):
    config = small(tmp_path, iterations=1000)
    with RunLog(config.out_dir, config, 1000, load(config), []) as log:
        log.config = replace(config, image_size=size)
        log.say_cost(2, seconds)
    said = capsys.readouterr().out
    assert f"step 2/1000  {seconds:g} s a step, " in said
    assert ("a smaller setting for a first try: --image-size 128" in said) == hint


def test_a_finished_run_started_again_says_so(finished, command):
    words = ("phantom", "--config", finished / "config.json", "--out", finished)
    before = (finished / "result.json").stat().st_mtime_ns
    again = command(examples.train.run_command, *words)
    assert again.status == 0
    assert f"already finished, see {finished / 'report.html'}" in again.out
    assert (finished / "result.json").stat().st_mtime_ns == before
    other = command(examples.train.run_command, *words, "--seed", "5")
    assert "was made with other options (seed 0 there, 5 now)" in other.status


@pytest.mark.skipif(os.name != "posix", reason="elsewhere all names are text")
def test_names_that_are_no_text_are_shown_all_the_same(tmp_path, monkeypatch, command, capsys):
    root = tmp_path / "data"
    for number in range(12):
        mask = np.zeros((32, 32), np.uint8)
        mask[4:20, 6 : 12 + number] = 1
        name = os.fsdecode(b"m\xfcller%d.png" % number)
        save_image(root / "images" / name, 40 + 160 * mask)
        save_image(root / "masks" / name, mask)
    config = Config(
        "folder", method="rpg", root=root, out=tmp_path / "run", image_size=32, base_channels=2, map_size=8, k=0.5,
        iterations=4, eval_every=2, unlabeled_batch=2,
    )  # fmt: skip
    monkeypatch.setattr(examples.engine.validation, "save_overlays", save_overlays)
    train(config)
    assert "could not be written" not in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "m?ller" in page
    assert "under way" not in page
    assert command(check.main, "folder", "--root", root, "--out", tmp_path / "sheet.png").status == 0


@pytest.fixture
def heard():
    """SIGINT as in a terminal: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_while_images_are_read_promises_no_checkpoint(tmp_path, monkeypatch, command):
    def interrupted(config):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(examples.engine.run, "load", interrupted)
    ended = command(examples.train.run_command, "phantom", "--out", tmp_path / "run")
    assert ended.status == 128 + signal.SIGINT
    assert "the same command begins the run" in ended.err


def test_the_result_is_there_before_pictures_whose_files_are_numbered(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # of what stands in for pictures
    shrink(monkeypatch, pictures=True)
    config = small(tmp_path / "run", iterations=2)
    whole = load(config)
    whole = replace(whole, test=replace(whole.test, names=tuple(f"{i}" * 250 for i in range(5))))
    monkeypatch.setattr(examples.engine.run, "load", lambda config: whole)
    drawn = []

    def overlays(*args):
        drawn.append(read_json(config.out_dir / "result.json"))
        raise OSError("no space left")

    monkeypatch.setattr(examples.engine.validation, "save_overlays", overlays)
    result = train(config)
    assert drawn[0]["pictures"] == result["pictures"]
    assert "note: overlays.png could not be written: OSError: no space left" in capsys.readouterr().out
    files = [config.out_dir / file for kinds in result["pictures"].values() for file in kinds.values()]
    assert len(files) == 12
    assert all(Image.open(file).size == (192, 192) for file in files)


def test_a_bar_with_losses_where_it_is_a_terminal(monkeypatch):
    screen = io.StringIO()
    terminal = partial(Console, file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(examples.logging.progress, "Console", terminal)
    with examples.logging.progress.phase("preparing"):
        pass
    with RunProgress(total=60, done=20) as progress:
        progress.step()
        progress.note.plain = "rpg 0.027"
        progress.phase("validating")
        progress.say("validation [mIoU] 0.412")  # not to be taken for markup
    preparing, rest = Text.from_ansi(screen.getvalue()).plain.split("training", 1)
    assert "preparing" in preparing
    assert "20/60" in rest
    last = rest.rpartition("validation [mIoU] 0.412")[2]
    assert re.search(r"validating .* 21/60 .* gone, .* left\s+rpg 0\.027", last)
    assert not progress.speed  # one step says nothing


@pytest.mark.parametrize("broken", ["write_page", "strips"])
def test_no_picture_is_worth_a_run(broken, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise ValueError("out of ink")

    monkeypatch.setattr(examples.logging.run_log, broken, fail)
    config = replace(small(tmp_path / "run"), iterations=2)
    train(config)
    said = capsys.readouterr().out
    assert "could not be written: ValueError: out of ink" in said
    assert (config.out_dir / "result.json").exists()
