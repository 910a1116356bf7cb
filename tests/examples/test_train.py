"""Every method trains through the same command and leaves the same files."""

import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import examples.engine.run
import examples.logging.pictures
from examples.config import Config, DatasetName, MethodName, PaperSchedule, paper_schedule
from examples.data import DATASETS, IGNORE_INDEX, Dataset, ImageSet
from examples.data.phantoms import chest as phantom
from examples.engine.checkpoint import load_verified
from examples.engine.evaluation import evaluate
from examples.engine.loop import train
from examples.logging.environment import git_commit
from examples.methods import METHODS
from examples.models.unet import UNet, UpBlock, recalibrate_batch_norm
from tests.examples.tiny import shrink

KEYS = {
    "dataset", "method", "labeled", "split", "seed", "iterations", "image_size", "commit", "miou", "miou_pooled",
    "iou_per_class", "iou_per_class_pooled", "iou_percentiles", "miou_unlabeled", "validation", "seconds",
    "dice_per_class", "hd95_px_per_class", "worst_images",
    "data", "division", "device", "threads", "torch", "score",
    "config", "history", "pictures", "environment", "earlier_environments",
}  # fmt: skip
MEASURES = {f"pseudo_label_{name}" for name in ("precision", "recall", "weight", "share", "true_share", "weight_share")}


@pytest.fixture
def drawn(tmp_path, monkeypatch) -> Config:
    """Leaves pictures, too, which take longer than the training."""
    for name, count in (("TRAIN", 8), ("VALIDATION", 2), ("TEST", 4)):
        monkeypatch.setattr(phantom, name, count)
    return Config(
        "phantom", out=tmp_path / "run", image_size=32, base_channels=4, map_size=16, k=0.5, iterations=4, eval_every=4
    )


@pytest.fixture
def config(drawn, monkeypatch) -> Config:
    shrink(monkeypatch.setattr)
    return drawn


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_everything(config, method):
    config = replace(config, method=method)
    summary = train(config)
    out = config.out_dir
    result = json.loads((out / "result.json").read_text())
    assert result.keys() == summary.keys() == KEYS | MEASURES
    assert result["iou_per_class"].keys() == set(phantom.CLASSES)
    assert 0 <= result["miou"] <= 1
    if method in ("supervised", "iic"):
        assert {result[measure] for measure in MEASURES} == {None}
    else:
        assert all(list(result[measure]) == [*phantom.CLASSES, "background"] for measure in MEASURES)
        assert sum(result["pseudo_label_weight_share"].values()) == pytest.approx(1)
        weights = [weight for weight in result["pseudo_label_weight"].values() if weight is not None]
        assert weights
        assert all(0 <= weight <= 1 for weight in weights)
    if method in ("nearest_neighbor", "mean_teacher", "mlds"):
        assert set(weights) == {1}
    assert json.loads((out / "config.json").read_text())["method"] == method
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "validation"} <= {line["kind"] for line in lines}
    assert lines[-1]["step"] == 4
    assert list(out.glob("events.out.tfevents.*"))
    assert result["config"]["method"] == method
    assert result["history"][-1] == {"step": 4, "miou": result["validation"], **dict.fromkeys(MEASURES)}
    for name in ("last.pt", "best.pt"):
        checkpoint = load_verified(out / name)
        UNet(1, 5, config.base_channels).load_state_dict(checkpoint["model"])
        assert checkpoint["config"]["method"] == method


@pytest.mark.parametrize(("method", "columns"), [("supervised", 3), ("rpg", 5)])
def test_overlays_have_a_column_for_each_map(drawn, method, columns, monkeypatch):
    seen = []
    monkeypatch.setattr(examples.logging.pictures.plt, "close", lambda figure: seen.append(figure))
    pictures = train(replace(drawn, method=method, iterations=1))["pictures"]
    axes = [axis for axis in seen[0].axes if axis.get_label() != "<colorbar>"]
    assert len(axes) == 4 * columns
    with Image.open(drawn.out_dir / "overlays.png") as picture:
        assert picture.width > picture.height / 2
    assert pictures
    for files in pictures.values():
        for file in files.values():
            with Image.open(drawn.out_dir / file) as picture:
                assert picture.size == (192, 192)


def test_another_seed_is_another_run(config, tmp_path):
    """That the same seed is the same run, resumed and repeated ones show."""
    first, other = train(config), train(replace(config, out=tmp_path / "other", seed=1))
    assert first["pseudo_label_weight"] != other["pseudo_label_weight"]


def test_the_default_lengths_are_passes_over_the_unlabeled_images(config, monkeypatch):
    assert [paper_schedule(name) for name in ("jsrt", "retouch")] == [(100, 2), (50, 5)]
    monkeypatch.setattr(examples.engine.run, "paper_schedule", lambda dataset: PaperSchedule(3, 2))
    monkeypatch.setattr(examples.engine.run, "EVAL_PASSES", 2)
    result = train(replace(config, method="supervised", iterations=None, eval_every=None))
    assert result["iterations"] == 3 * 8 / 2
    assert [point["step"] for point in result["history"] if point["miou"] is not None] == [8, 12]


