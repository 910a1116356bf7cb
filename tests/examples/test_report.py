import json
import os
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from examples import report
from examples.config import Config
from examples.reporting import figures, tables
from examples.reporting.plotting import spread
from examples.reporting.report import write_report
from examples.reporting.results import Mean, Run, decimals, read_results, sections
from tests.examples.files import edit_json, read_json

CLASSES = ("right_lung", "left_lung", "heart", "right_clavicle", "left_clavicle")
PICTURES = ("a", "b")


def write(folder: Path, miou: float = 0.5, *, pictures: bool = False, **options) -> Path:
    """A result.json as examples.train writes it."""
    fields = {"image_size": 128, "base_channels": 16, "map_size": 32, "k": 0.5, "iterations": 100, **options}
    extra = {name: fields.pop(name) for name in ("commit", "data", "score") if name in fields}
    config = Config(**{"dataset": "jsrt", "method": "rpg", **fields})
    labels = None if config.method == "supervised" else dict.fromkeys([*CLASSES, "background"], 0.25)
    result = {
        "dataset": config.dataset, "method": config.method, "labeled": config.labeled, "split": config.split,
        "seed": config.seed, "iterations": config.iterations * (2 if config.double_length else 1),
        "image_size": config.image_size, "commit": "0" * 40, "miou": miou, "miou_pooled": miou + 0.1,
        "iou_per_class": dict.fromkeys(CLASSES, miou), "iou_per_class_pooled": dict.fromkeys(CLASSES, miou + 0.1),
        "validation": miou, "pseudo_label_precision": labels, "pseudo_label_weight": labels, "seconds": 12.0,
        "data": "247 images", "device": "cpu", "threads": 1, "torch": "2.13",
    }  # fmt: skip
    history = [
        {"step": 50, "miou": None, "pseudo_label_precision": labels, "pseudo_label_weight": labels},
        {"step": 60, "miou": miou, "pseudo_label_precision": None, "pseudo_label_weight": None},
        {"step": 100, "miou": miou, "pseudo_label_precision": labels, "pseudo_label_weight": labels},
    ]
    kinds = ("image", "truth", "prediction")
    files = {name: {kind: f"pictures/{name}-{kind}.png" for kind in kinds} for name in PICTURES}
    result |= {"score": "miou", "config": config.plain(), "history": history, "pictures": files}
    folder.mkdir(parents=True)
    if pictures:
        (folder / "pictures").mkdir()
        for name in PICTURES:
            for kind in ("image", "truth", "prediction"):
                plt.imsave(folder / f"pictures/{name}-{kind}.png", np.zeros((8, 8, 3)))
    path = folder / "result.json"
    path.write_text(json.dumps(result | extra))
    return path


@pytest.fixture
def drawn() -> None:
    """Asks for figures, which take longer than all that a test of the text does."""


@pytest.fixture(autouse=True)
def _text_alone(request, monkeypatch):
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(figures, "FIGURES", {})


def read(tmp_path: Path) -> str:
    write_report([tmp_path / "runs"], tmp_path / "report")
    return (tmp_path / "report" / "report.md").read_text()


