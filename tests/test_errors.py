"""Bad input: one clear error each, that names the argument, what came, what was expected and what to do."""

import numpy as np
import pytest
import torch

from rpg_loss import (
    FixMatchSegLoss,
    ReferencePool,
    RPGLoss,
    entropy_weights,
    fixmatch_targets,
    rpg_pseudo_labels,
)

U, R = torch.randn(2, 4, 5, 6), torch.randn(3, 4, 7, 8)
Y = torch.randint(3, (3, 7, 8))
V = torch.randint(2, (3, 2, 7, 8))
NAN, INF = U.clone(), R.clone()
NAN[0, 0, 0, 0] = float("nan")
INF[1, 2, 3, 4] = float("inf")
META, F8 = torch.device("meta"), torch.float8_e5m2
NESTED = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])


def with_value(labels, value):
    labels = labels.clone()
    labels.view(-1)[0] = value
    return labels


PSEUDO_LABELS = {
    "no tensor": ({"feat_u": U.numpy()}, TypeError, r"feat_u: got ndarray, expected a torch.Tensor"),
    "list": ({"y_ref": Y.tolist()}, TypeError, r"y_ref: got list, expected a torch.Tensor"),
    "rank 1": ({"feat_u": U[0, 0, 0]}, ValueError, r"feat_u: got shape \(6,\), expected"),
    "flat and not": (
        {"feat_ref": R[..., 0, 0]},
        ValueError,
        r"y_ref: .*expected a class map \(3,\) .* go with feat_ref",
    ),
    "features": ({"feat_ref": R[:, :3]}, ValueError, r"feat_ref: got 3 features per pixel .* expected the 4 of feat_u"),
    "spatial": ({"y_ref": Y[:, :-1]}, ValueError, r"y_ref: got shape \(3, 6, 8\), expected a class map \(3, 7, 8\)"),
    "spatial vectors": ({"y_ref": V[..., 1:]}, ValueError, r"or label vectors \(3, C, 7, 8\)"),
    "rank of labels": ({"y_ref": Y[0]}, ValueError, r"y_ref: got shape \(7, 8\)"),
    "no labels": ({"y_ref": V[:, :0]}, ValueError, r"y_ref: got shape \(3, 0, 7, 8\)"),
    "P = 0": (
        {"feat_ref": R[:0], "y_ref": Y[:0]},
        ValueError,
        r"feat_ref: got shape \(0, 4, 7, 8\), expected a non-empty",
    ),
    "B = 0": ({"feat_u": U[:0]}, ValueError, r"feat_u: got shape \(0, 4, 5, 6\), expected a non-empty"),
    "k = 0": ({"k": 0}, ValueError, r"k: got 0, expected an int >= 1"),
    "k < 0": ({"k": -3}, ValueError, r"k: got -3, expected an int >= 1"),
    "k = 0.": ({"k": 0.0}, ValueError, r"k: got the float 0.0, expected .* float in \(0, 1\]"),
    "k > 1": ({"k": 1.5}, ValueError, r"k: got the float 1.5, .*a number of references must be an int"),
    "k NaN": ({"k": float("nan")}, ValueError, r"k: got the float nan"),
    "k string": ({"k": "all"}, TypeError, r"k: got str, expected an int"),
    "k bool": ({"k": True}, TypeError, r"k: got bool, expected"),
    "negative class": ({"y_ref": with_value(Y, -1)}, ValueError, r"y_ref: got the values -1, expected class indices"),
    "float classes": ({"y_ref": Y.float()}, TypeError, r"y_ref: got a class map .*float32, expected an integer"),
    "bool classes": ({"y_ref": Y.bool()}, TypeError, r"y_ref: got a class map .*bool, expected an integer"),
    "complex labels": ({"y_ref": V.cfloat()}, TypeError, r"y_ref: got .*complex64, expected a real dtype"),
    "mask 0/255": ({"y_ref": (Y > 0) * 255}, ValueError, r"the values 255, .* use mask // 255"),
    "vectors 0/255": ({"y_ref": V * 255}, ValueError, r"the values 255, expected 0 or 1 .* use mask // 255"),
    "vectors of 2": ({"y_ref": with_value(V, 2)}, ValueError, r"the values 2, expected 0 or 1 in every entry"),
    "vectors of .5": ({"y_ref": with_value(V.float(), 0.5)}, ValueError, r"the values 0.5, expected 0 or 1"),
    "devices": ({"feat_ref": R.to(META)}, ValueError, r"got feat_u on cpu, feat_ref on meta, .*expected one device"),
    "complex features": ({"feat_u": U.cfloat()}, TypeError, r"feat_u: got .*complex64, expected a real floating"),
    "integer features": ({"feat_ref": R.long()}, TypeError, r"feat_ref: got .*int64, .*convert it with .float\(\)"),
    "all ignored": ({"y_ref": torch.full_like(Y, -100)}, ValueError, r"y_ref: .*ignore_index=-100 at every reference"),
    "all ignored vectors": ({"y_ref": torch.full_like(V, -100)}, ValueError, r"at every reference"),
    "NaN": ({"feat_u": NAN}, ValueError, r"feat_u: got \(2, 4, 5, 6\) float32 with 1 NaN or infinite values"),
    "infinite": ({"feat_ref": INF}, ValueError, r"feat_ref: .*check_values=False"),
    "valid shape": ({"valid_u": torch.ones(2, 5, 5) > 0}, ValueError, r"valid_u: .*expected \(2, 5, 6\) bool"),
    "valid dtype": ({"valid_u": torch.ones(2, 5, 6)}, ValueError, r"valid_u: .*expected \(2, 5, 6\) bool"),
    "valid list": ({"valid_u": [True]}, TypeError, r"valid_u: got list"),
    "vectors of NaN": ({"y_ref": V * torch.nan}, ValueError, r"y_ref: got the values nan, expected 0 or 1"),
    "vectors of inf": ({"y_ref": with_value(V.float(), torch.inf)}, ValueError, r"y_ref: got the values inf, exp"),
    "float8 features": ({"feat_ref": R.to(F8)}, TypeError, r"feat_ref: got .*float8_e5m2, .* with .float\(\)"),
    "float8 vectors": ({"y_ref": V.to(F8)}, TypeError, r"y_ref: got .*float8_e5m2, expected a real dtype"),
    "complex classes": ({"y_ref": Y.cfloat()}, TypeError, r"y_ref: got a class map .*complex64, expected an integer"),
    "NaN reference": ({"feat_ref": with_value(R, torch.nan)}, ValueError, r"feat_ref: got .* with 1 NaN"),
    "sparse": ({"feat_ref": R.to_sparse()}, TypeError, r"feat_ref: got a sparse_coo tensor, expected a dense one"),
    "sparse valid": ({"valid_u": torch.ones(2, 5, 6).bool().to_sparse()}, TypeError, r"valid_u: got a sparse_coo"),
    "nested": ({"feat_u": NESTED}, TypeError, r"feat_u: got a nested tensor, expected a dense one; make one of equal"),
    "meta": (
        {"feat_u": U.to(META), "feat_ref": R.to(META), "y_ref": Y.to(META)},
        ValueError,
        r"feat_u, feat_ref, y_ref: got .* meta device",
    ),
    "check_values": ({"check_values": "no"}, TypeError, r"check_values: got 'no', expected True or False"),
    **{
        f"ignore_index {value}": ({"ignore_index": value}, TypeError, f"ignore_index: got {value!r}, expected an int")
        for value in (None, "255", float("nan"), 1.5, True)
    },
    "impl": ({"impl": "cuda"}, ValueError, r"impl: got 'cuda', expected one of 'auto'"),
}


