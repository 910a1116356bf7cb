"""Predictions have the size of what they are of, are the network's own, and can be read back as a data set."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from examples import predict
from examples.config import Config
from examples.data import jsrt, load
from examples.data.base import to_unit_range
from examples.evaluate import Evaluate, measure
from examples.inference import inputs
from examples.inference.inputs import Input
from examples.inference.overlay import draw_overlay
from examples.inference.trained import Labels, read_trained
from tests.examples.files import save_image
from tests.examples.tiny import small
from tests.examples.trained import write_checkpoint
from tests.examples.volumes import HEIGHT, SCANS, WIDTH, draw_volume, write_image, write_tree

SIDE = 32
LABELS = {
    "exclusive": Labels(("fluid", "lesion"), multilabel=False),
    "overlapping": Labels(("right_lung", "left_lung", "heart"), multilabel=True, fused={"lungs": (0, 1)}),
}
SIZES = [(SIDE, SIDE), (20, 50), (90, 30), (1, 7)]  # height, width
SPACING, ORIGIN, DIRECTION = (0.5, 0.25, 3.0), (1.0, -2.0, 7.5), (0, 1, 0, 1, 0, 0, 0, 0, -1)


def config(dataset: str = "folder", **changes: object) -> Config:
    return small(dataset, **{"labeled": 1, **changes})


@pytest.fixture(params=LABELS)
def labels(request) -> Labels:
    return LABELS[request.param]


@pytest.fixture
def checkpoint(labels, tmp_path) -> Path:
    return write_checkpoint(tmp_path / "run" / "best.pt", config(), labels)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.fixture
def images(tmp_path) -> Path:
    for seed, size in enumerate(SIZES):
        save_image(tmp_path / "images" / f"scan{seed}.png", picture(*size, seed))
    return tmp_path / "images"


def write_volume(path: Path, dtype: type = np.uint16) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 200, (3, 20, 44)).astype(dtype)
    volume = SimpleITK.GetImageFromArray(values)
    volume.SetSpacing(SPACING)
    volume.SetOrigin(ORIGIN)
    volume.SetDirection(DIRECTION)
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(volume, str(path))
    return values


def masks_below(folder: Path, name: str) -> list[np.ndarray]:
    """Index mask or masks of all labels."""
    return [np.array(Image.open(path)) for path in sorted(folder.rglob(f"masks/**/{name}"))]


# --- what is written


def test_masks_have_the_size_of_their_images_and_the_values_of_their_kind(
    labels, checkpoint, images, tmp_path, command
):
    out = tmp_path / "out"
    status, text, _ = command(predict.main, checkpoint, images, "--out", out)
    assert status == 0
    assert "masks of 4 of 4 files" in text
    for seed, size in enumerate(SIZES):
        masks = masks_below(out, f"scan{seed}.png")
        assert len(masks) == (3 if labels.multilabel else 1)
        assert {mask.shape for mask in masks} == {size}
        assert set(np.unique(masks)) <= ({0, 255} if labels.multilabel else {0, 1, 2})
    assert (out / "classes.txt").read_text().split() == list(labels.names)
    assert sorted(path.name for path in out.iterdir()) == ["classes.txt", "masks"]
    if not labels.multilabel:
        with Image.open(out / "masks" / "scan0.png") as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[:3] == [0, 0, 0]
            assert len({tuple(mask.getpalette()[3 * c : 3 * c + 3]) for c in range(3)}) == 3


def test_what_is_written_is_a_data_set_on_which_the_network_is_always_right(labels, checkpoint, images, tmp_path):
    """Images are prepared as in training, and masks are what they seem: any other way would cost some IoU."""
    for seed in range(4, 10):
        Image.fromarray(picture(24, 40 + seed, seed)).save(images / f"scan{seed}.png")
    predict.predict(predict.Predict(checkpoint, (images,), tmp_path))  # masks/ and classes.txt beside images/
    data = load(config(root=tmp_path))
    assert (data.class_names, data.multilabel) == (labels.names, labels.multilabel)
    evaluation = measure(Evaluate(checkpoint, "folder", root=tmp_path, part="all"))
    assert sorted(evaluation.images) == sorted(path.stem for path in images.iterdir())
    pixels = evaluation.measures.pixels()
    assert (pixels[:, 0] == pixels[:, 1]).all()
    assert (pixels[:, 0] > 0).any()
    assert evaluation.measures.pooled().tolist() == [1] * len(evaluation.classes)


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".bmp", ".PNG"])
def test_other_kinds_of_files_give_png_masks(suffix, checkpoint, tmp_path):
    path = tmp_path / f"scan{suffix}"
    Image.fromarray(picture(20, 30)).convert("RGB").save(path)
    assert predict.predict(predict.Predict(checkpoint, (path,), tmp_path / "out")) == (1, [])
    assert masks_below(tmp_path / "out", "scan.png")[0].shape == (20, 30)


def test_probabilities_are_those_that_the_masks_come_from(labels, checkpoint, images, tmp_path):
    out = tmp_path / "out"
    predict.predict(predict.Predict(checkpoint, (images,), out, probabilities=True))
    with np.load(out / "probabilities" / "scan1.npz") as saved:
        probabilities, names = saved["probabilities"].astype(float), saved["names"].tolist()
    assert names == [*labels.names] if labels.multilabel else ["background", *labels.names]
    assert probabilities.shape == (len(names), *SIZES[1])
    if labels.multilabel:
        masks = np.stack([np.array(Image.open(out / "masks" / name / "scan1.png")) for name in labels.names]) > 0
        sure = abs(probabilities - 0.5) > 1e-3
        assert sure.mean() > 0.9
        assert ((probabilities > 0.5) == masks)[sure].all()
    else:
        assert probabilities.sum(0) == pytest.approx(1, abs=2e-3)
        ids = masks_below(out, "scan1.png")[0]
        assert np.take_along_axis(probabilities, ids[None].astype(int), 0)[0] == pytest.approx(probabilities.max(0))


def test_fused_labels_are_unions(images, tmp_path):
    labels = LABELS["overlapping"]
    checkpoint = write_checkpoint(tmp_path / "best.pt", config(), labels)
    predict.predict(predict.Predict(checkpoint, (images,), tmp_path / "fine"))
    predict.predict(predict.Predict(checkpoint, (images,), tmp_path / "fused", fused=True))
    right, left, lungs = (
        np.array(Image.open(tmp_path / kind / "masks" / name / "scan1.png"))
        for kind, name in (("fine", "right_lung"), ("fine", "left_lung"), ("fused", "lungs"))
    )
    assert (lungs == np.maximum(right, left)).all()
    assert (lungs != right).any()
    assert os.listdir(tmp_path / "fused" / "masks") == ["lungs"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_a_volume_gives_a_volume_of_the_same_geometry(dtype, labels, checkpoint, tmp_path):
    values = write_volume(tmp_path / "scan.mhd", dtype)
    for z, plane in enumerate(values):
        Image.fromarray(plane.astype(np.float32)).save(tmp_path / f"plane{z}.tif")
    out = tmp_path / "out"
    options = predict.Predict(
        checkpoint, tuple(tmp_path.glob("*.*d")) + tuple(tmp_path.glob("*.tif")), out, overlays=True, probabilities=True
    )
    assert predict.predict(options) == (4, [])
    files = sorted(out.rglob("masks/**/scan.mhd"))
    assert len(files) == (3 if labels.multilabel else 1)
    for file in files:
        mask = SimpleITK.ReadImage(str(file))
        assert mask.GetPixelID() == SimpleITK.sitkUInt8
        assert (mask.GetSpacing(), mask.GetOrigin(), mask.GetDirection()) == (SPACING, ORIGIN, DIRECTION)
        planes = [np.array(Image.open(file.with_name(f"plane{z}.png"))) for z in range(3)]
        assert (SimpleITK.GetArrayFromImage(mask) == np.stack(planes)).all()
    assert len(list((out / "overlays" / "scan").glob("scan_00?.png"))) == 3
    with np.load(out / "probabilities" / "scan.npz") as saved:
        assert saved["probabilities"].shape[1:] == values.shape
    assert not list(out.rglob(".writing*"))


def test_a_flat_mhd_file_is_an_image(checkpoint, tmp_path):
    write_image(tmp_path / "scan.mhd", picture(20, 30))
    out = tmp_path / "out"
    assert predict.predict(predict.Predict(checkpoint, (tmp_path / "scan.mhd",), out, probabilities=True)) == (1, [])
    mask = SimpleITK.ReadImage(str(next(out.rglob("masks/**/scan.mhd"))))
    assert mask.GetSize() == (30, 20)
    with np.load(out / "probabilities" / "scan.npz") as saved:
        assert saved["probabilities"].shape[1:] == (20, 30)


# --- preparing


@pytest.mark.parametrize("view", ["whole", "crop", "flatten"])
def test_retouch_is_prepared_as_in_training(view, tmp_path, command):
    tree = write_tree(tmp_path / "tree", volumes=3)
    of_run = config("retouch", root=tree, retina=view, labeled=3, image_size=WIDTH)
    checkpoint = write_checkpoint(tmp_path / "best.pt", of_run, Labels(("IRF", "SRF", "PED"), multilabel=False))
    data = load(of_run)
    folders = sorted((tree / "TrainingSpectralis").iterdir())
    status, *_ = command(predict.main, checkpoint, *folders, "--out", tmp_path / "out")
    assert status == 0
    assert len(list((tmp_path / "out" / "masks").glob("*.mhd"))) == 3  # and none of reference.mhd
    net = read_trained(checkpoint).net()
    test = data.test[range(SCANS)]
    with torch.no_grad():
        logits = net(test.images)[0]
    expected = [o.placement.restore(x, multilabel=False).argmax(0) for o, x in zip(test.originals, logits, strict=True)]
    mask = SimpleITK.ReadImage(str(tmp_path / "out" / "masks" / f"{test.names[0][:8]}.mhd"))
    assert mask.GetSize() == (WIDTH, HEIGHT, SCANS)
    assert (SimpleITK.GetArrayFromImage(mask) == torch.stack(expected).numpy()).all()
    assert len(np.unique(expected)) > 1


def test_one_b_scan_as_png_is_prepared_as_that_of_a_volume(tmp_path):
    scans, _ = draw_volume(0)
    write_image(tmp_path / "scan.mhd", scans)
    Image.fromarray(scans[1]).save(tmp_path / "scan.png")
    of_run = config("retouch", retina="flatten")
    alone = inputs.read(Input(tmp_path / "scan.png", "scan"), of_run).planes[0]
    in_volume = inputs.read(Input(tmp_path / "scan.mhd", "scan"), of_run).planes[1]
    assert torch.equal(alone.square, in_volume.square)


@pytest.mark.parametrize("distributed", [True, False])
def test_jsrt_is_prepared_as_in_training(distributed, tmp_path, monkeypatch):
    monkeypatch.setattr(jsrt, "IMG_SIDE", 64)
    values = np.random.default_rng(0).integers(0, 4096, (64, 64))
    path = tmp_path / f"JPCLN001{'.IMG' if distributed else '.png'}"
    if distributed:
        values.astype(">u2").tofile(path)
    else:
        Image.fromarray((values // 16).astype(np.uint8)).save(path)
    plane = inputs.read(inputs.find_inputs([path])[0], config("jsrt")).planes[0]
    assert torch.equal(plane.square[0], to_unit_range(torch.from_numpy(jsrt.read_image(path, SIDE))))
    assert plane.image.shape == (1, 64, 64)


# --- overlays


def test_overlays_show_image_masks_and_the_names_of_what_is_there(images, tmp_path):
    labels = LABELS["overlapping"]
    checkpoint = write_checkpoint(tmp_path / "best.pt", config(), labels)
    predict.predict(predict.Predict(checkpoint, (images,), tmp_path / "out", overlays=True))
    with Image.open(tmp_path / "out" / "overlays" / "scan1.png") as overlay:
        assert overlay.width >= 384
    masks = torch.zeros(3, 500, 700, dtype=torch.bool)
    masks[1, 100:200, 100:200] = True
    plain = draw_overlay(torch.zeros(1, 500, 700), masks & False, labels.names)
    drawn = draw_overlay(torch.zeros(1, 500, 700), masks, labels.names)
    assert drawn.size == plain.size
    assert drawn.size[0] == 700
    changed = (np.array(drawn) != np.array(plain)).any(2)[:500]
    assert changed[100:200, 100:200].all()
    assert changed.sum() == 100 * 100
    edge, inside = drawn.getpixel((100, 150)), drawn.getpixel((150, 150))
    assert edge == (0x56, 0xB4, 0xE9)
    assert inside not in (edge, (128, 128, 128))
    assert draw_overlay(torch.zeros(1, 4000, 1000), torch.zeros(1, 4000, 1000) > 0, ["heart"]).size[0] == 256


# --- what goes wrong


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_damaged_files_are_named_and_the_others_predicted(damage, checkpoint, images, tmp_path, command):
    write_volume(images / "volume.mhd")
    for path in (images / "scan2.png", images / "volume.raw"):
        content = path.read_bytes()
        path.write_bytes({"cut": content[: len(content) // 2], "noise": b"no image", "empty": b""}[damage])
    np.full((5, 5), np.nan, np.float32).tofile(images / "nan.raw")
    write_image(images / "nan.mhd", np.full((5, 5), np.nan, np.float32))
    status, text, errors = command(predict.main, checkpoint, images, "--out", tmp_path / "out", "--overlays")
    assert status == 1
    assert "masks of 3 of 6 files" in text
    for name, why in (("scan2.png", "cannot be read"), ("volume.raw", "bytes of values"), ("nan.mhd", "not finite")):
        assert [line for line in errors.splitlines() if line.startswith("error: ") and name in line and why in line]
    assert {path.stem for path in (tmp_path / "out" / "masks").rglob("*.*")} == {"scan0", "scan1", "scan3"}


def test_volumes_that_cannot_be_meant_are_refused(tmp_path):
    write_image(tmp_path / "outside.mhd", np.zeros((3, 20, 44), np.uint16))
    header = tmp_path / "outside.mhd"
    header.write_text(header.read_text().replace("outside.raw", "../outside.raw"))
    with pytest.raises(ValueError, match=r"names \.\./outside\.raw as its values, expected a file in the same folder"):
        inputs.read(Input(header, "outside"), config())
    color = SimpleITK.GetImageFromArray(np.zeros((4, 5, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(color, str(tmp_path / "color.mhd"))
    with pytest.raises(ValueError, match=r"color\.mhd has 2 dimensions and 3 values \(vector of 8-bit .*\) a pixel"):
        inputs.read(Input(tmp_path / "color.mhd", "color"), config())
    write_volume(tmp_path / "fractions.mhd", np.float32)
    with pytest.raises(ValueError, match=r"fractions\.mhd holds float32, expected integers"):
        inputs.read(Input(tmp_path / "fractions.mhd", "fractions"), config("retouch"))


@pytest.mark.parametrize("suffix", [".mhd", ".mha"])
@pytest.mark.parametrize("compressed", [True, False])
def test_volumes_in_one_file_or_two_are_read(suffix, compressed, tmp_path):
    values = np.random.default_rng(0).integers(0, 200, (3, 20, 44), np.uint16)
    path = tmp_path / f"scan{suffix}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path), compressed)
    assert (SimpleITK.GetArrayFromImage(inputs.read_volume(path)) == values).all()
    upper = path.rename(path.with_suffix(suffix.upper()))  # as some scanners write it
    assert (SimpleITK.GetArrayFromImage(inputs.read_volume(upper)) == values).all()
    upper.rename(path)
    values_file = next((file for file in tmp_path.iterdir() if file != path), path)
    values_file.write_bytes(values_file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{values_file.name} holds [0-9]+ bytes of values, expected 5280"):
        inputs.read_volume(path)


def test_long_names_are_predicted_or_refused_before_anything_is(checkpoint, tmp_path, command):
    for name in ("a" * 251, "\u00e9" * 125):
        Image.fromarray(picture(9, 9)).save(tmp_path / f"{name}.png")
    status, *_ = command(predict.main, checkpoint, tmp_path, "--out", tmp_path / "out", "--overlays")
    assert status == 0
    assert {len(path.stem) for path in (tmp_path / "out" / "overlays").iterdir()} == {251, 125}
    write_image(tmp_path / f"{'v' * 248}.mhd", np.zeros((3, 9, 9), np.uint8))
    status, *_ = command(predict.main, checkpoint, tmp_path, "--out", tmp_path / "volumes")
    assert "vvv.mhd has a name of 248 bytes, too long for its masks to be named after it; shorten it to 240" in status
    assert not (tmp_path / "volumes").exists()


def test_nothing_is_written_over_without_the_flag(labels, checkpoint, images, tmp_path, command):
    out = tmp_path / "out"
    words = (checkpoint, images / "scan0.png", images / "scan1.png", "--out", out, "--overlays")
    assert command(predict.main, *words)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    status, *_ = command(predict.main, *words)
    assert status.startswith(f"error: out: {out / 'masks'}")
    assert "would be written over; pass --overwrite" in status
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*")} == before
    assert command(predict.main, *words, "--overwrite")[0] == 0
    assert command(predict.main, checkpoint, images / "scan2.png", "--out", out)[0] == 0  # beside the others
    (out / "classes.txt").write_text("other\n")
    status, *_ = command(predict.main, checkpoint, images / "scan3.png", "--out", out)
    assert "classes.txt would be written over" in status


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*.*")}


@pytest.mark.parametrize("written", range(1, 4))
def test_on_a_full_disk_every_file_is_the_old_or_the_new_one(
    written, checkpoint, images, tmp_path, monkeypatch, command
):
    """It is full after ``written`` files."""
    outs = [tmp_path / name for name in ("out", "expected")]
    for out in outs:
        assert command(predict.main, checkpoint, images, "--out", out)[0] == 0
    for file in outs[0].rglob("*.png"):
        file.write_bytes(b"old")
    flushed = []

    def fsync(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) > 2 * written:  # a file, and its folder
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    status, *_ = command(predict.main, checkpoint, images, "--out", outs[0], "--overwrite")
    assert status.startswith("error: [Errno 28] No space left on device: ")
    now, new = (contents(out).values() for out in outs)
    assert len(now) == len(new)
    assert all(mine in (b"old", theirs) for mine, theirs in zip(now, new, strict=True))
    assert sum(mine == b"old" for mine in now) == len(new) - written


@pytest.mark.parametrize("failing", ["write", "flush", "rename"])
def test_a_volume_that_cannot_be_written_leaves_the_old_one_or_none(
    failing, checkpoint, tmp_path, monkeypatch, command
):
    write_volume(tmp_path / "scan.mhd")
    out = tmp_path / "out"
    words = (checkpoint, tmp_path / "scan.mhd", "--out", out)
    assert command(predict.main, *words)[0] == 0
    before = contents(out)
    rename = os.replace

    def half(image: object, file: str, **kwargs: object) -> None:
        Path(file).write_bytes(b"half")
        raise RuntimeError("ITK ERROR:\n no space")

    flushed = []

    def flush(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) > 2:  # classes.txt and its folder
            raise OSError(28, "No space left on device")

    def rename_values_only(source: Path, target: Path) -> None:
        if str(target).endswith(".mhd"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    if failing == "write":
        monkeypatch.setattr(SimpleITK, "WriteImage", half)
    elif failing == "flush":
        monkeypatch.setattr(os, "fsync", flush)
    else:
        monkeypatch.setattr(os, "replace", rename_values_only)
    status, *_ = command(predict.main, *words, "--overwrite")
    assert status.startswith("error: ")
    if failing == "write":
        assert status.endswith("scan.mhd cannot be written: no space")
    if failing == "rename":  # then the values are new, and no old header may name them
        left = len([path for path in before if path.suffix == ".mhd"]) - 1
        assert len(list(out.rglob("*.mhd"))) == left
    else:
        assert contents(out) == before
    assert not list(out.rglob(".writing*"))


def test_inputs_that_cannot_be_meant_are_refused_before_anything_is_predicted(images, tmp_path):
    with pytest.raises(ValueError, match="images: none given"):
        inputs.find_inputs([])
    with pytest.raises(FileNotFoundError, match=r"images: .*absent\.png is not there"):
        inputs.find_inputs([images, tmp_path / "absent.png"])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"notes\.txt is of no known kind; expected .*\.mhd"):
        inputs.find_inputs([tmp_path / "notes.txt"])
    with pytest.raises(FileNotFoundError, match="holds no image"):
        inputs.find_inputs([tmp_path])
    shutil.copytree(images, tmp_path / "other")
    with pytest.raises(ValueError, match=r"images/scan0\.png and .*other/scan0\.png would both be written as scan0"):
        inputs.find_inputs([images, tmp_path / "other"])
    assert [source.name for source in inputs.find_inputs([images, images / "scan2.png"])] == [
        "scan0", "scan1", "scan2", "scan3"
    ]  # fmt: skip


def test_a_folder_that_cannot_be_made_is_named_with_what_to_do(checkpoint, images, tmp_path, command):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        status, *_ = command(predict.main, checkpoint, images, "--out", out)
        assert str(out) in status
        assert "cannot write there; pass another --out" in status


def test_options_that_cannot_be_meant_are_refused(images, tmp_path):
    exclusive = write_checkpoint(tmp_path / "exclusive.pt", config(), LABELS["exclusive"])
    overlapping = write_checkpoint(tmp_path / "overlapping.pt", config(), LABELS["overlapping"])
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"fused: .* was trained without --fuse"):
        predict.predict(predict.Predict(exclusive, (images,), out, fused=True))
    with pytest.raises(ValueError, match="probabilities: there are none of the unions"):
        predict.predict(predict.Predict(overlapping, (images,), out, fused=True, probabilities=True))
    escaping = write_checkpoint(tmp_path / "escaping.pt", config(), Labels(("../../lung",), multilabel=True))
    with pytest.raises(ValueError, match=r"a label '\.\./\.\./lung', which cannot be the name of a folder"):
        predict.predict(predict.Predict(escaping, (images,), out))
    for name in ("left\nlung", "lung ", "", "lung\udcff"):
        unfit = write_checkpoint(tmp_path / "unfit.pt", config(), Labels((name, "heart"), multilabel=False))
        with pytest.raises(ValueError, match=r"a label '.*', which cannot be a line of classes\.txt"):
            predict.predict(predict.Predict(unfit, (images,), out))
    assert not out.exists()