def row(text: str, name: str) -> list[str]:
    """The cells of the first table row of that name, without the number of runs."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [re.sub(r" <small>.*", "", cell.strip()) for cell in line.strip("|").split("|")][1:]


def test_means_marks_and_missing_cells(drawn, tmp_path):
    runs = tmp_path / "runs"
    write(runs / "a", 0.6, method="rpg", split=0)
    write(runs / "b", 0.7, method="rpg", split=1)
    write(runs / "c", 0.8, method="rpg_plus")
    write(runs / "d", 0.5, method="supervised")
    write(runs / "e", 0.55, method="supervised", labeled=6)
    text = read(tmp_path)
    assert "| method | N_l = 3 | paper | N_l = 6 | paper |" in text
    assert row(text, "`rpg`") == ["<ins>.650</ins> ± .071", ".71", "–", ".79"]  # noqa: RUF001
    assert row(text, "`rpg_plus`")[0] == "**.800**"
    assert row(text, "`supervised`") == [".500", ".59", ".550", ".73"]  # nothing to compare it with at N_l = 6
    assert row(text, "`pseudolabel` .8") == ["–", ".56", "–", ".73"]  # noqa: RUF001
    assert "`mlds`" not in text  # neither run nor in the paper
    assert row(text, "`fixmatch` .8")[1] == ".71"
    assert row(text, "`fixmatch` .95")[1] == ".67"
    assert "<ins>.650</ins> ± .071 <small>(2)</small>" in text
    assert "512 px with its full network (64 base channels), ours at 128 px and 16 base channels" in text
    assert not re.search("Table [235]", text)
    assert row(text, "paper")[0] == ".83"  # Table 4, below supervised


def test_best_is_best_as_printed():
    equal = [(Mean(value, None, 1), "") for value in (0.7001, 0.7004, 0.5)]
    assert [cell.split(" ")[0] for cell in tables.ranked(equal)] == ["**.700**", "**.700**", "<ins>.500</ins>"]


def test_double_length_is_starred_in_a_row_of_its_own(tmp_path):
    write(tmp_path / "runs/a", 0.6, method="rpg_plus")
    write(tmp_path / "runs/b", 0.7, method="rpg_plus", double_length=True)
    write(tmp_path / "runs/c", 0.65, method="rpg", double_length=True)
    text = read(tmp_path)
    assert text.count("\n## jsrt") == 1
    assert row(text, "`rpg_plus`") == [".600", ""]
    assert row(text, "`rpg_plus`\\*") == ["**.700\\***", ".77\\*"]
    assert row(text, "`rpg`\\*")[0] == "<ins>.650\\*</ins>"
    assert "| `rpg` |" not in text.partition("Table 2")[0]


def test_thresholds_have_rows(tmp_path):
    write(tmp_path / "runs/a", 0.6, method="fixmatch", threshold=0.8)
    write(tmp_path / "runs/b", 0.7, method="fixmatch", threshold=0.95)
    text = read(tmp_path)
    assert row(text, "`fixmatch` .8") == ["<ins>.600</ins>", ".71"]
    assert row(text, "`fixmatch` .95") == ["**.700**", ".67"]


def test_studies_and_the_usual_options(drawn, tmp_path):
    runs = tmp_path / "runs"
    for split in (0, 1):
        write(runs / f"usual{split}", 0.6 + 0.1 * split, split=split)
        write(runs / f"k{split}", 0.5 + 0.1 * split, split=split, k=0.25)
        write(runs / f"n{split}", 0.4, split=split, labeled=6)
        for size in (1, 2, 3):
            write(runs / f"nn{size}{split}", 0.5 + 0.01 * size, split=split, method="nearest_neighbor", pool_size=size)
    write(runs / "both", 0.3, pool_size=1, k=3 * 256)  # an absolute k, of 1 * 32 * 32
    write(runs / "plain", 0.1, weighted=False)
    text = read(tmp_path)
    assert row(text, "`rpg`")[0] == "**.650** ± .071"
    table2, table3, single = (text[text.index(f"**{name}") :] for name in ("Table 2", "Table 3", "Single"))
    assert row(table2, "N_l = 3") == [".510 ± .000", "<ins>.520</ins> ± .000", "**.530** ± .000", "–", "–"]  # noqa: RUF001
    assert row(table2, "N_l = 3, paper") == [".52", ".58", ".64", ".65", ".66"]
    assert "| k = 25 % | paper | k = 50 % | paper | k = 75 % | paper | k = 100 % | paper |" in table3
    assert row(table3, "p = 3")[:4] == ["<ins>.550</ins> ± .071", ".66", "**.650** ± .071", ".70"]
    assert row(table3, "p = 1")[4] == ".300"
    assert row(table3, "p = 5")[-1] == "OOM"
    assert "k 50 % → 25 % | 3 | .650 ± .071 <small>(2)</small> | .550 ± .071 <small>(2)</small> | -.100" in single
    assert "weighted True → False | 3 |" in single
    assert "Usual options: `nearest_neighbor` map_size 32; `rpg` k 50 %, map_size 32.\n" in text
    assert "→ 75 %" not in single  # differs in two options
    assert "with" not in single.partition("\n\n")[2].partition("\n\n")[0]
    assert "1-jsrt-k-over-training.png" in text
    assert "1-jsrt-options-over-training.png" in text
    assert "pool-size.png" in text
    assert "k.png" in text


def test_a_difference_that_rounds_to_nothing_has_no_minus(tmp_path):
    write(tmp_path / "runs/usual", 0.6)
    write(tmp_path / "runs/usual1", 0.6, split=1)
    write(tmp_path / "runs/other", 0.5998, k=0.1)
    assert "| +.000 <small>(1)</small> |" in read(tmp_path)


def test_options_on_top_of_others(tmp_path):
    """Runs with two unusual options are compared with those that have one of them."""
    runs = tmp_path / "runs"
    for split in (0, 1):
        write(runs / f"usual{split}", 0.6, split=split)
        write(runs / f"ema{split}", 0.65, split=split, ema=True)
    write(runs / "usual2", 0.6, split=2)
    both = write(runs / "both", 0.7, ema=True, warm_up=0.4)
    weights = {**read_json(both)["pseudo_label_weight"], "heart": 0.98765, "background": None}
    edit_json(both, miou_unlabeled=0.61, pseudo_label_weight=weights)
    write(runs / "far", 0.1, ema=True, k=0.1, weighted=False)  # nothing that differs in one option alone
    text = read(tmp_path)
    single = text[text.index("**Single") : text.index("**Pseudo-labels by")]
    lines = [line for line in single.splitlines() if line.startswith("| `rpg`")]
    assert [line.split(" | ")[1] for line in lines] == ["ema False → True", "warm_up 0.0 → 0.4, with ema True"]
    assert lines[1].split(" | ")[2:] == [
        "3",
        ".650 ± .000 <small>(2)</small>",
        ".700 <small>(1)</small>",
        "+.050 <small>(1)</small>",
        ".610 <small>(1)</small> |",
    ]
    labels = text[text.index("**Pseudo-labels by") :].partition("\n\n")[2].partition("\n\n")[0]
    assert labels.splitlines()[0].endswith("| right clavicle | left clavicle | background |")
    assert "| `rpg` | usual | .25 / .25 |" in labels
    assert "| `rpg` | warm_up 0.4, ema True | .25 / .25 | .25 / .25 | .99 / .25 |" in labels
    assert labels.splitlines()[-1].endswith("| – / .25 |")  # noqa: RUF001
    assert "k 10 %" not in labels


def test_percentiles_over_images(tmp_path):
    for split in (0, 1):
        path = write(tmp_path / f"runs/a{split}", split=split)
        values = {"5": dict.fromkeys(CLASSES, 0.1 * split), "50": {**dict.fromkeys(CLASSES, 0.8), "heart": None}}
        edit_json(path, iou_percentiles=values)
    write(tmp_path / "runs/b", method="supervised")  # of before there were any
    text = read(tmp_path)
    assert "**Images.** IoU by class at the 5th, 50th percentile" in text
    assert "the usual and the best" not in text
    assert "from the lowest IoU up; the best images are above the last." in text
    images = text[text.index("**Images.**") :].partition("\n\n")[2].partition("\n\n")[0].splitlines()
    assert images[2:] == ["| `rpg` | usual | 3 | .05 .80 | .05 .80 | .05 – | .05 .80 | .05 .80 |"]  # noqa: RUF001


def test_pooled_scores_rank_where_the_result_says_so(tmp_path):
    write(tmp_path / "runs/a", 0.5, dataset="phantom_exclusive", score="miou_pooled")
    text = read(tmp_path)
    assert "**Table 5.** IoU pooled over images" in text
    assert row(text, "`rpg`") == [".600"]
    assert "paper" not in text.partition("## phantom_exclusive")[2]


def test_settings_are_kept_apart(tmp_path):
    write(tmp_path / "runs/a", 0.5)
    write(tmp_path / "runs/b", 0.6, image_size=256)
    write(tmp_path / "runs/c", 0.7, learning_rate=0.1)
    write(tmp_path / "runs/d", 0.8, group_pattern=r"^(p\d+)_")
    text = read(tmp_path)
    headings = re.findall(r"\n## (jsrt: .*)", text)
    assert set(headings) == {
        "jsrt: 128 px, 16 base channels, 100 iterations",
        "jsrt: 256 px, 16 base channels, 100 iterations",
        "jsrt: 128 px, 16 base channels, 100 iterations, learning_rate 0.1",
    }
    assert len(headings) == 4
    assert text.count("Images are divided by group_pattern") == 1
    assert r"group_pattern `^(p\d+)_`." in text


def test_lengths_are_usual_where_they_are_the_datasets_own(tmp_path):
    write(tmp_path / "runs/a", 0.5, dataset="retouch")
    write(tmp_path / "runs/b", 0.6, dataset="retouch", method="supervised")
    text = read(tmp_path)
    assert len(re.findall(r"\n## retouch: [^\n]* iterations\n", text)) == 1
    assert text.count("\n## retouch: ") == 1
    write(tmp_path / "runs/c", 0.7, dataset="retouch", retina="crop")
    assert re.findall(r"\n## retouch: .*(, retina crop)", read(tmp_path)) == [", retina crop"]


def test_own_data_gets_what_there_is(tmp_path):
    write(tmp_path / "runs/a", 0.5, dataset="folder", method="supervised")
    write(tmp_path / "runs/b", 0.6, dataset="folder", method="rpg")
    text = read(tmp_path)
    table = text[text.index("| method |") :].partition("\n\n")[0].splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| `supervised`", "| `rpg`"]
    assert "–" not in text.replace(tables.LEGEND, "")  # noqa: RUF001
    assert not re.search("Table [235]|no runs|paper's|: no ", text)


def test_runs_of_another_length_are_compared_and_marked(tmp_path):
    runs = tmp_path / "runs"
    write(runs / "a", 0.5, method="supervised")
    for split in (0, 1):
        write(runs / f"b{split}", 0.6, method="fixmatch", iterations=50, split=split)
        write(runs / f"c{split}", 0.7, method="rpg", split=split)
    write(runs / "d", 0.75, method="rpg", iterations=400)
    text = read(tmp_path)
    assert text.count("\n## jsrt") == 1
    assert "100 iterations" in text
    methods = text[text.index("**Table 1.**") :]
    assert row(methods, "`fixmatch` .95, 50 steps") == ["<ins>.600</ins> ± .000", ""]
    assert row(methods, "`fixmatch` .95") == ["–", ".67"]  # noqa: RUF001
    assert row(methods, "`rpg`") == ["**.700** ± .000", ".71"]
    assert "3 runs are of another length, which the tables name: " in text
    assert "Usual options: `supervised` the defaults" not in text
    assert "`fixmatch` iterations 50" in text
    single = text[text.index("**Single options.**") :].partition("\n\n")[2].partition("\n\n")[0]
    assert "| `rpg` | iterations 100 → 400 | 3 | .700 ± .000 <small>(2)</small> | .750" in single
    assert "| +.050 <small>(1)</small> |" in single


def test_what_comes_from_files_is_shown_as_text(drawn, tmp_path):
    hostile = "<img src=x>*[a](b)*|`c`\nd"
    path = write(tmp_path / "runs/a", 0.5)
    content = json.loads(path.read_text())
    for key in ("iou_per_class", "pseudo_label_weight", "pseudo_label_precision"):
        content[key] = {hostile: 0.5, "$x_1": 0.4}
    for point in content["history"]:
        if point["pseudo_label_weight"]:
            point["pseudo_label_weight"] = point["pseudo_label_precision"] = {hostile: 0.5, "$\\bad$": 0.4}
    content["iou_percentiles"] = {"5": {hostile: 0.5}}
    content["data"] = hostile
    for split in (0, 1):
        config = content["config"] | {"k": (0.5, 0.25)[split], "split": split}
        (tmp_path / f"runs/{split}").mkdir()
        text = json.dumps(content | {"split": split, "config": config})
        (tmp_path / f"runs/{split}/result.json").write_text(text)
    text = read(tmp_path)
    assert "<img" not in text
    assert r"| &lt;img src=x&gt;\*\[a\](b)\*\|\`c\` d |" in text


def test_options_and_label_studies_are_shown_as_text(tmp_path):
    hostile = "<img src=x>*[a](b)*`c`\nd"
    write(tmp_path / "runs/a", group_pattern=hostile)
    measures = dict.fromkeys(("weight", "right", "own_right", "weighted_right", "weighted_own_right", "differ"), 0.5)
    measures |= dict.fromkeys(("differ_right", "differ_own_right"))
    study = {"run": {"method": hostile, "labeled": 6, "split": 2}, "batches": 7, "variants": {hostile: measures}}
    (tmp_path / "runs/study.json").write_text(json.dumps(study))
    text = read(tmp_path)
    assert "group_pattern `<img src=x>*[a](b)*'c' d`." in text
    assert "**`<img src=x>*[a](b)*'c' d`, N_l = 6" in text  # code: Markdown shows it as it is
    assert "<img" not in text.replace("`<img src=x>*[a](b)*'c' d`", "")


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "../elsewhere"}, {"method": ["rpg"]}, {"labeled": "3"}, {"config": {"k": "0.5"}},
        {"config": {"weighted": "--overwrite"}}, {"iou_per_class": [1]}, {"iou_per_class": {"a": "b"}},
        {"pseudo_label_weight": {"a": {}}}, {"miou": None}, {"iterations": 1.5}, {"config": 7}, {"config": [1]},
    ],
)  # fmt: skip
def test_results_of_a_wrong_type_are_left_out_and_named(tmp_path, change):
    write(tmp_path / "runs/good")
    path = write(tmp_path / "runs/bad", split=1)
    edit_json(path, **change)
    assert re.search(r"\*\*warning\*\*: .*bad/result\.json cannot be read \(.*skipped", read(tmp_path))
    path.write_text('{"dataset": ' + "[" * 100_000)
    assert re.search(r"bad/result\.json cannot be read \(it is nested too deeply\); skipped", read(tmp_path))


def test_commands_that_cannot_be_meant_say_what_is_expected(tmp_path, command):
    for folder, message in ((tmp_path, "no results below"), (tmp_path / "x", "does not exist")):
        assert message in command(report.main, folder, "--out", tmp_path / "report").status
    assert command(report.main)[0] == "error: RUNS: none given, expected folders of runs, or folders that hold some"
    write(tmp_path / "runs/good")
    (tmp_path / "file").touch()
    status, *_ = command(report.main, tmp_path / "runs", "--out", tmp_path / "file")
    assert "cannot write there; pass another --out" in status


def test_broken_files_are_named_and_skipped(tmp_path):
    write(tmp_path / "runs/good")
    short = '{"dataset": 1, "method": 2, "miou": 3}'
    for name, content in (("cut", '{"dataset": '), ("empty", "{}"), ("short", short)):
        (tmp_path / f"runs/{name}").mkdir()
        (tmp_path / f"runs/{name}/result.json").write_text(content)
    edit_json(write(tmp_path / "runs/nan"), miou=None)
    text = read(tmp_path)
    assert "# Results\n\n1 run," in text
    for name in ("cut", "empty", "short", "nan"):
        assert re.search(rf"- \*\*warning\*\*: .*runs/{name}/result.json .*skipped", text)
    assert "no labeled, split" in text


def test_two_results_for_one_cell(tmp_path, capsys):
    old, new = write(tmp_path / "runs/z", 0.5), write(tmp_path / "runs/a", 0.6)
    os.utime(old, (1, 1))
    text = read(tmp_path)
    assert row(text, "`rpg`")[0] == ".600"
    shown = capsys.readouterr().err
    for said in (shown, text):
        assert re.search(rf"two results for jsrt rpg N_l = 3 split 0 seed 0: .*{old} and .*{new}", said)


def test_the_same_file_twice_is_one_run(tmp_path):
    write(tmp_path / "runs/a")
    runs, warnings = read_results([tmp_path, tmp_path / "runs", tmp_path / "runs/a/result.json"])
    assert len(runs) == 1
    assert not warnings


def test_dirty_commits_and_other_data_are_pointed_out(tmp_path):
    write(tmp_path / "runs/a", commit="1" * 40 + "-dirty")
    write(tmp_path / "runs/b", split=1, data="206 of 247 images")
    text = read(tmp_path)
    assert "1 run is of uncommitted code (commit ends in -dirty)" in text
    assert "not of the same data: 206 of 247 images; 247 images" in text
    assert "1111111-dirty" in text


def test_folders_of_other_data_have_tables_of_their_own(tmp_path):
    """Nothing else tells them apart: --root is where they lie."""
    for name, images in (("hearts", 100), ("eyes", 60)):
        write(tmp_path / "runs" / name, dataset="folder", root=Path(name), data=f"{images} images; 40 train")
    runs, warnings = read_results([tmp_path / "runs"])
    assert (len(runs), warnings) == (2, [])
    assert len(sections(runs)) == 2
    text = read(tmp_path)
    assert "\n100 images.\n" in text
    assert "\n60 images.\n" in text


@pytest.mark.parametrize(("digests", "other"), [({"a": "1"}, False), ({"a": "2"}, True), ({"b": "1"}, True)])
def test_other_images_or_masks_of_equal_number_are_pointed_out(digests, other, tmp_path):
    for method, found in (("supervised", {"a": "1"}), ("rpg", digests)):
        edit_json(write(tmp_path / "runs" / method, method=method), division={"digests": found})
    write(tmp_path / "runs/earlier", method="fixmatch")  # results of earlier versions do not say
    edit_json(write(tmp_path / "runs/split", split=1), division={"digests": {"c": "3"}})
    assert ("not of the same images and masks as the first, is" in read(tmp_path)) == other


def test_another_division_of_the_same_data_is_no_other_data(tmp_path):
    for split in (0, 1):
        write(tmp_path / f"runs/{split}", split=split, data=f"10 volumes; fold {split} of 10: 8 to train")
    assert "not of the same data" not in read(tmp_path)


def test_a_single_validation_is_no_curve(drawn, tmp_path):
    """As of runs that test their last network: one point a method, over an axis of steps that says nothing."""
    path = write(tmp_path / "runs/a")
    content = read_json(path)
    path.write_text(json.dumps(content | {"history": content["history"][-1:]}))
    assert "validation.png" not in read(tmp_path)
    assert "1-jsrt-pseudo-labels.png" in read(tmp_path)
    write(tmp_path / "runs/b", method="supervised")
    assert "validation.png" in read(tmp_path)


def test_pictures_of_methods_side_by_side(drawn, tmp_path):
    write(tmp_path / "runs/a", method="rpg", pictures=True)
    write(tmp_path / "runs/b", method="supervised", pictures=True)
    write(tmp_path / "runs/c", method="mlds")  # without the files
    files = write_report([tmp_path / "runs"], tmp_path / "report")
    assert [path.name for path in files] == [
        "report.md", "1-jsrt-validation.png", "1-jsrt-pseudo-labels.png", "1-jsrt-pictures.png"
    ]  # fmt: skip
    assert all(path.is_file() for path in files)
    (tmp_path / "runs/a/pictures/a-truth.png").unlink()
    (tmp_path / "runs/b/pictures/b-truth.png").unlink()
    assert "pictures.png" not in read(tmp_path)
    assert not (tmp_path / "report/1-jsrt-pictures.png").exists()


def test_a_run_gets_its_page_and_a_folder_of_runs_tables(tmp_path, monkeypatch, command):
    runs = [write(tmp_path / "runs" / name, method=method).parent for name, method in (("a", "rpg"), ("b", "mlds"))]
    for run in runs:
        (run / "config.json").write_text(json.dumps(read_json(run / "result.json")["config"]))
    monkeypatch.chdir(tmp_path)

    def files(*words: object) -> list[str]:
        return command(report.main, *words).out.split()

    pages = [str(run / "report.html") for run in runs]
    assert files(*runs) == pages
    assert not (tmp_path / "report").exists()
    assert files(*runs, "--out", tmp_path / "both")[:3] == [*pages, str(tmp_path / "both/report.md")]
    assert files(tmp_path / "runs")[0] == "report/report.md"


def test_options_that_do_not_apply_to_a_method_do_not_tell_its_runs_apart(tmp_path):
    write(tmp_path / "a", method="supervised", k=0.5)
    write(tmp_path / "b", method="supervised", k=0.25, split=1, threshold=0.8)
    runs, _ = read_results([tmp_path])
    (section,) = sections(runs)
    assert len(section.main) == 2


def test_settings_ignore_where_a_run_was_made(tmp_path):
    first = Config("jsrt", image_size=128, base_channels=16)
    other = replace(first, root=Path("x"), device="cuda", split=1)
    write(tmp_path / "a")
    content = json.loads((tmp_path / "a/result.json").read_text())
    kept = {}
    for name, config in (("a", first), ("b", other)):
        kept[name] = Run(tmp_path / name, content | {"config": config.plain()}).setting
    assert kept["a"] == kept["b"]


@pytest.mark.parametrize(("places", "expected"), [([0.1, 0.1], [0.1, 0.3]), ([0.9, 1.0], [0.8, 1.0]), ([], [])])
def test_labels_are_moved_apart(places, expected):
    assert spread(places, 0.2) == pytest.approx(expected)


def test_numbers_are_written_as_in_the_paper():
    assert [decimals(value) for value in (0.7932, 1.0, -0.05, 0.0)] == [".793", "1.000", "-.050", ".000"]
    assert [decimals(value, 2) for value in (0.8, 0.95)] == [".8", ".95"]


def test_what_the_label_study_found_is_shown(tmp_path):
    write(tmp_path / "runs/a", 0.5)
    assert "Pseudo-labels beside predictions" not in read(tmp_path)
    names = ("weight", "right", "own_right", "weighted_right", "weighted_own_right", "differ", "differ_right")
    found = {"as trained": {**dict.fromkeys(names, 0.251), "differ_own_right": None}}
    run = Config("jsrt", method="rpg", labeled=6, split=2).plain()
    (tmp_path / "runs/labels.json").write_text(json.dumps({"run": run, "batches": 7, "variants": found}))
    (tmp_path / "runs/broken.json").write_text("{")
    text = read(tmp_path)
    assert "**`rpg`, N_l = 6, split 2, 7 batches**" in text
    assert "| as trained |" + " 25.1 |" * 7 + " – |" * 4 in text  # noqa: RUF001
    assert "reliability.png" not in text  # a study that has not counted by weight
    by_weight = {"assigned": [0.1, 0.2], "assigned_right": [0.5, None]}
    found["k = 5%"] = found["as trained"] | {"by_weight": by_weight}
    (tmp_path / "runs/labels.json").write_text(json.dumps({"run": run, "batches": 7, "variants": found}))
    assert "](reliability.png)" in read(tmp_path)
    assert (tmp_path / "report/reliability.png").stat().st_size > 0