@pytest.mark.parametrize("method", ["fixmatch", "rpg_plus"])
def test_held_back_labels_do_not_reach_the_method(config, method, tmp_path, monkeypatch):
    """Other labels of the unlabeled images change what is logged, and nothing else."""
    config = replace(config, method=method, threshold=0.5)  # fixmatch keeps every prediction
    honest = train(config)
    load = DATASETS["phantom"]

    def mislabeled(config: Config):
        data = load(config)
        return replace(data, unlabeled=replace(data.unlabeled, labels=1 - data.unlabeled.labels))

    monkeypatch.setitem(DATASETS, "phantom", mislabeled)
    fooled = train(replace(config, out=tmp_path / "fooled"))
    assert honest["iou_per_class"] == fooled["iou_per_class"]
    assert honest["pseudo_label_weight"] == fooled["pseudo_label_weight"]
    assert honest["pseudo_label_precision"] != fooled["pseudo_label_precision"]


def test_double_length(config):
    assert train(replace(config, method="supervised", double_length=True))["iterations"] == 8


@pytest.mark.parametrize(
    "changes", [{"weighted": False}, {"cutout": "ignore"}, {"batch_norm": "shared"}, {"map_size": None}], ids=str
)
def test_ablations_change_what_is_trained(config, changes, tmp_path):
    config = replace(config, iterations=2, threshold=0.5)
    usual = train(config)
    other = train(replace(config, out=tmp_path / "other", **changes))
    assert usual["pseudo_label_weight"] != other["pseudo_label_weight"] or usual["miou"] != other["miou"]
    assert other["config"] | {"out": None} == usual["config"] | {"out": None} | changes


def test_ignored_pixels_are_not_evaluated():
    """A prediction there is neither right nor wrong."""
    masks = torch.zeros(1, 1, 2, 4, dtype=torch.int8)
    masks[..., :2] = 1
    labels = masks.clone()
    labels[:, :, 1] = IGNORE_INDEX
    images = ImageSet(torch.ones(1, 1, 2, 4), labels, ("a",))
    data = Dataset(images, images, images, images, ("first",), (), True, "")

    class Net(torch.nn.Module):
        def forward(self, images):
            logits = masks.float() * 2 - 1
            logits[..., 1, :] = 1  # wrong at half of the ignored pixels
            return logits, images

    assert evaluate(Net(), images, data).per_class().tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 100}, "image_size: got 100, expected a multiple of 16"),
        ({"map_size": 64}, "map_size: got 64, expected at most --image-size 32"),
        ({"k": 7000}, r"k: got 7000, expected 1 to pool_size \* map_size\^2 = 768, or a share"),
        ({"k": 1.5}, "k: got 1.5, expected a share"),
        ({"labeled": 0}, "labeled: got 0, expected 1 or more"),
        ({"threshold": 0.3}, "threshold: got 0.3"),
        ({"seed": -1}, "seed: got -1, expected 0 or more, and less than"),
        ({"seed": 2**32}, "seed: got 4294967296, expected 0 or more, and less than"),
        ({"iterations": 0}, "iterations: got 0, expected 1 or more"),
        ({"eval_every": 0}, "eval_every: got 0, expected 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0, expected more than 0, and finite"),
    ],
)
def test_bad_values_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


def test_names_on_the_command_line_are_those_registered():
    assert set(get_args(MethodName)) == set(METHODS)
    assert set(get_args(DatasetName)) == set(DATASETS)


def test_commit_is_known_or_said_not_to_be():
    assert git_commit() == "unknown" or len(git_commit().removesuffix("-dirty")) == 40


def test_up_block_is_a_convolution_over_both_inputs():
    block = UpBlock(4, 4, 4)
    below, skip = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 8, 8)
    upsampled = F.interpolate(below, scale_factor=2, mode="bilinear")
    weight = torch.cat([block.from_below.weight, block.from_skip.weight], dim=1)
    expected = block.rest(F.conv2d(torch.cat([upsampled, skip], dim=1), weight, padding=1))
    assert torch.allclose(block(below, skip), expected, atol=1e-5)


def test_settled_statistics_are_those_of_the_batches_alone():
    net = UNet(1, 2, 4)
    net(100 * torch.randn(2, 1, 32, 32))  # forgotten
    images = torch.randn(4, 1, 32, 32)
    recalibrate_batch_norm(net, [images])
    net.eval()
    evaluated, _ = net(images)
    net.train()
    trained, _ = net(images)
    assert (evaluated - trained).abs().mean() < 0.05  # variances are unbiased in one and not in the other