@pytest.mark.parametrize(("changed", "error", "message"), PSEUDO_LABELS.values(), ids=PSEUDO_LABELS)
def test_rpg_pseudo_labels(changed, error, message):
    with pytest.raises(error, match=message):
        rpg_pseudo_labels(**{"feat_u": U, "feat_ref": R, "y_ref": Y, "k": 5, **changed})


def test_checks_of_values_can_be_switched_off():
    labels, _ = rpg_pseudo_labels(NAN, R, Y, 5, check_values=False)
    assert torch.equal(labels[1], rpg_pseudo_labels(U, R, Y, 5).labels[1])
    torch.testing.assert_close(RPGLoss(check_values=False)(LU, U, R, Y), RPGLoss()(LU, U, R, Y))


LU, LR = torch.randn(2, 3, 5, 6), torch.randn(3, 3, 7, 8)
LOSS = {
    "flat": (
        {"logits_u": LU[..., 0, 0], "feat_u": U[..., 0, 0], "feat_ref": R[..., 0, 0], "y_ref": Y[..., 0, 0]},
        r"logits_u: got shape \(2, 3\), expected",
    ),
    "B": ({"logits_u": LU[:1]}, r"feat_u: got shape \(2, 4, 5, 6\), expected \(1, D, \*spatial\)"),
    "axes": ({"feat_u": U[..., 0]}, r"feat_u: got shape \(2, 4, 5\), expected \(2, D, \*spatial\) with 2 spatial"),
    "axes of labels": ({"y_ref": Y[0]}, r"y_ref: got shape \(7, 8\), expected a class map \(3, \*R\)"),
    "images of labels": ({"y_ref": Y[:2]}, r"y_ref: got shape \(2, 7, 8\), expected a class map \(3, \*R\)"),
    "features": ({"feat_ref": R[:, :3]}, r"feat_ref: got 3 features per pixel .* expected the 4 of feat_u"),
    "class beyond the logits": ({"y_ref": with_value(Y, 3)}, r"the values 3, expected class indices in \[0, 3\)"),
    "mask 0/255": ({"y_ref": (Y > 0) * 255}, r"the values 255, .*use mask // 255"),
    "channels": ({"y_ref": V}, r"y_ref: got 2 labels .*expected one per channel of logits_u"),
    "channel axis": ({"y_ref": Y[:, None].float()}, r"y_ref: got 1 labels .*MONAI.* pass y\[:, 0\].long\(\)"),
    "one channel": ({"logits_u": LU[:, :1]}, r"logits_u: got one channel .*pass y_ref as \(P, 1, \*R\)"),
    "logits_ref": (
        {"logits_ref": LR[..., 1:]},
        r"logits_ref: .*expected \(3, 3, 7, 8\) to go with y_ref.*; F.interpol",
    ),
    "scaled as images": (
        {"y_ref": V / 255, "logits_u": LU[:, :2]},
        r"y_ref: got the values 0.00392157, .* \(ToTensor divides by 255\)",
    ),
    "logits_ref of fewer images": ({"logits_ref": LR[1:]}, r"logits_ref: .*expected \(3, 3, 7, 8\) .* logits_u$"),
    "valid_u": ({"valid_u": torch.ones(2, 5, 6)}, r"valid_u: got \(2, 5, 6\) float32, expected"),
    "devices": ({"logits_ref": LR.to(META)}, r"logits_ref on meta, expected one device"),
    "NaN": ({"feat_u": NAN}, r"feat_u: .*NaN or infinite"),
}


