"""Laws of a training step: under mixed precision, with accumulated gradients, on several processes.

The steps here are those of the library's users: a network that gives logits and features, RPGLoss with its supervised
term, FixMatchSegLoss beside it.  The networks have no batch norm: its statistics see one micro-batch, or the
share of one process, so that with it neither accumulation nor data parallelism is the same as one large batch.
"""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rpg_loss import FixMatchSegLoss, RPGLoss, segmentation_cross_entropy

from .processes import needs_gloo, run

both_kinds = pytest.mark.parametrize("multilabel", [False, True], ids=["class map", "label vectors"])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, images):
        features = self.body(images)
        return self.head(features), features


def data(multilabel, pool=4, batch=4, side=8):
    """Images of a pool, its labels, unlabeled images."""
    y = torch.randint(2, (pool, 3, side, side)) if multilabel else torch.randint(3, (pool, side, side))
    return 3 * torch.randn(pool, 1, side, side), y, 3 * torch.randn(batch, 1, side, side)


def criteria(multilabel, group=None):
    return RPGLoss(0.3, map_size=6, group=group), FixMatchSegLoss(0.4, multilabel=multilabel)


def loss_of(net, criteria, images, y, images_u):
    """One step's loss: supervised, RPG and FixMatch, on copies with other contrast."""
    rpg, fixmatch = criteria
    logits, features = net(images)
    logits_u, features_u = net(images_u)
    logits_strong, _ = net(images_u + images_u.sin())
    return rpg(logits_u, features_u, features, y, logits) + fixmatch(logits_u, logits_strong)


def gradient(net):
    flat = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
    net.zero_grad()
    return flat


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@both_kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_the_network_and_not_the_loss(dtype, multilabel):
    """Of the same half-precision logits and features the losses are the same, to the bit, under autocast and not."""
    net, (images, y, images_u) = Net(), data(multilabel)
    with torch.autocast("cpu", dtype=dtype):
        (logits, features), (logits_u, features_u) = net(images), net(images_u)
    assert logits.dtype == features.dtype == dtype
    rpg, fixmatch = RPGLoss(0.3), FixMatchSegLoss(0.4, multilabel=multilabel)
    outcomes = []
    for enabled in (True, False):
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            outcomes.append(
                [rpg(logits_u, features_u, features, y, logits), fixmatch(logits_u, logits[: len(logits_u)])]
            )
    assert outcomes[0] == outcomes[1]
    assert all(loss.dtype == torch.float32 for loss in outcomes[0])


@both_kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_under_autocast_is_that_of_float32_within_rounding(dtype, multilabel):
    """Within 10 %: the label of a pixel between two may be another after rounding."""
    net, batch = Net(), data(multilabel)
    loss_of(net, criteria(multilabel), *batch).backward()
    expected = gradient(net)
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_of(net, criteria(multilabel), *batch)
    loss.backward()
    assert relative_error(gradient(net), expected) < 0.1


