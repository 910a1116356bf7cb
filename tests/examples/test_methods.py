"""What each method teaches, on overlapping labels and on classes that exclude each other."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.nn import functional as F

from examples.config import Config
from examples.data import IGNORE_INDEX, Dataset, ImageSet
from examples.data.augment import StrongView, View, WeakAugmentation
from examples.engine.metrics import class_masks
from examples.methods import METHODS
from examples.methods.ema import EARLY, EMA, LATE, decay, ramp_up
from examples.methods.iic import dense_mutual_information, mutual_information
from examples.methods.mlds import coarse_targets, one_hot
from examples.models.unet import UNet
from rpg_loss import segmentation_cross_entropy
from tests.examples.tiny import encode_small

SIDE = 32
seeds = st.integers(0, 2**31)


def dataset(*, multilabel: bool) -> Dataset:
    """Four images of two squares each, which are its classes."""
    labels = torch.zeros(4, 2, SIDE, SIDE, dtype=torch.int8)
    for i in range(4):
        labels[i, 0, 2 + i : 14 + i, 2:12] = 1
        labels[i, 1, 14:28, 16 + i : 28 + i] = 1
    images = (labels[:, :1] - labels[:, 1:]).float() * 0.8 + 0.1 * torch.randn(4, 1, SIDE, SIDE)
    if not multilabel:
        labels = labels[:, 0].long() + 2 * labels[:, 1].long()
    every = ImageSet(images, labels, tuple("abcd"))
    return Dataset(every, every, every, every, ("first", "second"), ((0, 1),), multilabel, "drawn")


@pytest.fixture(autouse=True)
def _encoded_small(monkeypatch):
    encode_small(monkeypatch.setattr)


@pytest.fixture(params=[True, False], ids=["multilabel", "multiclass"])
def data(request) -> Dataset:
    return dataset(multilabel=request.param)


def config(**changes) -> Config:
    return replace(
        Config("phantom", image_size=SIDE, base_channels=4, map_size=16, k=0.5, pool_size=3, threshold=0.6), **changes
    )


def build(name: str, data: Dataset, **changes):
    torch.manual_seed(0)
    net = UNet(1, data.num_outputs, 4)
    return METHODS[name](config(method=name, **changes), data, net, 70), net


def views(data: Dataset, seed: int = 0) -> tuple[View, View]:
    weak = WeakAugmentation(data.flip_pairs, Generator().manual_seed(seed), multilabel=data.multilabel)
    return weak(data.labeled.images[:3], data.labeled.labels[:3]), weak(data.labeled.images, data.labeled.labels)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_moves_the_network(name, data):
    method, net = build(name, data)
    pool, unlabeled = views(data)
    step = method(net, pool, unlabeled, 1)
    assert step.loss.ndim == 0
    step.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert step.terms.keys() >= {"supervised"}


@pytest.mark.parametrize(
    ("name", "multilabel"), [*((name, True) for name in METHODS), ("supervised", False), ("mlds", False)]
)
def test_training_fits_the_pool(name, multilabel):
    # The classes differ in brightness, which a flip leaves as it is.
    data = replace(dataset(multilabel=multilabel), flip_pairs=())
    method, net = build(name, data, lambda_u=0.1)
    trained = [p for p in (*net.parameters(), *method.parameters()) if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=5e-3)
    supervised = []
    for step in range(1, 31):
        result = method(net, *views(data, step), step)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        method.after_step(net, step)
        supervised.append(result.terms["supervised"].item())
    assert sum(supervised[-5:]) < 0.7 * sum(supervised[:5])


@pytest.mark.parametrize("name", METHODS)
def test_labels_of_the_unlabeled_view_are_not_looked_at(name, data):
    pool, unlabeled = views(data)
    fooled = unlabeled._replace(labels=torch.zeros_like(unlabeled.labels))
    results = []
    for view in (unlabeled, fooled):
        method, net = build(name, data)
        results.append(method(net, pool, view, 1).loss)
    assert results[0] == results[1]


@pytest.mark.parametrize("name", METHODS)
def test_lambda_u_weighs_what_is_unlabeled(name, data):
    pool, unlabeled = views(data)
    method, net = build(name, data, lambda_u=0)
    step = method(net, pool, unlabeled, 70)
    expected = step.terms["supervised"] + step.terms.get("scales", 0)
    assert step.loss.item() == pytest.approx(torch.as_tensor(expected).item(), abs=1e-6)


@pytest.mark.parametrize("name", ["pseudolabel", "nearest_neighbor", "fixmatch", "rpg", "rpg_plus", "transfer"])
def test_the_loss_is_the_sum_of_its_terms(name, data):
    method, net = build(name, data)
    step = method(net, *views(data), 1)
    assert step.loss.item() == pytest.approx(sum(term.item() for term in step.terms.values()), rel=1e-5)


@pytest.mark.parametrize("name", ["pseudolabel", "nearest_neighbor", "fixmatch", "rpg", "rpg_plus", "transfer"])
def test_pixels_that_augmentation_uncovered_teach_nothing(name, data):
    pool, unlabeled = views(data)
    method, net = build(name, data, cutout="ignore")
    step = method(net, pool, unlabeled._replace(valid=torch.zeros_like(unlabeled.valid)), 1)
    assert {term.item() for name, term in step.terms.items() if name != "supervised"} == {0}


def known_masks(data: Dataset) -> Callable[[Tensor], Tensor]:
    """Return what proposes the truth for each of the images."""
    masks = class_masks(data.labeled.labels, 2)
    true = {image.numpy().tobytes(): mask for image, mask in zip(data.labeled.images, masks, strict=True)}
    return lambda image: true[image.numpy().tobytes()]


def test_what_is_transferred_moves_with_its_image(data):
    """Proposals that are the truth become the labels of the view, mirrored classes and all."""
    method, _ = build("transfer", data)
    method.propose = known_masks(data)
    for seed in range(5):
        _, view = views(data, seed)
        labels = method.certain(method.carried(view)).labels
        known = view.labels != IGNORE_INDEX
        assert ((labels == view.labels) | ~known).float().mean() > 0.97  # bilinear, and nearest


def test_what_is_transferred_teaches_the_weak_and_the_strong_view(data, monkeypatch):
    """By hand: half of the term from either, the labels moved as the images; none where a square was cut out."""
    method, _ = build("transfer", data)
    method.propose = known_masks(data)
    pool, view = views(data)
    turned = torch.zeros_like(view.valid)
    turned[:, :8] = True  # the square, in the strong view's frame
    strong = StrongView(view.images.flip(-1), lambda maps: maps.flip(-1), turned)
    monkeypatch.setattr(method, "strong", lambda images: strong)
    logits = torch.randn(2, len(view.images), data.num_outputs, *view.valid.shape[1:])
    outputs = {"pool": logits[0, :3], "weak": logits[0], "strong": logits[1]}
    monkeypatch.setattr(
        method, "forward_views", lambda net, *seen: [(outputs[name], None) for name in ("pool", "weak", "strong")]
    )
    labels = method.certain(method.carried(view)).labels
    ignored = ~view.valid
    if data.multilabel:
        ignored, turned = ignored[:, None], turned[:, None]
    weak = segmentation_cross_entropy(outputs["weak"], labels.masked_fill(ignored, IGNORE_INDEX))
    moved = labels.flip(-1).masked_fill(ignored.flip(-1) | turned, IGNORE_INDEX)
    by_hand = (weak + segmentation_cross_entropy(outputs["strong"], moved)) / 2
    assert method(None, pool, view, 1).terms["transfer"].item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_what_is_transferred_is_right_and_made_once(data, monkeypatch):
    """Images like the references get their labels; then nothing is encoded any more."""
    method, net = build("transfer", data)
    pool, unlabeled = views(data)
    as_they_are = unlabeled._replace(carry=lambda maps: maps)
    labels = method.certain(method.carried(as_they_are)).labels
    assert (labels == data.labeled.labels).float().mean() > 0.97  # background alone: .86 at most
    monkeypatch.setattr(method, "propose", None)
    assert torch.equal(method.certain(method.carried(as_they_are)).labels, labels)
    assert torch.equal(build("transfer", data)[0].pseudo_labels(net, pool, unlabeled.clean).labels, labels)


def test_iic_looks_for_more_mutual_information(data):
    method, net = build("iic", data)
    step = method(net, *views(data), 1)
    supervised, information = (step.terms[name].item() for name in ("supervised", "mutual_information"))
    assert information > 0
    assert step.loss.item() == pytest.approx(supervised - 0.1 * information, rel=1e-5)


def test_pseudolabel_is_lees_loss(data):
    """sum(m CE) / sum(m), by hand."""
    method, net = build("pseudolabel", data)
    pool, unlabeled = views(data)
    twin = copy.deepcopy(net)
    twin(pool.images)
    logits = twin(unlabeled.images)[0].detach()
    tau, total, count = 0.6, 0.0, 0
    valid = unlabeled.valid
    if data.multilabel:
        for value in logits.movedim(1, -1)[valid].flatten().tolist():
            p = 1 / (1 + math.exp(-value))
            if p > tau or p < 1 - tau:
                total -= math.log(max(p, 1 - p))
                count += 1
    else:
        for row in logits.softmax(1).movedim(1, -1)[valid].tolist():
            if max(row) > tau:
                total -= math.log(max(row))
                count += 1
    result = method(net, pool, unlabeled, 1).terms["pseudolabel"]
    assert result.item() == pytest.approx(total / max(count, 1), rel=1e-4)


def test_shared_batch_norm_is_one_forward():
    data = dataset(multilabel=True)
    pool, unlabeled = views(data)
    method, net = build("rpg", data, batch_norm="shared")
    (logits_ref, _), (logits_u, features_u) = method.forward_views(net, pool.images, unlabeled.images)
    logits, features = net(torch.cat([pool.images, unlabeled.images]))
    assert torch.equal(torch.cat([logits_ref, logits_u]), logits)
    assert torch.equal(features_u, features[3:])
    separate, _ = build("rpg", data)
    assert not torch.allclose(separate.forward_views(net, pool.images, unlabeled.images)[0][0], logits_ref)


def test_unweighted_rpg_is_nearest_neighbor(data):
    pool, unlabeled = views(data)
    rpg, net = build("rpg", data, weighted=False)
    nearest, _ = build("nearest_neighbor", data)
    unweighted = rpg(net, pool, unlabeled, 1)
    assert unweighted.loss == nearest(net, pool, unlabeled, 1).loss
    assert set(unweighted.pseudo_labels.weights.unique().tolist()) <= {0, 1}
    weighted, _ = build("rpg", data)
    assert not set(weighted(net, pool, unlabeled, 1).pseudo_labels.weights.unique().tolist()) <= {0, 1}


def test_carry_takes_probabilities_where_labels_go(data):
    """Flips exchange left and right in probabilities, whether or not background has a channel, as in labels."""
    probabilities = data.labeled.labels.float()
    if not data.multilabel:
        probabilities = F.one_hot(data.labeled.labels, 3).movedim(-1, 1).float()
    for seed in range(5):
        _, view = views(data, seed)
        carried = view.carry(probabilities)
        labels = (carried > 0.5).to(torch.int8) if data.multilabel else carried.argmax(1)
        known = (view.labels != IGNORE_INDEX).unsqueeze(1) if not data.multilabel else view.labels != IGNORE_INDEX
        agree = (labels == view.labels).view_as(known)[known].float().mean()
        assert agree > 0.93  # all but what interpolation does at edges


# --- the mean teacher ---


def test_decay_and_ramp():
    assert [decay(step, 7000) for step in (1, 2, 3)] == [pytest.approx(x) for x in (1 / 2, 2 / 3, 3 / 4)]
    assert decay(1000, 7000) == EARLY
    assert decay(1001, 7000) == LATE
    assert decay(601, 600) == pytest.approx(0.99)  # a short run: no memory longer than a sixth of it
    assert decay(60, 60) == pytest.approx(0.9)
    assert ramp_up(0, 700) == pytest.approx(math.exp(-5))
    assert ramp_up(200, 700) == ramp_up(700, 700) == 1
    ramp = [ramp_up(step, 700) for step in range(201)]
    assert ramp == sorted(ramp)


@given(seed=seeds, steps=st.integers(1, 12))
def test_an_early_ema_is_the_mean_of_all_networks(seed, steps):
    net = torch.nn.Linear(3, 2)
    average = EMA(net, 10_000)
    seen = [net.weight.detach().clone()]
    generator = Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        net.weight.data = torch.randn(2, 3, generator=generator)
        seen.append(net.weight.detach().clone())
        average.update(net, step)
    torch.testing.assert_close(average.net.weight.detach(), torch.stack(seen).mean(0), atol=1e-5, rtol=1e-5)


@given(seed=seeds, steps=st.integers(1, 30))
def test_a_late_ema_is_the_closed_form(seed, steps):
    """t_n = a^n t_0 + (1 - a) sum_i a^(n - i) s_i."""
    generator = Generator().manual_seed(seed)
    net = torch.nn.Linear(3, 2)
    average = EMA(net, 7000)
    expected = LATE**steps * net.weight.detach()
    for i in range(1, steps + 1):
        net.weight.data = torch.randn(2, 3, generator=generator)
        expected = expected + (1 - LATE) * LATE ** (steps - i) * net.weight.detach()
        average.update(net, 6000)
    torch.testing.assert_close(average.net.weight.detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_warm_up_leaves_the_unlabeled_images_out_at_first(name, data):
    pool, unlabeled = views(data)
    method, net = build(name, data, warm_up=0.5)
    early, late = (method(net, pool, unlabeled, step) for step in (28, 70))
    learned = [
        (step.loss - step.terms["supervised"] - step.terms.get("scales", 0)).abs().item() for step in (early, late)
    ]
    assert learned[0] < 1e-6
    assert (learned[1] > 1e-6) == (name != "supervised")


@pytest.mark.parametrize("name", METHODS)
def test_the_ema_is_what_is_evaluated(name, data):
    method, net = build(name, data, ema=True)
    before = method.evaluated(net).head.weight.clone()
    assert method.evaluated(net) is not net
    with torch.no_grad():
        net.head.weight.add_(1)
    method.after_step(net, 1)
    torch.testing.assert_close(method.evaluated(net).head.weight, before + 0.5)
    assert not any(p.requires_grad for p in method.evaluated(net).parameters())
    supervised, net = build("supervised", data)
    assert supervised.evaluated(net) is net


# --- mutual information ---


def assignments(seed: int, clusters: int) -> torch.Tensor:
    return torch.rand(clusters, clusters, generator=Generator().manual_seed(seed)).double()


@given(seed=seeds, clusters=st.integers(2, 8))
def test_mutual_information_is_symmetric_and_bounded(seed, clusters):
    joint = assignments(seed, clusters)
    information = mutual_information(joint)
    torch.testing.assert_close(information, mutual_information(joint.T))
    torch.testing.assert_close(information, mutual_information(7 * joint))
    assert -1e-9 <= information <= math.log(clusters) + 1e-9


@given(seed=seeds, clusters=st.integers(2, 8))
def test_mutual_information_is_highest_for_one_to_one(seed, clusters):
    highest = mutual_information(torch.eye(clusters).double())
    assert float(highest) == pytest.approx(math.log(clusters), abs=1e-6)
    assert mutual_information(assignments(seed, clusters)) < highest


@given(seed=seeds, clusters=st.integers(2, 8))
def test_independent_assignments_share_nothing(seed, clusters):
    share = assignments(seed, clusters)[0].softmax(0)
    assert float(mutual_information(share[:, None] * share)) == pytest.approx(0, abs=1e-8)


@given(seed=seeds)
def test_dense_mutual_information_by_loops(seed):
    generator = Generator().manual_seed(seed)
    p, q = (torch.randn(2, 3, 5, 4, generator=generator).softmax(1) for _ in range(2))
    valid = torch.rand(2, 5, 4, generator=generator) < 0.8
    values = []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            joint = torch.zeros(3, 3)
            for b in range(2):
                for y in range(5):
                    for x in range(4):
                        if 0 <= y + dy < 5 and 0 <= x + dx < 4 and valid[b, y, x] and valid[b, y + dy, x + dx]:
                            joint += p[b, :, y, x, None] * q[b, :, y + dy, x + dx]
            values.append(mutual_information(joint))
    expected = torch.stack(values).mean()
    torch.testing.assert_close(dense_mutual_information(p, q, valid, 1), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dense_mutual_information(q, p, valid, 1), expected, atol=1e-5, rtol=1e-4)


def test_nothing_valid_gives_no_information():
    p = torch.randn(1, 3, 4, 4, requires_grad=True)
    information = dense_mutual_information(p.softmax(1), p.softmax(1), torch.zeros(1, 4, 4, dtype=torch.bool), 1)
    information.backward()
    assert information.item() == pytest.approx(0, abs=1e-6)
    assert p.grad.isfinite().all()


# --- multi-label deep supervision ---


@given(seed=seeds, multilabel=st.booleans(), size=st.sampled_from([1, 2, 4, 8, 16]))
def test_a_coarse_target_carries_every_class_in_its_cell(seed, multilabel, size):
    generator = Generator().manual_seed(seed)
    shape = (2, 3, 16, 16) if multilabel else (2, 16, 16)
    labels = torch.randint(0, 2 if multilabel else 4, shape, generator=generator)
    labels = labels * (torch.rand(shape, generator=generator) < 0.05)  # mostly background
    unknown = torch.rand(2, 16, 16, generator=generator) < 0.01
    labels = labels.masked_fill(unknown[:, None] if multilabel else unknown, IGNORE_INDEX)
    masks, known = one_hot(labels, 3)
    target, valid = coarse_targets(masks, known, torch.Size((size, size)))
    side = 16 // size
    for b in range(2):
        for y in range(size):
            for x in range(size):
                cell = (b, ..., slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
                assert bool(valid[b, y, x]) == (not bool(unknown[cell].any()))
                inside = labels[cell]
                if multilabel:
                    classes = [bool((inside[c] == 1).any()) for c in range(3)] + [bool((inside == 0).all(0).any())]
                else:
                    classes = [bool((inside == c).any()) for c in (1, 2, 3, 0)]
                assert target[b, :, y, x].bool().tolist() == classes
