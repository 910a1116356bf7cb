"""RETOUCH: volumes of any form are read as they are, faults are named, folds keep volumes whole."""

import json
import re
import shutil
import tracemalloc
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.config import Config, MethodName
from examples.data import load
from examples.data.base import Dataset
from examples.data.check import Check, check_retouch
from examples.data.resize import Placement
from examples.data.retouch import dataset as retouch
from examples.data.retouch import index as retouch_index
from examples.data.retouch.dataset import deal
from examples.data.retouch.index import survey
from examples.data.retouch.retina import find_retina, placement, scale
from examples.methods import METHODS
from examples.train import train
from tests.examples.files import real_data
from tests.examples.tiny import shrink
from tests.examples.volumes import HEIGHT, SCANS, WIDTH, draw_volume, write_image, write_tree, write_volume

OPTIONS = {"image_size": WIDTH, "map_size": 16, "k": 0.5}
FORMS = [
    pytest.param(np.uint16, {}, id="16-bit"),
    pytest.param(np.uint8, {}, id="8-bit"),
    pytest.param(np.uint16, {"big_endian": True}, id="16-bit-big-endian"),
    pytest.param(np.uint8, {"big_endian": True}, id="8-bit-big-endian"),
    pytest.param(np.uint16, {"compressed": True}, id="16-bit-compressed"),
    pytest.param(np.uint8, {"compressed": True}, id="8-bit-compressed"),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Ten volumes, which no test changes."""
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def own_tree(tmp_path) -> Path:
    return write_tree(tmp_path / "tree", volumes=3)


def load_tree(root: Path | None, **changes: object) -> Dataset:
    return load(Config("retouch", root=root, **{**OPTIONS, **changes}))


def volumes_of(names: tuple[str, ...]) -> set[str]:
    return {name.rpartition("_")[0] for name in names}


# --- reading


@pytest.mark.parametrize(("dtype", "form"), FORMS)
def test_every_form_is_read_as_written(dtype, form, tmp_path):
    scans, references = write_volume(tmp_path / "Spectralis" / "TRAIN025", dtype=dtype, **form)
    found = survey(tmp_path, "spectralis")
    assert not found.errors
    (volume,) = found.volumes
    assert (volume.id, volume.size, volume.type) == ("TRAIN025", (WIDTH, HEIGHT, SCANS), np.dtype(dtype).name)
    for scan in range(SCANS):
        assert np.array_equal(volume.read_scan(scan), scans[scan])
        assert np.array_equal(volume.read_reference(scan), references[scan])
        assert volume.pixels[scan] == tuple((references[scan] == c).sum() for c in (1, 2, 3))


@pytest.mark.parametrize(
    ("folder", "vendor"),
    [
        ("TrainingSpectralis/TRAIN025", "spectralis"),
        ("RETOUCH-TrainingSet-Cirrus/TRAIN001", "cirrus"),
        ("a/b/RETOUCH-TrainingSet-Topcon/c/TRAIN049", "topcon"),
        ("TrainingCirrus/TRAIN030", "cirrus"),  # the folder's word counts for more than the id
        ("spectralis-and-cirrus/TRAIN003", "cirrus"),  # a word for both counts for nothing
        ("TRAIN048", "spectralis"),
        ("TRAIN024", "cirrus"),
        ("TRAIN070", "topcon"),
    ],
)
def test_vendors_are_told_by_folder_then_id(folder, vendor, tmp_path):
    write_volume(tmp_path / folder)
    assert [volume.id for volume in survey(tmp_path, vendor).volumes] == [Path(folder).name]
    with pytest.raises(FileNotFoundError, match=f"but 1 of {vendor.capitalize()}; pass another --vendor or --root"):
        survey(tmp_path, next(other for other in retouch_index.VENDORS if other != vendor))


def test_the_root_may_be_the_vendors_folder(tmp_path):
    write_volume(tmp_path / "TrainingCirrus" / "TRAIN099")
    assert survey(tmp_path / "TrainingCirrus", "cirrus").volumes


def test_test_volumes_have_no_reference_and_are_left_out(own_tree):
    folder = own_tree / "RETOUCH-TestSet-Spectralis" / "TEST001"
    write_volume(folder)
    (folder / "reference.mhd").unlink()
    found = survey(own_tree, "spectralis")
    assert len(found.volumes) == 3
    assert not found.errors
    assert found.notes == ["1 volumes of the test set, which have no reference, are left out"]


def test_hidden_folders_hold_no_volumes(own_tree):
    """Such as one that write_phantom was killed in, or what a file system keeps beside its files."""
    for folder in (own_tree / ".writing-x" / "TRAIN031", own_tree / "TrainingSpectralis" / "TRAIN032" / ".copy"):
        write_volume(folder)
        (folder / "reference.mhd").unlink()
    found = survey(own_tree, "spectralis")
    assert len(found.volumes) == 3
    assert not [error for error in found.errors if "TRAIN031" in error]
    assert [error.split(str(own_tree))[1] for error in found.errors] == [
        "/TrainingSpectralis/TRAIN032/oct.mhd is missing"
    ]


# --- faults


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("dtype", "form"), FORMS)
@pytest.mark.parametrize("name", ["oct", "reference"])
def test_cut_values_are_refused(dtype, form, name, tmp_path):
    write_volume(tmp_path / "TRAIN025", dtype=dtype, **form)
    raw = tmp_path / "TRAIN025" / f"{name}.{'zraw' if form.get('compressed') else 'raw'}"
    cut(raw)
    (error,) = survey(tmp_path, "spectralis").errors
    assert error.startswith(f"{raw} holds ")
    assert "is it cut?" in error
    assert "\n" not in error


def damage(path: Path) -> None:
    values = bytearray(path.read_bytes())
    values[len(values) // 2] ^= 255
    path.write_bytes(values)


def change_header(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def references(change) -> np.ndarray:
    values = draw_volume(0)[1]
    change(values)
    return values


FAULTS = {
    "missing reference": (lambda f: (f / "reference.mhd").unlink(), r"TRAIN025/reference\.mhd is missing"),
    "missing oct": (lambda f: (f / "oct.mhd").unlink(), r"TRAIN025/oct\.mhd is missing"),
    "empty folder": (lambda f: [path.unlink() for path in f.iterdir()], r"TRAIN025/oct\.mhd is missing"),
    "missing values": (lambda f: (f / "oct.raw").unlink(), r"oct\.mhd names oct\.raw as its values, which is missing"),
    "longer values": (
        lambda f: (f / "oct.raw").write_bytes((f / "oct.raw").read_bytes() * 2),
        r"oct\.raw holds 49152 bytes of values, expected 24576 \(64 x 48 x 4 of uint16\); is it of another volume\?",
    ),
    "no header": (lambda f: (f / "oct.mhd").write_text("nonsense"), r"oct\.mhd cannot be read"),
    "half a header": (
        lambda f: (f / "oct.mhd").write_text("NDims = 3\nElementDataFile = oct.raw\n"),
        r"oct\.mhd cannot be read",
    ),
    "binary header": (lambda f: (f / "reference.mhd").write_bytes(bytes(range(256))), r"reference\.mhd cannot be read"),
    "other sizes": (
        lambda f: write_image(f / "reference.mhd", np.zeros((SCANS, HEIGHT, WIDTH + 1), np.uint8)),
        r"reference\.mhd is 65 x 48 x 4 and oct\.mhd beside it 64 x 48 x 4; expected the same",
    ),
    "values beyond 3": (
        lambda f: write_image(f / "reference.mhd", references(lambda v: np.put(v, v[0].size * 2 + 5, 7))),
        r"reference\.mhd holds the value 7 \(first in B-scan 2\), expected 0 to 3: background, IRF, SRF, PED",
    ),
    "fractions": (
        lambda f: write_image(f / "oct.mhd", np.zeros((SCANS, HEIGHT, WIDTH), np.float32)),
        r"oct\.mhd holds float32, expected uint8 or uint16",
    ),
    "two dimensions": (
        lambda f: write_image(f / "oct.mhd", np.zeros((HEIGHT, WIDTH), np.uint8)),
        r"oct\.mhd has 2 dimensions, expected 3",
    ),
    "no B-scans": (
        lambda f: change_header(f / "oct.mhd", f"{WIDTH} {HEIGHT} {SCANS}", f"{WIDTH} {HEIGHT} 0"),
        r"oct\.mhd is empty \(64 x 48 x 0\), expected 1 or more pixels along every side",
    ),
    "values of another volume": (
        lambda f: change_header(f / "reference.mhd", "reference.raw", "../TRAIN026/reference.raw"),
        r"reference\.mhd names \.\./TRAIN026/reference\.raw as its values, expected a file in the same folder",
    ),
    "values anywhere": (
        lambda f: change_header(f / "reference.mhd", "reference.raw", str(f.parent / "TRAIN026" / "reference.raw")),
        r"TRAIN026/reference\.raw as its values, expected a file in the same folder",
    ),
    "absurd sizes": (
        lambda f: change_header(f / "oct.mhd", f"{WIDTH} {HEIGHT} {SCANS}", "4194304 4194304 1048576"),
        r"oct\.mhd says that it is 4194304 x 4194304 x 1048576, more than can be read",
    ),
    "twice": (
        lambda f: shutil.copytree(f, f.parent / "copy" / f.name),
        r"TRAIN025 and .*copy/TRAIN025 are both TRAIN025; keep one below --root",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_in_one_line(fault, own_tree):
    spoil, message = FAULTS[fault]
    spoil(own_tree / "TrainingSpectralis" / "TRAIN025")
    with pytest.raises(ValueError, match=message) as refused:
        load_tree(own_tree)
    assert str(refused.value).count("\n") == 1
    assert "TRAIN025" in str(refused.value)


def test_damaged_compressed_values_are_refused(tmp_path):
    write_volume(tmp_path / "TRAIN025", compressed=True)
    damage(tmp_path / "TRAIN025" / "oct.zraw")
    (error,) = survey(tmp_path, "spectralis").errors
    assert error.startswith(f"{tmp_path / 'TRAIN025' / 'oct.zraw'} cannot be unpacked")


def test_values_are_unpacked_no_further_than_the_header_says(tmp_path):
    """A file of a few KB may hold GB of zeros."""
    write_volume(tmp_path / "TRAIN025", compressed=True)
    packed = tmp_path / "TRAIN025" / "oct.zraw"
    packer = zlib.compressobj(9)
    piece = bytes(2**20)
    packed.write_bytes(b"".join(packer.compress(piece) for _ in range(300)) + packer.flush())
    change_header(packed.with_suffix(".mhd"), "CompressedDataSize", "Comment")
    tracemalloc.start()
    (error,) = survey(tmp_path, "spectralis").errors
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert re.search(r"oct\.zraw holds \d+ or more bytes of values, expected 24576 .* is it of another volume\?", error)
    assert peak < 30 * 2**20


def test_all_faults_are_found_at_once(own_tree):
    folder = own_tree / "TrainingSpectralis"
    (folder / "TRAIN025" / "reference.mhd").unlink()
    cut(folder / "TRAIN026" / "oct.raw")
    (folder / "TRAIN030").mkdir()
    found = survey(own_tree, "spectralis")
    assert [volume.id for volume in found.volumes] == ["TRAIN027"]
    assert len(found.errors) == 3
    for number in (25, 26, 30):
        assert sum(f"TRAIN{number:03d}" in error for error in found.errors) == 1


def test_roots_without_volumes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pass --root FOLDER"):
        load_tree(None)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        load_tree(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no volume: expected a folder with"):
        load_tree(tmp_path)
    write_volume(tmp_path / "scan")
    with pytest.raises(ValueError, match=r"scan does not tell its vendor"):
        load_tree(tmp_path)


# --- images


def test_bscans_are_padded_and_keep_their_labels(tree):
    data = load_tree(tree)
    assert not data.multilabel
    assert data.class_names == ("IRF", "SRF", "PED")
    assert data.num_outputs == 4
    assert data.score == "miou_pooled"
    number = int(data.test.names[0][5:8])
    batch = data.test[range(SCANS)]
    margin = (WIDTH - HEIGHT) // 2
    assert torch.equal(batch.labels[:, margin:-margin], torch.from_numpy(draw_volume(number)[1]).long())
    assert batch.shown[:, margin:-margin].all()
    for padding in (slice(0, margin), slice(WIDTH - margin, WIDTH)):
        assert (batch.labels[:, padding] == -100).all()
        assert (batch.images[:, :, padding] == -1).all()
        assert not batch.shown[:, padding].any()
    assert batch.images.dtype == torch.float32
    assert (batch.images.amin((1, 2, 3)) == -1).all()
    assert (batch.images.amax((1, 2, 3)) == 1).all()
    assert (batch.images[:, 0, margin : margin + 3, :20] == -1).all()  # the white corner


@pytest.mark.parametrize("view", ["whole", "crop", "flatten"])
def test_original_labels_are_the_references(tree, view):
    data = load_tree(tree, retina=view)
    number = int(data.test.names[0][5:8])
    for original, reference in zip(data.test[range(SCANS)].originals, draw_volume(number)[1], strict=True):
        assert torch.equal(original.read_labels(), torch.from_numpy(reference).long())


def test_flattened_retinas_are_level(tree):
    data = load_tree(tree, retina="flatten")
    for image in data.test[range(SCANS)].images[:, 0]:
        rows = image.argmax(0).float()
        assert (rows - rows.median()).abs().max() <= 3


def test_bscans_without_a_retina_stay_whole_and_are_counted(own_tree):
    folder = own_tree / "TrainingSpectralis" / "TRAIN026"
    scans, _ = draw_volume(26)
    scans[1:3] = np.random.default_rng(0).integers(0, 65535, scans[1:3].shape)
    write_image(folder / "oct.mhd", scans)
    data = load_tree(own_tree, retina="flatten")
    findings = check_retouch(Check("retouch", own_tree, retina="flatten"))
    assert findings.notes == ["no retina found in TRAIN026 B-scan 1, TRAIN026 B-scan 2: they stay whole"]
    everything = {}
    for part in (data.unlabeled, data.validation, data.test):
        everything |= dict(zip(part.names, part[range(len(part))].shown, strict=True))
    heights = {name: int(shown.any(1).sum()) for name, shown in everything.items()}
    assert {name for name, height in heights.items() if height == HEIGHT} == {"TRAIN026_001", "TRAIN026_002"}


def test_fluid_that_is_cropped_away_is_counted(own_tree):
    references = draw_volume(25)[1]
    references[:, -2:] = 1
    write_image(own_tree / "TrainingSpectralis" / "TRAIN025" / "reference.mhd", references)
    notes = {view: check_retouch(Check("retouch", own_tree, retina=view)).notes for view in ("crop", "whole")}
    assert notes == {"crop": ["--retina crop cuts 512 pixels of fluid off, in TRAIN025"], "whole": []}


# --- folds


def test_committed_folds_are_those_drawn():
    committed = json.loads(retouch.SPLITS.read_text())
    assert committed == {
        vendor: deal(f"TRAIN{number:03d}" for number in ids) for vendor, ids in retouch_index.TRAINING_IDS.items()
    }
    assert {vendor: sum(map(len, parts)) for vendor, parts in committed.items()} == {
        "cirrus": 24, "spectralis": 24, "topcon": 22
    }  # fmt: skip
    for vendor, parts in committed.items():
        assert len(parts) == 10
        counts = Counter(name for part in parts for name in part)
        assert set(counts.values()) == {1}
        assert all(int(name[5:]) in retouch_index.TRAINING_IDS[vendor] for name in counts)
        assert {len(part) for part in parts} <= {2, 3}


@pytest.mark.parametrize("vendor", retouch_index.VENDORS)
def test_the_training_set_has_the_committed_folds(vendor, monkeypatch):
    committed = json.loads(retouch.SPLITS.read_text())[vendor]
    ids = [name for part in committed for name in part]
    monkeypatch.setattr(retouch, "deal", lambda ids: pytest.fail("dealt out anew"))
    assert retouch.find_parts(sorted(ids), vendor) == committed


@pytest.mark.parametrize("volumes", [3, 7, 10, 23])
def test_other_volumes_are_dealt_out_by_the_same_rule(volumes):
    ids = [f"scan{number}" for number in range(volumes)]
    parts = deal(ids)
    assert len(parts) == min(10, volumes)
    assert sorted(name for part in parts for name in part) == sorted(ids)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == deal(reversed(ids))


def test_every_volume_is_tested_once_and_never_divided(tree):
    validated, tested = [], []
    for fold in range(10):
        data = load_tree(tree, split=fold)
        parts = [volumes_of(part.names) for part in (data.unlabeled, data.validation, data.test)]
        assert [len(part) for part in parts] == [8, 1, 1]
        assert len(set.union(*parts)) == 10
        assert len(data.unlabeled) == 8 * SCANS
        assert set(data.labeled.names) <= set(data.unlabeled.names)
        assert (data.labeled.names, data.labeled.images.shape[0]) == (load_tree(tree, split=fold).labeled.names, 3)
        validated, tested = [*validated, *parts[1]], [*tested, *parts[2]]
    assert len(set(tested)) == 10
    assert validated == [*tested[1:], tested[0]]  # the next fold's test
    with pytest.raises(ValueError, match="split: 10, but 10 volumes have folds 0 to 9"):
        load_tree(tree, split=10)


def test_three_volumes_are_enough_and_two_are_not(own_tree):
    found = load_tree(own_tree).found
    assert found == (
        "3 Spectralis volumes, 12 B-scans; fold 0 of 3: 1 volumes (4 B-scans) to train, 1 to validate, 1 to test"
    )
    shutil.rmtree(own_tree / "TrainingSpectralis" / "TRAIN025")
    with pytest.raises(ValueError, match="2 Spectralis volumes, expected 3 or more"):
        load_tree(own_tree)


@pytest.mark.parametrize("labeled", [1, 3, 6, 12, 24])
def test_every_fluid_is_among_the_labeled(tree, labeled):
    for fold in range(4):
        data = load_tree(tree, split=fold, labeled=labeled)
        assert len(set(data.labeled.names)) == labeled
        assert set(data.labeled.labels.unique().tolist()) == {-100, 0, 1, 2, 3}


def test_a_fluid_in_one_bscan_alone_is_drawn():
    """Uniform draws would hardly ever hit it."""
    pixels = np.zeros((5000, 3), int)
    pixels[:, 0] = 100
    pixels[7, 1] = pixels[4711, 2] = 100
    volume = retouch_index.Volume("a", Path(), (64, 64, 5000), "uint8", tuple(map(tuple, pixels)), ())
    scans = [(volume, i) for i in range(5000)]
    config = Config("retouch", **OPTIONS)
    for labeled in (2, 3, 12):
        chosen = retouch.draw_labeled(scans, replace(config, labeled=labeled))
        assert len(set(chosen)) == labeled
        assert {7, 4711} < set(chosen) or labeled == 2
    with pytest.raises(ValueError, match="labeled: 1 B-scans did not show IRF, SRF, PED"):
        retouch.draw_labeled(scans, replace(config, labeled=1))


def test_labeled_that_cannot_be_drawn_are_refused(own_tree):
    with pytest.raises(ValueError, match="labeled: 5, but there are only 4 B-scans to train on"):
        load_tree(own_tree, labeled=5)
    with pytest.raises(ValueError, match=r"8 pixels of IRF, SRF, PED at image_size 16; pass a larger --image-size"):
        load_tree(own_tree, image_size=16)


# --- training


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: MethodName, tree, tmp_path, monkeypatch):
    if method != "rpg_plus":  # drawing takes longer than training
        shrink(monkeypatch.setattr)
    config = Config(
        "retouch", method, root=tree, out=tmp_path / "run", iterations=2, base_channels=4, labeled=6, unlabeled_batch=2,
        retina="flatten", **OPTIONS,
    )  # fmt: skip
    result = train(config)
    assert result["score"] == "miou_pooled"
    assert result["iou_per_class_pooled"].keys() == {"IRF", "SRF", "PED"}
    assert (tmp_path / "run" / "overlays.png").exists() == (method == "rpg_plus")


# --- real scans


def test_real_retinas_are_found_and_keep_their_fluid(tmp_path):
    root = real_data("duke_dme")
    for patient in ("duke01", "duke04", "duke09"):
        for kind, name in (("images", "oct"), ("masks", "reference")):
            scans = [np.array(Image.open(path)) for path in sorted((root / kind).glob(f"{patient}_*.png"))[::3]]
            write_image(tmp_path / "Spectralis" / patient / f"{name}.mhd", np.stack(scans))
    off, sharper = [], []
    for volume in survey(tmp_path, "spectralis").volumes:
        for scan in range(volume.size[2]):
            image, ids = scale(volume.read_scan(scan)), volume.read_reference(scan)
            found = find_retina(image)
            assert found is not None
            for view in ("crop", "flatten"):
                assert (placement(image, view, 1).cut(ids, 0) > 0).sum() == (ids > 0).sum()
            height = found.flat[1] - found.flat[0]
            assert 60 < height < 220  # of 331 rows
            flat = placement(image, "flatten", 512).cut(volume.read_scan(scan), 0)
            off.append(
                abs(int(flat.mean(1).argmax()) - (height - round(0.12 * 331)))
            )  # the level layer is the brightest
            unleveled = Placement(*volume.size[1::-1], 512, found.flat).cut(volume.read_scan(scan), 0)
            sharper.append(flat.mean(1).std() / unleveled.mean(1).std())
    assert len(off) == 12
    assert sum(rows <= 8 for rows in off) >= 11  # in one, it is the nerve fibre layer
    assert np.median(sharper) > 1  # layers that are level stand out in the mean over the columns
