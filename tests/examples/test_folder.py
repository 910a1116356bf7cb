"""A user's own folder: masks of either kind are read as they are meant, groups stay together, errors name the file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from examples.config import Config
from examples.data import load
from examples.data.base import Dataset, to_unit_range
from examples.data.folder.dataset import find_flip_pairs
from tests.examples.files import real_data, save_image

SIDE = 16
STEMS = tuple(f"p{patient}_{scan}" for patient in range(6) for scan in range(4))
PATTERN = r"^(p\d)_"


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(20, 256, (SIDE, SIDE), dtype=np.uint8)


def class_map(index: int) -> np.ndarray:
    ids = np.zeros((SIDE, SIDE), np.uint8)
    ids[2:6, 2:10] = 1
    ids[8 : 9 + index % 7, 3:5] = 2
    return ids


def write_images(root: Path, stems: tuple[str, ...] = STEMS) -> Path:
    for index, stem in enumerate(stems):
        save_image(root / "images" / f"{stem}.png", picture(index))
    return root


@pytest.fixture
def class_maps(tmp_path) -> Path:
    for index, stem in enumerate(STEMS):
        save_image(tmp_path / "masks" / f"{stem}.png", class_map(index))
    return write_images(tmp_path)


@pytest.fixture
def label_masks(tmp_path) -> Path:
    for index, stem in enumerate(STEMS):
        save_image(tmp_path / "masks" / "right_lung" / f"{stem}.png", 255 * (class_map(index) == 1).astype(np.uint8))
        save_image(tmp_path / "masks" / "left_lung" / f"{stem}.gif", (class_map(index) > 0).astype(np.uint8))
    return write_images(tmp_path)


def load_folder(root: Path, **changes: object) -> Dataset:
    return load(Config(**{"dataset": "folder", "root": root, "image_size": SIDE, "map_size": 8, "k": 0.5, **changes}))


def everything(data: Dataset) -> dict[str, torch.Tensor]:
    """Name -> labels, of all parts."""
    return {
        name: label
        for part in (data.unlabeled, data.validation, data.test)
        for name, label in zip(part.names, part.labels, strict=True)
    }


# --- masks


def test_class_maps_are_read_as_they_are(class_maps):
    data = load_folder(class_maps)
    assert not data.multilabel
    assert data.class_names == ("class1", "class2")
    assert data.score == "miou_pooled"
    labels = everything(data)
    assert set(labels) == set(STEMS)
    for index, stem in enumerate(STEMS):
        assert labels[stem].dtype == torch.int64
        assert torch.equal(labels[stem], torch.from_numpy(class_map(index)).long())
    image = data.unlabeled.images[data.unlabeled.names.index(data.labeled.names[0])]
    assert torch.equal(image, data.labeled.images[0])
    assert image.shape == (1, SIDE, SIDE)
    assert (image.min(), image.max()) == (-1, 1)
    assert data.found == "24 images (24 labeled); 12 train, 4 validation, 8 test"


def test_palette_masks_are_indices_and_gray_ones_may_be_saved_as_colors(class_maps):
    for index, stem in enumerate(STEMS):
        ids = class_map(index)
        mask = Image.fromarray(ids).convert("RGB")
        if index % 2:
            mask = Image.fromarray(ids)
            mask.putpalette([9, 9, 9, 255, 0, 0, 0, 0, 0])
            assert mask.mode == "P"
        mask.save(class_maps / "masks" / f"{stem}.png")
    for stem, label in everything(load_folder(class_maps)).items():
        assert torch.equal(label, torch.from_numpy(class_map(STEMS.index(stem))).long())


@pytest.mark.parametrize(
    ("colors", "fits"),
    [
        ([0, 0, 0, 255, 0, 0], True),
        ([255, 255, 255, 255, 0, 0], False),  # as an index the background, as a color the label
        ([255, 255, 255, 0, 0, 0], False),
        ([0, 0, 0, 0, 0, 0], False),
    ],
)
def test_palettes_in_label_folders_have_one_meaning(colors, fits, label_masks):
    mask = Image.fromarray((class_map(0) == 1).astype(np.uint8)).convert("P")
    mask.putpalette(colors)
    mask.save(label_masks / "masks" / "right_lung" / "p0_0.png")
    if not fits:
        with pytest.raises(ValueError, match=r"p0_0\.png is a palette image in which .* save it in gray"):
            load_folder(label_masks)
        return
    assert torch.equal(
        everything(load_folder(label_masks))["p0_0"][1], torch.from_numpy(class_map(0) == 1).to(torch.int8)
    )


def test_binary_masks_of_255_are_class_1_only_where_all_are(class_maps):
    for index, stem in enumerate(STEMS):
        save_image(class_maps / "masks" / f"{stem}.png", 255 * (class_map(index) > 0).astype(np.uint8))
    data = load_folder(class_maps)
    assert data.class_names == ("class1",)
    for stem, label in everything(data).items():
        assert torch.equal(label, torch.from_numpy(class_map(STEMS.index(stem)) > 0).long())
    save_image(class_maps / "masks" / "p3_1.png", class_map(3))
    with pytest.raises(ValueError, match=r"p0_0\.png holds the value 255 \(as do .* and 2 more\), expected class ids"):
        load_folder(class_maps)


def test_labels_overlap_where_they_have_folders(label_masks):
    (label_masks / "masks" / "right_lung" / "p1_0.png").unlink()  # no right lung in this one, but labeled
    data = load_folder(label_masks)
    assert data.multilabel
    assert data.class_names == ("left_lung", "right_lung")
    assert data.flip_pairs in (((0, 1),), ((1, 0),))
    assert data.score == "miou"
    for stem, label in everything(data).items():
        ids = torch.from_numpy(class_map(STEMS.index(stem)))
        right = (ids == 1) & (stem != "p1_0")
        assert torch.equal(label, torch.stack([ids > 0, right]).to(torch.int8))
    assert "24 labeled" in data.found


def test_classes_txt_names_and_orders(class_maps):
    (class_maps / "classes.txt").write_text("fluid\n lesion \nabsent\n")
    with pytest.raises(ValueError, match="none of the 24 images with a mask shows absent"):
        load_folder(class_maps)
    (class_maps / "classes.txt").write_text("fluid\nlesion\n\n")
    assert load_folder(class_maps).class_names == ("fluid", "lesion")


def test_classes_txt_orders_label_folders(label_masks):
    (label_masks / "classes.txt").write_text("right_lung\nleft_lung\n")
    data = load_folder(label_masks)
    assert data.class_names == ("right_lung", "left_lung")
    assert (data.test.labels[:, 0] <= data.test.labels[:, 1]).all()
    (label_masks / "classes.txt").write_text("right_lung\nheart\n")
    with pytest.raises(ValueError, match=r"names right_lung, heart, but the folders in .* are left_lung, right_lung"):
        load_folder(label_masks)


@pytest.mark.parametrize("kind", ["class_maps", "label_masks"])
def test_other_shapes_are_padded_with_ignored_pixels(kind, request):
    root = request.getfixturevalue(kind)
    paths = [root / "images" / "p0_0.png", *root.glob("masks/p0_0.png"), *root.glob("masks/*/p0_0.*")]
    for path in paths:
        values = np.array(Image.open(path))[4:12]  # 8 high, 16 wide ...
        save_image(path, np.kron(values, np.ones((2, 2), np.uint8)))  # ... and twice as large
    if kind == "label_masks":
        (root / "masks" / "right_lung" / "p0_0.png").unlink()  # absent, yet what is padding is not known to be so
    data = load_folder(root)
    label = everything(data)["p0_0"]
    ids = torch.from_numpy(class_map(0)[4:12])
    expected = torch.stack([ids > 0, ids > 9]) if kind == "label_masks" else ids
    assert (label[..., :4, :] == -100).all()
    assert (label[..., 12:, :] == -100).all()
    assert torch.equal(label[..., 4:12, :], expected.to(label.dtype))
    part = next(part for part in (data.unlabeled, data.validation, data.test) if "p0_0" in part.names)
    image = part.images[part.names.index("p0_0"), 0]
    assert (image[:4] == -1).all()
    assert (image[12:] == -1).all()
    shown = part.shown[part.names.index("p0_0")]
    assert shown[4:12].all()
    assert not shown[:4].any()
    assert not shown[12:].any()
    seen = torch.from_numpy(picture(0)[4:12]).float()
    expected_image = (seen - seen.min()) / (seen.max() - seen.min()) * 2 - 1
    assert torch.allclose(image[4:12], expected_image, atol=1e-5)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "1", "I;16", "LA"])
def test_images_of_any_mode_become_gray(mode, class_maps):
    values = picture(0)
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 256)
    else:
        image = Image.fromarray(values).convert(mode)
    image.save(class_maps / "images" / "p0_0.png")
    data = load_folder(class_maps)
    part = next(part for part in (data.unlabeled, data.validation, data.test) if "p0_0" in part.names)
    shown = part.images[part.names.index("p0_0"), 0]
    if mode == "1":
        assert set(shown.unique().tolist()) == {-1, 1}
    else:
        gray = torch.from_numpy(values).float()
        expected = (gray - gray.min()) / (gray.max() - gray.min()) * 2 - 1
        assert torch.allclose(shown, expected, atol=0.02)


# --- division


def patients(names: tuple[str, ...]) -> set[str]:
    return {name[:2] for name in names}


@pytest.mark.parametrize("split", range(4))
def test_groups_are_never_divided(split, class_maps):
    data = load_folder(class_maps, group_pattern=PATTERN, split=split)
    train, validation, test = (patients(part.names) for part in (data.unlabeled, data.validation, data.test))
    assert (len(train), len(validation), len(test)) == (3, 1, 2)
    assert len(train | validation | test) == 6
    assert set(data.labeled.names) < set(data.unlabeled.names)
    assert data.found == "24 images (24 labeled) of 6 groups; 12 train, 4 validation, 8 test"


def test_splits_repeat_differ_and_keep_the_test_images_of_other_counts(class_maps):
    first, again, second = (load_folder(class_maps, split=split) for split in (0, 0, 1))
    assert first.labeled.names == again.labeled.names
    assert first.test.names == again.test.names
    assert first.labeled.names != second.labeled.names
    assert first.test.names != second.test.names
    more = load_folder(class_maps, labeled=6)
    assert len(more.labeled) == 6
    assert more.test.names == first.test.names


def test_every_class_is_among_the_labeled(class_maps):
    for index, stem in enumerate(STEMS):
        mask = class_map(index)
        mask[mask == 2] = 2 if stem in ("p0_0", "p1_0", "p2_0") else 0
        save_image(class_maps / "masks" / f"{stem}.png", mask)
    for split in range(4):
        data = load_folder(class_maps, split=split, labeled=1)
        for part in (data.labeled, data.validation, data.test):
            assert set(part.labels.unique().tolist()) == {0, 1, 2}


@pytest.mark.parametrize("kind", ["class_maps", "label_masks"])
def test_images_without_a_mask_are_unlabeled(kind, request):
    root = request.getfixturevalue(kind)
    write_images(root, tuple(f"p9_{scan}" for scan in range(3)))
    data = load_folder(root)
    for scan in range(3):
        assert (data.unlabeled.labels[data.unlabeled.names.index(f"p9_{scan}")] == -100).all()
    assert data.found == "27 images (24 labeled); 15 train, 4 validation, 8 test"


def test_images_of_a_test_patient_without_a_mask_are_left_out(class_maps):
    write_images(class_maps, tuple(f"p{patient}_9" for patient in range(6)))
    data = load_folder(class_maps, group_pattern=PATTERN)
    assert not patients(data.unlabeled.names) & patients(data.validation.names + data.test.names)
    assert data.found.endswith(
        "15 train, 4 validation, 8 test, 3 left out because their group is in validation or test"
    )


SPLIT = {"labeled": ["p0_1", "p0_2"], "validation": ["p1_0"], "test": ["p2_0", "p2_1"]}


def test_splits_json_decides(class_maps):
    (class_maps / "splits.json").write_text(json.dumps(SPLIT))
    data = load_folder(class_maps, labeled=2, group_pattern=PATTERN)
    assert data.labeled.names == ("p0_1", "p0_2")
    assert data.validation.names == ("p1_0",)
    assert data.test.names == ("p2_0", "p2_1")
    assert patients(data.unlabeled.names) == {"p0", "p3", "p4", "p5"}
    assert len(load_folder(class_maps, labeled=2).unlabeled) == 24 - 3


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"labeled": 3}, r"labeled: 3, but .*splits\.json names 2"),
        ({}, {"split": 1}, r"split: 1, but .*splits\.json holds a single one"),
        ({"test": ["p7_0"]}, {}, "names 'p7_0' for test, but there is no image of that name with a mask"),
        ({"test": ["p0_1"]}, {}, "names p0_1 for labeled and again for test"),
        ({"test": ["p0_0"]}, {"group_pattern": PATTERN}, "has group p0 in labeled and in test"),
        ({"test": "p2_0"}, {}, r"holds \"p2_0\" for test, expected"),
        ({"more": []}, {}, 'expected {"labeled"'),
    ],
)
def test_wrong_splits_are_refused(changes, options, message, class_maps):
    (class_maps / "splits.json").write_text(json.dumps(SPLIT | changes))
    with pytest.raises(ValueError, match=message):
        load_folder(class_maps, **({"labeled": 2} | options))


def test_too_few_images_or_groups_are_refused(class_maps):
    with pytest.raises(
        ValueError, match="labeled: 13, but of 24 images with a mask, 4 are for validation and 8 for test"
    ):
        load_folder(class_maps, labeled=13, pool_size=1)
    with pytest.raises(ValueError, match=r"1 groups .* have a mask, expected 3 or more"):
        load_folder(class_maps, group_pattern="^p")
    with pytest.raises(ValueError, match=r"group_pattern: p\(\[0-4\]\) finds no group in p5_0"):
        load_folder(class_maps, group_pattern="p([0-4])")
    with pytest.raises(ValueError, match=r"group_pattern: p\( is not a regular expression"):
        load_folder(class_maps, group_pattern="p(")


# --- errors


def test_folders_that_are_missing_are_named(tmp_path):
    with pytest.raises(ValueError, match="pass --root FOLDER"):
        load_folder(None)
    with pytest.raises(FileNotFoundError, match=r"images is not a folder; expected images/ and masks/"):
        load_folder(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="images holds no image"):
        load_folder(tmp_path)
    write_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="masks is not a folder"):
        load_folder(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(FileNotFoundError, match="masks holds no mask"):
        load_folder(tmp_path)


def test_files_that_do_not_fit_are_named(class_maps):
    masks, images = class_maps / "masks", class_maps / "images"
    save_image(masks / "p8_0.png", class_map(0))
    with pytest.raises(FileNotFoundError, match=r"p8_0\.png has no image \(1 of the 25 masks"):
        load_folder(class_maps)
    (masks / "p8_0.png").unlink()
    save_image(masks / "p0_0.png", class_map(0)[1:])
    with pytest.raises(ValueError, match=r"masks/p0_0\.png is 16 x 15 pixels and .*images/p0_0\.png is 16 x 16"):
        load_folder(class_maps)
    save_image(masks / "p0_0.png", np.stack([class_map(0), class_map(1), class_map(2)], 2))
    with pytest.raises(ValueError, match=r"p0_0\.png is a color image \(mode RGB\)"):
        load_folder(class_maps)
    save_image(masks / "p0_0.png", class_map(0) * 2)
    save_image(masks / "p0_1.png", class_map(0) * 3)
    with pytest.raises(ValueError, match=r"p0_1\.png holds the value 6, but no mask holds 5"):
        load_folder(class_maps)
    (class_maps / "classes.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"p0_1\.png holds the value 6, but .*classes\.txt names 2"):
        load_folder(class_maps)
    save_image(images / "p5_3.jpg", picture(0))
    with pytest.raises(ValueError, match=r"p5_3\.jpg and .*p5_3\.png have the same name"):
        load_folder(class_maps)
    (images / "p5_3.png").unlink()
    (images / "p5_3.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"p5_3\.jpg cannot be read"):
        load_folder(class_maps)
    save_image(masks / "lung" / "p0_0.png", class_map(0))
    with pytest.raises(ValueError, match=r"holds both lung/ and p0_0\.png"):
        load_folder(class_maps)


def test_classes_that_no_image_shows_are_refused_with_a_way_out(class_maps, tmp_path):
    """A larger --labeled would not help, where a structure is lost as masks are made smaller, or is in none."""
    (class_maps / "classes.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(ValueError, match=r"none of the 24 images with a mask shows three .* out of classes\.txt"):
        load_folder(class_maps)
    for index, stem in enumerate(STEMS):
        nodule = np.zeros((64, 64), np.uint8)
        nodule[5, 6] = 255
        save_image(tmp_path / "nodules/masks/nodule" / f"{stem}.png", nodule)
        save_image(tmp_path / "nodules/images" / f"{stem}.png", np.kron(picture(index), np.ones((4, 4), np.uint8)))
    with pytest.raises(ValueError, match=r"shows nodule at this size; .* pass a larger --image-size"):
        load_folder(tmp_path / "nodules")
    load_folder(tmp_path / "nodules", image_size=64)


def test_colors_that_are_no_rgb_are_named(class_maps):
    Image.fromarray(np.stack([picture(0)] * 3, 2), "LAB").save(class_maps / "images" / "p0_0.tif")
    (class_maps / "images" / "p0_0.png").unlink()
    with pytest.raises(ValueError, match=r"p0_0\.tif cannot be read as an image: it is in CIELAB"):
        load_folder(class_maps)
    assert "1 unreadable skipped" in load_folder(class_maps, skip_unreadable=True).found


def test_masks_without_any_label_are_refused(class_maps):
    for stem in STEMS:
        save_image(class_maps / "masks" / f"{stem}.png", np.zeros((SIDE, SIDE), np.uint8))
    with pytest.raises(ValueError, match="all masks are 0 everywhere"):
        load_folder(class_maps)


def test_real_scans():
    data = load_folder(real_data("duke_dme"), image_size=64, map_size=16, group_pattern=r"(duke\d+)_")
    assert data.found == "88 images (88 labeled) of 8 groups; 44 train, 11 validation, 33 test"
    parts = [{name[:6] for name in part.names} for part in (data.unlabeled, data.validation, data.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 8
    assert data.class_names == ("class1",)
    padding = torch.zeros(64, dtype=torch.bool)
    padding[:11] = padding[52:] = True  # 512 x 331 becomes 64 x 41
    ignored = data.unlabeled.labels == -100
    assert torch.equal(ignored, padding[:, None].expand_as(ignored))
    area = (data.unlabeled.labels == 1).sum() / (~ignored).sum()
    assert 0.003 < area < 0.02


@pytest.mark.parametrize("names", ["background\nfluid\nlesion\n", "fluid\nlesion\nBackground\n"])
def test_the_background_has_no_name(names, class_maps):
    (class_maps / "classes.txt").write_text(names)
    number = 1 if names.startswith("b") else 3
    with pytest.raises(ValueError, match=rf"classes\.txt names background as class {number}, but it is always 0"):
        load_folder(class_maps)


def test_class_names_of_another_encoding_are_refused(class_maps):
    (class_maps / "classes.txt").write_bytes("Flüssigkeit\nLäsion\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes\.txt is not UTF-8"):
        load_folder(class_maps)


@pytest.mark.parametrize("name", ["left\nlung", " lung", "lung\u2028"])
def test_label_folders_have_names_that_classes_txt_can_hold(name, label_masks):
    (label_masks / "masks" / "left_lung").rename(label_masks / "masks" / name)
    with pytest.raises(ValueError, match=r"expected a name that is one line of a classes\.txt; rename it"):
        load_folder(label_masks)


@pytest.mark.parametrize("kind", ["class_maps", "label_masks"])
def test_masks_saved_as_jpeg_are_refused(kind, request):
    root = request.getfixturevalue(kind)
    (mask,) = root.glob("masks/**/p2_1.png")
    with Image.open(mask) as image:
        image.convert("L").save(mask.with_suffix(".jpg"))
    mask.unlink()
    with pytest.raises(ValueError, match=r"p2_1\.jpg is a JPEG file, which does not keep values .* as \.png"):
        load_folder(root)


def test_masks_with_an_ending_of_their_own_get_a_hint(class_maps):
    for mask in (class_maps / "masks").iterdir():
        mask.rename(mask.with_stem(f"{mask.stem}_mask"))
    with pytest.raises(FileNotFoundError, match=r"p0_0_mask\.png has no image \(24 of the 24 .* without '_mask'$"):
        load_folder(class_maps)


# --- images that cannot be used


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_pixels_that_are_no_numbers_are_refused(bad, kind, class_maps):
    """One of them would make the whole image NaN."""
    (class_maps / kind / "p2_1.png").unlink()
    values = class_map(1).astype(np.float32)
    values[3, 4:6] = bad
    save_image(class_maps / kind / "p2_1.tif", values)
    with pytest.raises(ValueError, match=r"p2_1\.tif holds 2 pixels that are NaN or infinite"):
        load_folder(class_maps)
    assert "1 unreadable skipped" in load_folder(class_maps, skip_unreadable=True).found


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".png"])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_of_several_pages_are_refused(suffix, kind, class_maps):
    (class_maps / kind / "p2_1.png").unlink()
    pages = [Image.fromarray(class_map(index) + 0) for index in (1, 3, 5)]
    pages[0].save(class_maps / kind / f"p2_1{suffix}", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=rf"p2_1\{suffix} holds 3 pages, expected one image"):
        load_folder(class_maps)


def test_images_that_are_too_large_are_named(class_maps, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE**2 // 2 - 1)
    with pytest.raises(ValueError, match=r"p0_0\.png has more than 0 million pixels, expected fewer; scale it down"):
        load_folder(class_maps)


# --- images that cannot be decoded


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_an_image_that_cannot_be_decoded_is_named_and_skipped_only_on_demand(kind, damage, class_maps, capsys):
    path = class_maps / kind / "p2_1.png"
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "noise": b"no image", "empty": b""}[damage])
    with pytest.raises(ValueError, match=rf"{kind}/p2_1\.png cannot be read as an image"):
        load_folder(class_maps)
    data = load_folder(class_maps, skip_unreadable=True)
    assert data.found.startswith("23 images (23 labeled), 1 unreadable skipped; ")
    assert set(everything(data)) == set(STEMS) - {"p2_1"}
    assert f"skipped p2_1: {path} cannot be read" in capsys.readouterr().out


def test_skipping_drops_nothing_that_can_be_read(label_masks):
    usual, tolerant = load_folder(label_masks), load_folder(label_masks, skip_unreadable=True)
    assert tolerant.found == usual.found
    assert tolerant.unlabeled.names == usual.unlabeled.names
    (label_masks / "masks" / "left_lung" / "p2_1.gif").write_bytes(b"GIF")
    assert "1 unreadable skipped" in load_folder(label_masks, skip_unreadable=True).found


def test_nothing_that_can_be_read_is_an_error(class_maps):
    for path in (class_maps / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the images can be read"):
        load_folder(class_maps, skip_unreadable=True)


def test_labeled_txt_decides_what_is_labeled_and_nothing_else(class_maps):
    (class_maps / "labeled.txt").write_text("p0_1\n\n p3_2 \n")
    divided = [load_folder(class_maps, labeled=2, split=split, group_pattern=PATTERN) for split in (0, 1, 2)]
    for data in divided:
        assert data.labeled.names == ("p0_1", "p3_2")
        assert {"p0_1", "p3_2"} < set(data.unlabeled.names)
        tested = {name[:2] for name in (*data.validation.names, *data.test.names)}
        assert tested.isdisjoint(name[:2] for name in data.unlabeled.names)
    assert len({data.test.names for data in divided}) > 1


def test_files_of_a_windows_editor_are_read_and_other_encodings_named(class_maps):
    for name, text in (("classes.txt", "Lunge\r\nHerz\r\n"), ("labeled.txt", "p0_1\r\np3_2\r\n")):
        (class_maps / name).write_text(text, encoding="utf-8-sig")
    data = load_folder(class_maps, labeled=2)
    assert data.class_names == ("Lunge", "Herz")
    assert data.labeled.names == ("p0_1", "p3_2")
    (class_maps / "labeled.txt").unlink()
    parts = {"labeled": ["p0_1"], "validation": ["p1_1"], "test": ["p2_1"]}
    (class_maps / "splits.json").write_text(json.dumps(parts), encoding="utf-8-sig")
    assert load_folder(class_maps, labeled=1).labeled.names == ("p0_1",)
    (class_maps / "splits.json").unlink()
    (class_maps / "labeled.txt").write_text("müller", encoding="latin-1")
    with pytest.raises(ValueError, match=r"labeled\.txt is not UTF-8: .*save it as that"):
        load_folder(class_maps)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_read_as_they_are_shown(orientation, tmp_path):
    """A camera that was held otherwise notes that in EXIF, and masks are drawn on what is shown."""
    shown = np.zeros((40, 64), np.uint8)
    shown[:20, :24] = 255  # the upper left
    apart = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Image.Transpose that undoes it
    turned = Image.fromarray(shown)
    if orientation > 1:
        turned = turned.transpose(Image.Transpose(apart[orientation]))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (tmp_path / "images").mkdir()
    for stem in "abc":
        turned.save(tmp_path / "images" / f"{stem}.jpg", exif=exif, quality=95)
        save_image(tmp_path / "masks" / f"{stem}.png", shown // 255)
    data = load_folder(tmp_path, labeled=1, image_size=64)
    labels = data.test.labels[0]
    bright = data.test.images[0, 0] > 0
    assert bright[labels >= 0].eq(labels[labels >= 0] == 1).float().mean() > 0.99


def test_names_agree_however_their_accents_are_written(class_maps):
    """As on a Mac, which takes "ü" apart in names of files."""
    composed, apart = "p\N{LATIN SMALL LETTER U WITH DIAERESIS}", "pu\N{COMBINING DIAERESIS}"
    for image in (class_maps / "images").iterdir():
        image.rename(image.with_name(image.name.replace("p", apart, 1)))
    for mask in (class_maps / "masks").iterdir():
        mask.rename(mask.with_name(mask.name.replace("p", composed, 1)))
    (class_maps / "labeled.txt").write_text(f"{apart}0_1\n{composed}3_2\n", encoding="utf-8")
    assert load_folder(class_maps, labeled=2).labeled.names == (f"{composed}0_1", f"{composed}3_2")
    (class_maps / "labeled.txt").unlink()
    parts = {"labeled": [f"{apart}0_1"], "validation": [f"{apart}1_1"], "test": [f"{composed}2_1"]}
    (class_maps / "splits.json").write_text(json.dumps(parts), encoding="utf-8")
    assert load_folder(class_maps, labeled=1).test.names == (f"{composed}2_1",)


def test_unlabeled_txt_decides_what_is_learned_from(class_maps):
    (class_maps / "splits.json").write_text(json.dumps(SPLIT))
    everything = load_folder(class_maps, labeled=2).unlabeled.names
    others = [name for name in everything if name not in SPLIT["labeled"]]
    (class_maps / "unlabeled.txt").write_text("\n".join(others[:3]))
    data = load_folder(class_maps, labeled=2)
    assert set(data.unlabeled.names) == {*others[:3], *SPLIT["labeled"]}
    assert "unlabeled.txt names others" in data.found


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labeled.txt", "p0_1.png", r"names 'p0_1\.png', but there is no image of that name with a mask"),
        ("labeled.txt", "p0_1\np0_1", "2 names, 1 different"),
        ("labeled.txt", "p0_1", r"labeled: 2, but .*labeled\.txt names 1"),
        ("labeled.txt", "\n".join(STEMS[:-1]), r"1 groups .* expected 2 or more"),
        ("unlabeled.txt", "other", "names 'other', but there is no image of that name;"),
        ("unlabeled.txt", "", "0 names"),
    ],
)
def test_wrong_lists_are_refused(file, content, message, class_maps):
    (class_maps / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_folder(class_maps, labeled=23 if "1 groups" in message else 2)


def test_two_files_that_name_labeled_images_are_refused(class_maps):
    (class_maps / "labeled.txt").write_text("p0_1\np0_2")
    (class_maps / "splits.json").write_text(json.dumps(SPLIT))
    with pytest.raises(ValueError, match=r"both splits\.json and labeled\.txt"):
        load_folder(class_maps, labeled=2)


def test_right_and_left_change_places_however_they_are_written():
    """Else mirrored images would teach the labels of the other side."""
    assert find_flip_pairs(("Right lung", "heart", "Left lung")) == ((0, 2),)
    assert find_flip_pairs(("LEFT", "RIGHT")) == ((1, 0),)
    assert find_flip_pairs(("right lung", "left kidney", "upright")) == ()


def test_images_of_tiny_values_have_their_whole_range():
    """Diffusion, say, in square meters a second."""
    image = to_unit_range(3e-9 * torch.rand(1, 8, 8))
    assert (image.min(), image.max()) == (-1, 1)
    assert torch.equal(to_unit_range(torch.full((1, 2, 2), 7.0)), torch.full((1, 2, 2), -1.0))