@pytest.mark.parametrize(("changed", "message"), LOSS.values(), ids=LOSS)
def test_rpg_loss(changed, message):
    with pytest.raises(ValueError, match=message):
        RPGLoss(map_size=None)(**{"logits_u": LU, "feat_u": U, "feat_ref": R, "y_ref": Y, **changed})


@pytest.mark.parametrize(("labels", "value"), [(Y, 7), (V, 2), (V, 255)])
def test_a_wrong_label_between_the_pixels_of_the_map_is_found(labels, value):
    """The supervised term would take it for a target."""
    wrong = labels.clone()
    wrong[..., -1, -1] = value
    channels = 2 if labels is V else 3
    with pytest.raises(ValueError, match=rf"y_ref: got the values {value}, expected"):
        RPGLoss(map_size=2)(LU[:, :channels], U, R, wrong, LR[:, :channels])


def test_rpg_loss_types():
    with pytest.raises(TypeError, match=r"logits_u: got .*int64, expected a real floating-point"):
        RPGLoss()(LU.long(), U, R, Y)
    with pytest.raises(TypeError, match=r"logits_u: got NoneType"):
        RPGLoss()(None, U, R, Y)
    with pytest.raises(TypeError, match=r"logits_ref: got list"):
        RPGLoss()(LU, U, R, Y, [])
    with pytest.raises(TypeError, match=r"valid_u: got list"):
        RPGLoss()(LU, U, R, Y, valid_u=[True])
    with pytest.raises(TypeError, match=r"y_ref: got ndarray"):
        RPGLoss()(LU, U, R, Y.numpy())
    with pytest.raises(ValueError, match=r"valid_u: got \(2, 5\) bool, expected \(2, 5, 6\) bool to go with feat_u"):
        RPGLoss().pseudo_labels(U, R, Y, valid_u=torch.ones(2, 5) > 0)
    with pytest.raises(TypeError, match=r"y_ref: got NoneType"):
        RPGLoss().pseudo_labels(U, R, None)
    with pytest.raises(ValueError, match=r"feat_u: .*for flat pixels call rpg_pseudo_labels"):
        RPGLoss().pseudo_labels(U[..., 0, 0], R, Y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, r"k: got 0"),
        ({"k": 50.0}, ValueError, r"k: got the float 50.0"),
        ({"map_size": 0}, ValueError, r"map_size: got 0, expected sides of 1 or more"),
        ({"map_size": (8, -1)}, ValueError, r"map_size: got \(8, -1\)"),
        ({"map_size": ()}, ValueError, r"map_size: got \(\), expected sides"),
        ({"map_size": 64.0}, TypeError, r"map_size: got 64.0, .* a tuple of ints \(or \"auto\", or None"),
        ({"map_size": True}, TypeError, r"map_size: got True"),
        ({"map_size": "64"}, TypeError, r"map_size: got '64', expected an int"),
        ({"impl": "cuda"}, ValueError, r"impl: got 'cuda', expected one of 'auto', 'reference', 'chunked'"),
        ({"weighted": "no"}, TypeError, r"weighted: got 'no', expected True or False"),
        ({"check_values": None}, TypeError, r"check_values: got None, expected True or False"),
        ({"ignore_index": 1.5}, TypeError, r"ignore_index: got 1.5, expected an int"),
    ],
)
def test_rpg_loss_options(options, error, message):
    with pytest.raises(error, match=message):
        RPGLoss(**options)


