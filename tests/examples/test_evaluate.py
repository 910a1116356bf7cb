"""What is measured of a checkpoint is what its run measured, and what the files of truth and prediction say."""

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from examples import evaluate
from examples.config import Config
from examples.data import Dataset, jsrt, load
from examples.data.folder.dataset import load_labeled
from examples.data.phantoms import chest
from examples.engine.metrics import surface_distance
from examples.inference import evaluation
from examples.inference.evaluation import Evaluate, RemappedOutputs, match_outputs, measure
from examples.inference.measures import Measures
from examples.inference.trained import Labels, read_trained
from examples.train import train
from tests.examples.files import read_json, real_data, save_image
from tests.examples.tiny import small, tiny
from tests.examples.trained import write_checkpoint
from tests.examples.volumes import SCANS, draw_volume, write_image, write_tree, write_volume

SIDE = 32
NAN = math.nan


pytestmark = pytest.mark.usefixtures("shrunk")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def config(dataset: str = "folder", **changes: object) -> Config:
    return small(dataset, **{"labeled": 1, **changes})


def write_folder(root: Path, names: tuple[str, ...] = (), count: int = 6) -> Path:
    """Images of 30 x 20 pixels; a mask for each of ``names``, the first larger than the second, or else class maps."""
    rng = np.random.default_rng(0)
    for i in range(count):
        masks = np.zeros((max(2, len(names)), 20, 30), np.uint8)
        for c in range(len(masks)):
            masks[c, 2 + c : 12 - c, 3 + 12 * (c % 2) : 12 + 12 * (c % 2) + i] = 255
        ids = np.where(masks[0] > 0, 1, 2 * (masks[1] > 0)).astype(np.uint8)
        files = {f"masks/{name}": mask for name, mask in zip(names, masks, strict=False)} or {"masks": ids}
        for folder, values in {"images": rng.integers(0, 255, ids.shape, np.uint8), **files}.items():
            save_image(root / folder / f"p{i}.png", values)
    return root


# --- the same as the run's own


@pytest.mark.parametrize("dataset", ["phantom", "phantom_exclusive", "folder", "labels"])
def test_the_iou_is_that_of_the_runs_own_result(dataset, tmp_path):
    if dataset in ("folder", "labels"):
        root = write_folder(tmp_path / "data", ("left_lung", "right_lung") if dataset == "labels" else ())
        of_run = replace(tiny(tmp_path / "run"), dataset="folder", root=root, labeled=2)
    else:
        of_run = replace(tiny(tmp_path / "run"), dataset=dataset)
    train(replace(of_run, iterations=6))
    result = read_json(tmp_path / "run" / "result.json")
    measured = measure(Evaluate(tmp_path / "run"))
    for iou, expected in (
        (measured.measures.per_class(), result["iou_per_class"]),
        (measured.measures.pooled(), result["iou_per_class_pooled"]),
    ):
        mine = dict(zip(measured.classes, iou.tolist(), strict=True))
        assert {name: None if math.isnan(value) else value for name, value in mine.items()} == expected
    assert any(expected.values())
    assert measure(Evaluate(tmp_path / "run" / "last.pt", overwrite=True)).images == measured.images


@pytest.fixture(scope="module")
def finished(shrunk, tmp_path_factory) -> Path:
    """A folder with a finished run on the images of ``data`` in it."""
    folder = tmp_path_factory.mktemp("finished")
    root = write_folder(folder / "data", count=14)
    train(replace(tiny(folder / "run"), dataset="folder", root=root, labeled=2, iterations=2))
    return folder


@pytest.fixture
def later(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "later")
    return tmp_path / "later"


def measure_later(later: Path, **options: object) -> evaluation.Evaluation:
    return measure(Evaluate(later / "run", root=later / "data", overwrite=True, **options))