@both_kinds
def test_a_grad_scaler_saves_small_weights_from_vanishing(multilabel):
    """Weights near 0 over many pixels are below the smallest float16; scaled, they give float32's gradient."""
    net, batch, tiny = Net(), data(multilabel), 1e-6
    (tiny * loss_of(net, criteria(multilabel), *batch)).backward()
    expected = gradient(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    errors = []
    for scaled in (False, True):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = tiny * loss_of(net, criteria(multilabel), *batch)
        (scaler.scale(loss) if scaled else loss).backward()
        if scaled:
            scaler.unscale_(optimizer)
        errors.append(relative_error(gradient(net), expected))
    assert errors[0] > 0.5
    assert errors[1] < 0.1


def test_a_grad_scaler_skips_what_overflows_and_trains_on():
    net, batch = Net(), data(False)
    optimizer, scaler = torch.optim.SGD(net.parameters(), 0.5), torch.amp.GradScaler("cpu", init_scale=2.0**32)
    before = copy.deepcopy(net.state_dict())
    history = []
    for _ in range(40):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_of(net, criteria(False), *batch)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        history.append(loss.item())
        if len(history) == 1:  # skipped: half precision ends far below 2^32
            assert scaler.get_scale() == 2.0**31
            assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert history[-1] < 0.95 * history[0]


@both_kinds
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_accumulate_to_one_batch(parts, multilabel):
    """Equal parts of the unlabeled images, each against the whole pool, give the gradient of all of them.

    Not if each part has a pool of its own: its nearest references are others then, and so are its pseudo-labels.
    """
    net, (images, y, images_u) = Net(), data(multilabel)
    loss_of(net, criteria(multilabel), images, y, images_u).backward()
    expected = gradient(net)
    for part in images_u.chunk(parts):
        (loss_of(net, criteria(multilabel), images, y, part) / parts).backward()
    torch.testing.assert_close(gradient(net), expected, atol=1e-6, rtol=1e-4)


@both_kinds
def test_micro_batches_with_ignored_pixels_count_by_what_is_not_ignored(multilabel):
    """The losses are means over pixels that count: parts of unlike size need their share as a weight."""
    net, (images, y, images_u) = Net(), data(multilabel)
    valid = torch.ones(4, 8, 8, dtype=torch.bool)
    valid[:2, 2:] = False

    def unlabeled(part, valid_part):
        (_, features), (logits_u, features_u) = net(images), net(part)
        return RPGLoss(0.3, map_size=None)(logits_u, features_u, features, y, valid_u=valid_part)

    unlabeled(images_u, valid).backward()
    expected = gradient(net)
    parts = list(zip(images_u.chunk(2), valid.chunk(2), strict=True))
    for part, valid_part in parts:
        (unlabeled(part, valid_part) * valid_part.sum() / valid.sum()).backward()
    torch.testing.assert_close(gradient(net), expected, atol=1e-6, rtol=1e-4)
    for part, valid_part in parts:
        (unlabeled(part, valid_part) / 2).backward()
    assert relative_error(gradient(net), expected) > 0.01


@both_kinds
def test_compiled_under_autocast(multilabel):
    """Network and losses in one graph: the same loss, and gradients that differ by the order of half-precision sums."""
    torch.compiler.reset()
    net, batch = Net(), data(multilabel)
    step = functools.partial(loss_of, net, criteria(multilabel))
    outcomes = []
    for run_step in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = run_step(*batch)
        loss.backward()
        outcomes.append((loss.detach(), gradient(net)))
    torch.testing.assert_close(outcomes[1][0], outcomes[0][0])
    assert relative_error(outcomes[1][1], outcomes[0][1]) < torch.finfo(torch.bfloat16).eps


def check_data_parallel(rank, world):
    mine = slice(4 // world * rank, 4 // world * (rank + 1))
    for multilabel in (False, True):
        steps = [data(multilabel) for _ in range(4)]
        alone = Net()
        shared = DistributedDataParallel(copy.deepcopy(alone))
        outcomes = []
        for net, part, group in ((alone, slice(None), None), (shared, mine, dist.group.WORLD)):
            optimizer, history = torch.optim.SGD(net.parameters(), 0.5), []
            for step in steps:
                loss = loss_of(net, criteria(multilabel, group), *(tensor[part] for tensor in step))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                history.append(loss.detach())
            outcomes.append(torch.stack(history))
        expected, got = outcomes
        dist.all_reduce(got)
        torch.testing.assert_close(got / world, expected, atol=1e-5, rtol=1e-5)
        for ours, theirs in zip(shared.module.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def check_unlike_shares(rank, world):
    """The first process has three of the four images, and nearly all pixels that are not ignored."""
    mine = slice(0, 3) if rank == 0 else slice(3, 4)
    for multilabel in (False, True):
        images, y, images_u = data(multilabel)
        valid = torch.ones(4, 8, 8, dtype=torch.bool)
        valid[3, 1:], y[3, ..., 2:] = False, -100
        alone = Net()
        shared = DistributedDataParallel(copy.deepcopy(alone))
        losses = []
        for net, part, group in ((alone, slice(None), None), (shared, mine, dist.group.WORLD)):
            rpg = RPGLoss(0.3, map_size=6, group=group)
            fixmatch = FixMatchSegLoss(0.4, multilabel=multilabel, group=group)
            logits, features = net(images[part])
            logits_u, features_u = net(images_u[part])
            loss = rpg(logits_u, features_u, features, y[part], logits, valid_u=valid[part])
            loss = loss + fixmatch(logits_u, net(images_u[part].sin())[0], valid_weak=valid[part])
            loss.backward()
            losses.append(loss.detach())
        dist.all_reduce(losses[1])
        torch.testing.assert_close(losses[1] / world, losses[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient(shared), gradient(alone), atol=1e-6, rtol=1e-4)


def check_nothing_to_learn(rank, world):
    """Where all processes ignore everything, and where one does."""
    for ignored in ((0, 1), (1,)):
        logits = torch.zeros(1, 2, 3, requires_grad=True)
        target = torch.full((1, 3), -100 if rank in ignored else 0)
        loss = segmentation_cross_entropy(logits, target, group=dist.group.WORLD)
        loss.backward()
        expected = 0.0 if rank in ignored else world * torch.tensor(2.0).log().item()
        assert loss.item() == pytest.approx(expected)
        assert bool((logits.grad == 0).all()) == (rank in ignored)


def check_processes(rank, world):
    check_data_parallel(rank, world)
    check_unlike_shares(rank, world)
    check_nothing_to_learn(rank, world)


@needs_gloo
def test_steps_shared_out_over_processes_equal_those_of_one(tmp_path):
    """With ``group`` and shares of pool and unlabeled images: the mean loss, and the network after each step.

    Not without ``group``, where every process matches its own pool and takes the mean over its own pixels.
    """
    run(check_processes, 2, tmp_path)