def test_map_size_may_be_a_number_of_numpy():
    assert repr(RPGLoss(map_size=np.int64(8))) == repr(RPGLoss(map_size=8))


def test_map_size_that_does_not_fit_the_axes():
    with pytest.raises(ValueError, match=r"map_size: got \(8, 8, 8\) for tensors with 2 spatial axes"):
        RPGLoss(map_size=(8, 8, 8))(LU, U, R, Y)


@pytest.mark.parametrize("shape", [(), (4, 0)])
def test_entropy_weights(shape):
    with pytest.raises(ValueError, match=r"proximities: got shape"):
        entropy_weights(torch.ones(shape))


@pytest.mark.parametrize(
    "proximities", [[0.5, 0.1], torch.ones(2, 3).long(), torch.ones(2, 3) * 1j, torch.eye(2).to(F8)]
)
def test_entropy_weights_of_what_is_no_tensor_of_floats(proximities):
    with pytest.raises(TypeError, match=r"proximities: got .*, expected a"):
        entropy_weights(proximities)


FIXMATCH = {
    "shapes": ({"logits_strong": LU[..., 1:]}, ValueError, r"logits_weak, logits_strong: .*expected the same"),
    "flat": (
        {"logits_weak": LU[..., 0, 0], "logits_strong": LU[..., 0, 0]},
        ValueError,
        r"expected the same non-empty \(B, C, \*spatial\)",
    ),
    "integer": ({"logits_weak": LU.long()}, TypeError, r"logits_weak: got .*int64"),
    "cutout": (
        {"cutout_mask": torch.ones(2, 5, 6)},
        ValueError,
        r"cutout_mask: got .*float32, expected \(2, 5, 6\) bool",
    ),
    "valid": ({"valid_weak": torch.ones(2, 6) > 0}, ValueError, r"valid_weak: got \(2, 6\) bool, expected"),
    "warp": ({"warp": lambda maps: maps[..., 1:]}, ValueError, r"warp: got shape .*act on all channels alike"),
    "devices": ({"logits_strong": LU.to(META)}, ValueError, r"logits_strong on meta, expected one device"),
    "float8": (
        {"logits_strong": LU.to(F8)},
        TypeError,
        r"logits_strong: got .*float8_e5m2, expected a real floating-point",
    ),
    "sparse": (
        {"logits_weak": LU.to_sparse()},
        TypeError,
        r"logits_weak: got a sparse_coo tensor, expected a dense one",
    ),
    "meta": (
        {"logits_weak": LU.to(META), "logits_strong": LU.to(META)},
        ValueError,
        r"logits_weak, logits_strong: got tensors on the meta device",
    ),
    "mask list": ({"cutout_mask": [True]}, TypeError, r"cutout_mask: got list, expected a torch.Tensor"),
    "no warp": ({"warp": "flip"}, TypeError, r"warp: got str, expected a function"),
}


@pytest.mark.parametrize(("changed", "error", "message"), FIXMATCH.values(), ids=FIXMATCH)
def test_fixmatch(changed, error, message):
    with pytest.raises(error, match=message):
        FixMatchSegLoss()(**{"logits_weak": LU, "logits_strong": LU, **changed})


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_fixmatch_threshold(threshold):
    for call in (lambda: FixMatchSegLoss(threshold), lambda: fixmatch_targets(LU, threshold)):
        with pytest.raises(ValueError, match=r"threshold: got .*, expected a probability in \[0, 1\]"):
            call()


def test_fixmatch_options():
    with pytest.raises(ValueError, match=r"cutout: got 'mask', expected one of 'background', 'ignore'"):
        FixMatchSegLoss(cutout="mask")
    for shape in ((5,), (2, 0, 5)):
        with pytest.raises(ValueError, match=r"logits: got shape .*, expected \(B, C, \*spatial\)"):
            fixmatch_targets(torch.ones(shape))