def test_images_added_after_a_run_change_none_of_its_parts(later):
    """Drawn anew, the division would test images that were learned from."""
    result = read_json(later / "run" / "result.json")
    of_run = result["division"]
    assert of_run["unlabeled"]["images"] == 14 - len(of_run["validation"]) - len(of_run["test"])
    before = measure_later(later)
    for name in ("p14", "a", "p00"):
        for folder in ("images", "masks"):
            shutil.copy(later / "data" / folder / "p1.png", later / "data" / folder / f"{name}.png")
    drawn = load(config(root=later / "data", labeled=2))
    assert {*drawn.test.names} & {*of_run["labeled"], *of_run["validation"], "p14", "a", "p00"}
    for part in ("labeled", "validation", "test"):
        assert list(measure_later(later, part=part).images) == of_run[part]
    after = measure_later(later)
    assert after.measures.per_image().nan_to_num(-1).equal(before.measures.per_image().nan_to_num(-1))
    assert after.found.endswith("as in the run; 3 images with labels are in no part of the run, and are left out")
    drawn_anew = measure(Evaluate(later / "run", split=3, overwrite=True))
    used = {*drawn_anew.images} & {*of_run["labeled"], *of_run["validation"]}
    assert drawn_anew.found.endswith(f"{len(used)} of these images were labeled or validation images of the run")


@pytest.mark.parametrize("change", ["image", "mask", "pixel"])
def test_a_test_of_other_images_than_the_runs_is_refused(change, later):
    name = read_json(later / "run" / "result.json")["division"]["test"][1]
    mask = later / "data" / "masks" / f"{name}.png"
    if change == "pixel":
        values = np.array(Image.open(mask))
        values[0, 0] = 2  # lost when the mask is brought to the size that is trained at
        Image.fromarray(values).save(mask)
    else:
        mask.unlink()
    if change == "image":
        (later / "data" / "images" / f"{name}.png").unlink()
    fault = "there with another mask than then" if change == "pixel" else "not there"
    with pytest.raises(ValueError, match=f"root: 1 of the . test images of the run are {fault}, such as {name}; bring"):
        measure_later(later)
    assert measure_later(later, part="validation").images


def test_volumes_added_after_a_run_change_none_of_its_parts(tmp_path):
    tree = write_tree(tmp_path / "tree", volumes=4)
    of_run = config("retouch", root=tree, labeled=3, image_size=64)
    data = load(of_run)
    checkpoint = write_checkpoint(tmp_path / "best.pt", of_run, Labels(("IRF", "SRF", "PED"), multilabel=False), data)
    write_volume(tree / "TrainingSpectralis" / "TRAIN001", 1)
    assert load(of_run).test.names != data.test.names
    measured = measure(Evaluate(checkpoint, overwrite=True))
    assert measured.images == data.test.names
    assert f"; {SCANS} images with labels are in no part of the run" in measured.found
    folder = next(tree.rglob(data.test.names[0][:8]))
    write_image(folder / "reference.mhd", draw_volume(99)[1][::-1])
    with pytest.raises(ValueError, match=f"[0-9] of the {SCANS} test images of the run are there with another mask"):
        measure(Evaluate(checkpoint, overwrite=True))


# --- what is measured


def test_measures_are_those_of_the_masks_and_what_there_is_not_is_nan():
    masks = torch.zeros(4, 8, 9, dtype=torch.bool)
    masks[0, 1:5, 1:5] = masks[1, 2:7, 3:6] = masks[2, 0:2, 0:2] = True  # and the last is empty
    big, other, small, empty = masks
    prediction = torch.stack([torch.stack([big, small, empty]), torch.stack([other, empty, empty])])
    truth = torch.stack([torch.stack([other, empty, empty]), torch.stack([other, small, empty])])
    measures = Measures([(0.5, 2.0), None])
    for one in (slice(0, 1), slice(1, 2)):
        measures.update(prediction[one], truth[one])
    both, union = (big & other).sum().item(), (big | other).sum().item()
    distances = [*surface_distance(big.numpy(), other.numpy(), (1, 1))]
    distances += surface_distance(big.numpy(), other.numpy(), (0.5, 2.0))
    nothing = [NAN] * 4
    expected = [
        [[both / union, 2 * both / (both + union), *distances], [0, 0, *nothing], [NAN, NAN, *nothing]],
        [[1, 1, 0, 0, NAN, NAN], [0, 0, *nothing], [NAN, NAN, *nothing]],
    ]
    assert measures.values() == pytest.approx(np.array(expected), nan_ok=True)
    assert measures.pixels().tolist() == [[[16, 4, 0], [15, 0, 0]], [[15, 0, 0], [15, 4, 0]]]