class Picture:
    """An image that torch does not read, as Pillow's."""

    __array_interface__ = None


POOL = {
    **{
        f"ignore_index {value}": ({"ignore_index": value}, TypeError, f"ignore_index: got {value!r}, expected an int")
        for value in (None, "255", float("nan"), 1.5)
    },
    "NaN": (
        {"labels": [V[0] * torch.nan], "multilabel": True},
        ValueError,
        r"labels\[0\]: got the values nan, expected 0 or 1",
    ),
    "infinite matrix": (
        {"labels": torch.eye(2) * torch.inf},
        ValueError,
        r"labels: got the values inf, nan, expected 0 or 1",
    ),
    "sparse": (
        {"labels": [Y[0].to_sparse()]},
        TypeError,
        r"labels\[0\]: got a sparse_coo tensor, expected a dense one",
    ),
    "sparse matrix": (
        {"labels": torch.eye(2).to_sparse()},
        TypeError,
        r"labels: got a sparse_coo tensor, expected a dense one",
    ),
    "nested": ({"labels": NESTED}, TypeError, r"labels: got a nested tensor, expected a dense one"),
    "meta": ({"labels": Y.to(META)}, TypeError, r"labels\[0\]: got Tensor, which cannot be read as a tensor \(.*meta"),
    "text": ({"labels": [np.array(["a"])]}, TypeError, r"labels\[0\]: got ndarray, which cannot be read as a tensor"),
    "complex": ({"labels": [Y[0].cfloat()]}, TypeError, r"labels\[0\]: got \(7, 8\) complex64, expected a real dtype"),
    "float8 matrix": (
        {"labels": torch.eye(2).to(F8)},
        TypeError,
        r"labels: got \(2, 2\) float8_e5m2, expected a real dtype",
    ),
    "array without axes": ({"labels": [np.array(3)]}, TypeError, r"labels\[0\]: got ndarray, expected a label map"),
    "no axis": ({"labels": torch.tensor(3)}, TypeError, r"labels: got Tensor, expected a sequence of label maps"),
    "empty": ({"labels": []}, ValueError, r"labels: got none"),
    "no sequence": ({"labels": iter([Y])}, TypeError, r"labels: got list_iterator, expected a sequence"),
    "pictures": ({"labels": [Picture()]}, TypeError, r"labels\[0\]: got Picture, which .*numpy.asarray\(label\)"),
    "pairs": ({"labels": [("image", Y[0])]}, TypeError, r"labels\[0\]: got tuple, .*\[label for _, label in dataset\]"),
    "size 0": ({"size": 0}, ValueError, r"size: got 0, expected 1 or more"),
    "size float": ({"size": 2.0}, TypeError, r"size: got 2.0, expected an int"),
    "num_classes": ({"num_classes": 0}, ValueError, r"num_classes: got 0"),
    "beyond num_classes": (
        {"labels": [Y[0]], "num_classes": 2},
        ValueError,
        r"labels\[0\]: got the values 2, expected .*\[0, 2\)",
    ),
    "0/255": ({"labels": [(Y[0] > 0).long() * 255]}, ValueError, r"labels\[0\]: .*use mask // 255"),
    "0/255 vectors": ({"labels": V * 255, "multilabel": True}, ValueError, r"labels\[0\]: .*use mask // 255"),
    "float classes": ({"labels": [Y[0].float()]}, TypeError, r"labels\[0\]: got .*float32, expected class indices"),
    "absent": ({"num_classes": 5}, ValueError, r"none holds class 3, 4, expected every class"),
    "matrix": ({"labels": np.array([[2, 0]])}, ValueError, r"labels: got the values 2, .*multilabel=False"),
    "columns": ({"labels": np.eye(3), "num_classes": 2}, ValueError, r"presence matrix .*expected 2 columns"),
    "ragged": ({"labels": [torch.ones(2, 4, 4), torch.ones(3, 4, 4)]}, ValueError, r"first axes \[2, 3\], read as"),
    "all ignored": ({"labels": [torch.full((4, 4), -100)]}, ValueError, r"ignore_index=-100 at every pixel"),
    "uncoverable": (
        {"labels": [torch.tensor([i, 9]) for i in (0, 4, 5, 7)], "size": 3},
        ValueError,
        r"found no 3 of the 4 labeled images .*still lacks class 7\); 4 images do: use size=4",
    ),
}


@pytest.mark.parametrize(("changed", "error", "message"), POOL.values(), ids=POOL)
def test_reference_pool(changed, error, message):
    with pytest.raises(error, match=message):
        ReferencePool(**{"labels": Y, **changed})