class Fixed(nn.Module):
    """Gives the same masks whatever it sees; the network of a checkpoint, in its place."""

    def __init__(self, masks: Tensor):
        super().__init__()
        self.masks = masks

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        return (self.masks.float() * 2 - 1).expand(len(images), -1, -1, -1), None


def test_the_table_counts_what_is_missed_and_what_is_not_there(tmp_path, monkeypatch, command):
    names = ("everywhere", "missed", "nowhere")
    root = write_folder(tmp_path / "data", names)
    for path in (root / "masks" / "nowhere").iterdir():
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(root / "masks" / "everywhere" / "p0.png")
    (root / "classes.txt").write_text("\n".join(names))
    checkpoint = write_checkpoint(tmp_path / "best.pt", config(root=root), Labels(names, multilabel=True))
    masks = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    masks[0] = True
    monkeypatch.setattr(evaluation, "match_outputs", lambda net, labels, data: Fixed(masks))
    status, text, _ = command(evaluate.main, checkpoint, "--part", "all", "--spacing", "0.5", "0.25")
    assert status == 0
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["class"][:3] == ["images", "missed", "false"]
    assert rows["everywhere"][:3] == ["5", "0", "1"]
    assert rows["missed"] == ["6", "6", "0", *["0.000"] * 4, *["-"] * 4]
    assert rows["nowhere"] == ["0", "0", "0", *["-"] * 8]
    halves = [float(value) / 2 for value in rows["everywhere"][3:7]]  # nowhere has no mean
    assert [float(value) for value in rows["mean"][:4]] == pytest.approx(halves, abs=1e-3)
    lines = rows_of(tmp_path / "evaluation-folder-all.csv")
    assert len(lines) == 6 * 3
    by = {(line["image"], line["class"]): line for line in lines}
    assert by["p0", "everywhere"]["iou"] == "0"
    assert by["p0", "everywhere"]["assd_px"] == "nan"
    assert by["p0", "nowhere"]["dice"] == "nan"
    truth = np.array(Image.open(root / "masks" / "everywhere" / "p3.png")) > 0
    line = by["p3", "everywhere"]
    assert float(line["iou"]) == pytest.approx(truth.mean(), rel=1e-5)
    assert (line["truth_pixels"], line["predicted_pixels"]) == (str(truth.sum()), "600")
    expected = surface_distance(np.ones_like(truth), truth, (0.5, 0.25))
    assert [float(line["assd_mm"]), float(line["hd95_mm"])] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("known", [True, False])
def test_spacing_comes_from_the_headers_of_volumes(known, tmp_path):
    tree = write_tree(tmp_path / "tree", volumes=3)
    if known:
        for number, path in enumerate(sorted(tree.rglob("oct.mhd"))):
            path.write_text(path.read_text().replace("ElementType", f"ElementSpacing = 2 {number + 3} 9\nElementType"))
    of_run = config("retouch", root=tree, labeled=3, image_size=64)
    data = load(of_run)
    spacings = evaluation.spacings_of(data.test.names, data, of_run, None)
    number = int(data.test.names[0][5:8]) - 25
    assert spacings == [(number + 3, 2) if known else None] * SCANS  # rows, columns
    checkpoint = write_checkpoint(tmp_path / "best.pt", of_run, Labels(("IRF", "SRF", "PED"), multilabel=False), data)
    for part in ("test", "labeled"):
        lines = rows_of(measure(Evaluate(checkpoint, part=part)).csv)
        there = [line for line in lines if line["assd_px"] != "nan"]
        assert there
        assert all((line["assd_mm"] != "nan") == known for line in there)


def test_the_film_of_jsrt_has_a_known_side(tmp_path):
    data = load(config("phantom"))
    assert evaluation.spacings_of(["a"], data, config("jsrt", image_size=512), None) == [pytest.approx((0.7, 0.7))]
    assert evaluation.spacings_of(["a"], data, config("jsrt"), (1.0, 2.0)) == [(1.0, 2.0)]
    assert evaluation.spacings_of(["a"], data, config("phantom"), None) == [None]


# --- other data


def test_labels_of_other_data_are_found_by_their_names(tmp_path):
    """What the network says about a label must not depend on where that label stands in another data set."""
    names = ("right_lung", "left_lung", "heart")
    trained = Labels(names, multilabel=True, fused={"lungs": (0, 1)})
    checkpoint = write_checkpoint(tmp_path / "best.pt", config("phantom"), trained)
    both = write_folder(tmp_path / "both", names)  # read in the order of the alphabet
    other = measure(Evaluate(checkpoint, "folder", root=both, part="all", csv=tmp_path / "both.csv"))
    assert other.classes == ("lungs",)  # fused as in training
    write_checkpoint(tmp_path / "plain.pt", config("phantom"), replace(trained, fused=None))
    plain = measure(Evaluate(tmp_path / "plain.pt", "folder", root=both, part="all", csv=tmp_path / "plain.csv"))
    assert plain.classes == ("heart", "left_lung", "right_lung")
    (both / "classes.txt").write_text("\n".join(names))
    ordered = measure(Evaluate(tmp_path / "plain.pt", "folder", root=both, part="all", csv=tmp_path / "o.csv"))
    assert ordered.classes == names
    assert torch.equal(plain.measures.pooled(), ordered.measures.pooled().flip(0)[[0, 1, 2]])
    few = write_folder(tmp_path / "few", ("heart", "lungs"))  # one of three, and one that is fused
    known = measure(Evaluate(checkpoint, "folder", root=few, part="all", csv=tmp_path / "few.csv"))
    assert known.classes == ("heart", "lungs")


def test_outputs_of_unions_are_the_unions_of_outputs():
    masks = torch.rand(4, 5, 5) > 0.6
    labels = Labels(("a", "b", "c", "d"), multilabel=True, fused={"ab": (0, 1)})
    data = replace(load(config("phantom")), class_names=("d", "ab"))
    logits = match_outputs(Fixed(masks), labels, data)(torch.zeros(1, 1, 5, 5))[0]
    assert torch.equal(logits[0] > 0, torch.stack([masks[3], masks[0] | masks[1]]))


def test_classes_in_another_order_keep_their_background():
    masks = torch.eye(3)[:, :, None] > 0  # background, a, b
    data = replace(load(config("phantom_exclusive")), class_names=("b", "a"))
    net = match_outputs(Fixed(masks), Labels(("a", "b"), multilabel=False), data)
    assert isinstance(net, RemappedOutputs)
    assert torch.equal(net(torch.zeros(1, 1, 3, 1))[0][0] > 0, masks[[0, 2, 1]])


@pytest.mark.parametrize(
    ("names", "multilabel", "message"),
    [
        (("right_lung", "left_lung"), False, "it has labels that may overlap, the network classes that exclude"),
        (("right_lung", "left_lung"), True, "but heart is in one of them alone"),
    ],
)
def test_networks_for_other_labels_are_refused(names, multilabel, message):
    with pytest.raises(ValueError, match=message):
        match_outputs(nn.Identity(), Labels(names, multilabel), load(config("phantom")))


def test_networks_of_more_classes_than_there_are_to_judge_are_refused():
    data: Dataset = replace(load(config("phantom_exclusive")), class_names=("a",))
    with pytest.raises(ValueError, match="but b is in one of them alone"):
        match_outputs(nn.Identity(), Labels(("a", "b"), multilabel=False), data)


# --- which images


def test_all_are_those_with_labels_each_once(tmp_path):
    root = write_folder(tmp_path / "data", ("left_lung", "right_lung"), count=7)
    for name in ("left_lung", "right_lung"):
        (root / "masks" / name / "p6.png").unlink()
    data = load(config(root=root))
    assert "p6" in data.unlabeled.names
    assert set(load_labeled(config(root=root))[0].test.names) == {f"p{i}" for i in range(6)}
    chosen = evaluation.labeled_images(data)
    assert sorted(name for part in chosen for name in part.names) == [f"p{i}" for i in range(6)]
    for part in chosen:
        for i, name in enumerate(part.names):
            assert part[[i]].names == (name,)


def test_no_name_is_counted_twice_where_parts_overlap():
    data = load(config("phantom"))
    data = replace(data, validation=data.unlabeled[range(5)])
    names = [name for part in evaluation.labeled_images(data) for name in part.names]
    assert len(names) == len(set(names)) == chest.TRAIN + chest.TEST


# --- what goes wrong


def test_the_csv_file_is_not_written_over_without_the_flag(tmp_path, command):
    root = write_folder(tmp_path / "data")
    labels = Labels(("class1", "class2"), multilabel=False)
    checkpoint = write_checkpoint(tmp_path / "best.pt", config(root=root), labels, load(config(root=root)))
    path = tmp_path / "evaluation-folder-test.csv"
    path.write_text("mine")
    status, *_ = command(evaluate.main, checkpoint)
    assert status == f"error: csv: {path} is there; pass --overwrite or another --csv"
    assert path.read_text() == "mine"
    assert command(evaluate.main, checkpoint, "--csv", tmp_path / "new" / "other.csv")[0] == 0
    assert command(evaluate.main, checkpoint, "--overwrite")[0] == 0
    assert path.read_bytes() == (tmp_path / "new" / "other.csv").read_bytes()


def test_a_csv_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, command, monkeypatch):
    root = write_folder(tmp_path / "data")
    labels = Labels(("class1", "class2"), multilabel=False)
    checkpoint = write_checkpoint(tmp_path / "best.pt", config(root=root), labels, load(config(root=root)))
    (tmp_path / "file").touch()
    monkeypatch.setattr(evaluation, "evaluate", lambda *args: pytest.fail("it was measured first"))
    status, *_ = command(evaluate.main, checkpoint, "--csv", tmp_path / "file" / "a.csv")
    assert "cannot write there; pass another --csv" in status


def test_options_that_cannot_be_meant_are_refused(tmp_path, command):
    labels = Labels(jsrt.CLASSES, multilabel=True)
    checkpoint = write_checkpoint(tmp_path / "best.pt", config("jsrt", root=tmp_path / "gone", labeled=3), labels)
    with pytest.raises(ValueError, match=r"spacing: got \(0\.0, 1\.0\), expected two lengths in mm"):
        Evaluate(checkpoint, spacing=(0.0, 1.0))
    assert "gone is not a folder" in command(evaluate.main, checkpoint)[0]


def test_jsrt(tmp_path):
    root = real_data("jsrt")
    labels = Labels(jsrt.CLASSES, multilabel=True)
    of_run = config("jsrt", labeled=3)
    checkpoint = write_checkpoint(tmp_path / "best.pt", of_run, labels, load(replace(of_run, root=root)))
    measured = measure(Evaluate(checkpoint, root=root, part="validation"))
    assert len(measured.images) == 5
    trained = read_trained(checkpoint)
    assert trained.labels == labels
    lines = rows_of(measured.csv)
    ratios = {float(line["assd_mm"]) / float(line["assd_px"]) for line in lines if float(line["assd_px"]) > 0}
    assert all(ratio == pytest.approx(358.4 / SIDE, rel=1e-4) for ratio in ratios)
