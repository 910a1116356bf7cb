"""References shared out over processes: the same as one process that holds all of them."""

import pytest
import torch
import torch.distributed as dist
from torch.optim.swa_utils import AveragedModel

from rpg_loss import FixMatchSegLoss, RPGLoss, rpg_pseudo_labels, segmentation_cross_entropy
from rpg_loss.matching import match
from rpg_loss.matching.chunked import match_chunked
from rpg_loss.matching.references import LocalReferences, ShardedReferences

from .problems import HAS_TRITON, needs_triton
from .processes import needs_gloo, run

pytestmark = needs_gloo


def shares(n, world, rank):
    """Uneven shares, in order: the first process has most."""
    bounds = [round(n * (i / world) ** 0.5) for i in range(world + 1)]
    return slice(bounds[rank], bounds[rank + 1])


def problem(multilabel=False, m=60, n=150, d=8):
    feat_u, feat_ref = torch.randn(m, d), torch.randn(n, d).relu()
    feat_ref[100:120] = feat_ref[:20]  # ties between processes
    if multilabel:
        y = torch.randint(2, (n, 3))
        y[:50, 2] = 0  # sets that the first process does not have
    else:
        y = torch.arange(n) // 20  # every process has other classes
    return feat_u, feat_ref, y


def assert_same(got, expected):
    assert torch.equal(got.labels, expected.labels)
    torch.testing.assert_close(got.weights, expected.weights, atol=1e-5, rtol=0)


def check_union(rank, world, impl="auto"):
    for multilabel in (False, True):
        feat_u, feat_ref, y = problem(multilabel)
        mine = shares(len(feat_ref), world, rank)
        for k in (1, 20, 75, 150, 0.3, 1.0):
            expected = rpg_pseudo_labels(feat_u, feat_ref, y, k)
            got = rpg_pseudo_labels(feat_u, feat_ref[mine], y[mine], k, group=dist.group.WORLD, impl=impl)
            assert_same(got, expected)


def check_small_pieces(rank, world):
    """The number of exchanges must not depend on what one process holds."""
    feat_u, feat_ref, y = problem()
    mine = shares(len(feat_ref), world, rank)
    expected = match(feat_u, LocalReferences(feat_ref, y, 8), 40)
    for kept in (0, 700, 2**20):  # kept by none, by some but not all on their own, by all
        shards = ShardedReferences(feat_ref[mine], y[mine], 8, dist.group.WORLD)
        got = match_chunked(feat_u, shards, 40, block=13, tile=200, kept=kept)
        assert torch.equal(got.nearest_sets, expected.nearest_sets)
        torch.testing.assert_close(got.proximities, expected.proximities, atol=1e-6, rtol=0)


def check_unions(rank, world):
    check_union(rank, world)
    check_small_pieces(rank, world)
    check_own_queries(rank, world)


def check_own_queries(rank, world):
    feat_u, feat_ref, y = problem()
    mine, queries = shares(len(feat_ref), world, rank), slice(rank * 7, rank * 7 + 5 + rank)
    expected = rpg_pseudo_labels(feat_u[queries], feat_ref, y, 40)
    got = rpg_pseudo_labels(feat_u[queries], feat_ref[mine], y[mine], 40, group=dist.group.WORLD)
    assert_same(got, expected)


def check_impl(rank, world):
    """The kernels passed their self-check on one process alone: all run what every one can."""
    import rpg_loss.pseudo_labels as module

    feat_u, feat_ref, y = problem()
    mine = shares(len(feat_ref), world, rank)
    expected = rpg_pseudo_labels(feat_u, feat_ref, y, 40)
    module.resolve = lambda *args: "triton" if rank == 0 else "chunked"
    module.match, match = lambda *args: used.append(args[3]) or match(*args), module.match
    used = []
    assert_same(rpg_pseudo_labels(feat_u, feat_ref[mine], y[mine], 40, group=dist.group.WORLD), expected)
    assert used == ["chunked"]


def check_process_without_references(rank, world):
    feat_u, feat_ref, y = problem()
    mine = slice(0, 150) if rank == 1 else slice(0, 10)
    own = y[mine] if rank == 1 else torch.full((10,), -100)
    expected = rpg_pseudo_labels(feat_u, feat_ref, y, 40)
    assert_same(rpg_pseudo_labels(feat_u, feat_ref[mine], own, 40, group=dist.group.WORLD), expected)
    feat_u, feat_ref, y = problem(multilabel=True)
    own = y if rank == 1 else torch.full_like(y, -100)
    expected = rpg_pseudo_labels(feat_u, feat_ref, y, 40)
    for impl in ("chunked", "triton") if HAS_TRITON else ("chunked",):
        assert_same(rpg_pseudo_labels(feat_u, feat_ref, own, 40, group=dist.group.WORLD, impl=impl), expected)
    feat_u, feat_ref, y = problem()
    with pytest.raises(ValueError, match="y_ref: got no labeled reference on any process of the group"):
        rpg_pseudo_labels(feat_u, feat_ref[:10], torch.full((10,), -100), 40, group=dist.group.WORLD)


def check_copies(rank, world):
    """A moving average of a module copies the losses in it; the group they share."""
    group = dist.group.WORLD
    maps, labels = torch.randn(1, 3, 4, 4), torch.randint(3, (1, 4, 4))
    for loss, call in (
        (RPGLoss(4, group=group), (maps, maps, maps, labels)),
        (FixMatchSegLoss(group=group), (maps, maps)),
    ):
        copied = AveragedModel(torch.nn.Sequential(loss)).module[0]
        assert copied is not loss
        assert copied.group is group
        assert torch.equal(copied(*call), loss(*call))


def check_refusals(rank, world):
    """Where one process is refused its arguments, all raise: none waits for ever."""
    group = dist.group.WORLD
    feat_u, feat_ref, y = problem()
    if rank == 1:
        with pytest.raises(ValueError, match=r"^feat_ref: got .* NaN"):
            rpg_pseudo_labels(feat_u, feat_ref * torch.nan, y, 4, group=group)
    else:
        with pytest.raises(ValueError, match=r"group: rank 1 of it was refused its arguments: feat_ref: got .* NaN"):
            rpg_pseudo_labels(feat_u, feat_ref, y, 4, group=group)
    with pytest.raises(ValueError, match=r"group: got k .* on rank . and .* on rank ., expected the same"):
        rpg_pseudo_labels(feat_u, feat_ref, y, 4 + rank, group=group)
    with pytest.raises(ValueError, match=r"group: got features per pixel . on rank . and . on rank ., expected"):
        rpg_pseudo_labels(feat_u[:, rank:], feat_ref[:, rank:], y, 4, group=group)
    with pytest.raises(ValueError, match='impl: got "reference" with a group'):
        rpg_pseudo_labels(feat_u, feat_ref, y, 4, group=group, impl="reference")
    criterion = RPGLoss(4, group=group)
    maps = torch.randn(1, 3, 4, 4)
    y_map = torch.zeros(1, 4, 4, dtype=torch.int64).fill_(5 if rank == 0 else 0)
    with pytest.raises(ValueError, match=r"y_ref: got the values 5"):
        criterion(maps, maps, maps, y_map)
    with pytest.raises(ValueError, match=r"y_ref: got shape"):
        criterion.pseudo_labels(maps, maps, y_map[0] if rank == 0 else y_map)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"y_ref: got the values {bad}"):
            criterion(maps, maps, maps, torch.full((1, 3, 4, 4), bad if rank == 0 else 1.0))
    # The group is in step afterwards.
    check_own_queries(rank, world)


def check_arguments_that_differ(rank, world):
    """What would give each process another loss, or let one wait for the other, is refused on both."""
    group = dist.group.WORLD
    maps, y_map = torch.randn(1, 3, 4, 4), torch.randint(3, (1, 4, 4))

    def refused(name):
        return pytest.raises(ValueError, match=rf"group: got {name} .* on rank . and .* on rank ., expected the same")

    for name, values in {
        "ignore_index": (-100, 9),
        "map_size": (2, 3),
        "weighted": (True, False),
        "k": (1, 1.0),
    }.items():
        with refused(name):
            RPGLoss(**{"k": 4, name: values[rank]}, group=group)(maps, maps, maps, y_map)
    with refused("logits_ref"):
        RPGLoss(4, group=group)(maps, maps, maps, y_map, maps if rank else None)
    with refused("channels of logits_u"):
        RPGLoss(4, group=group)(torch.zeros(1, 3 + rank, 4, 4), maps, maps, y_map)
    for name, values in {"threshold": (0.8, 0.9), "cutout": ("ignore", "background")}.items():
        with refused(name):
            FixMatchSegLoss(**{name: values[rank]}, group=group)(maps, maps)
    with refused("multilabel"):
        FixMatchSegLoss(multilabel=rank == 0, group=group)(maps, maps)
    with refused("ignore_index"):
        segmentation_cross_entropy(maps, y_map, ignore_index=rank, group=group)
    check_own_queries(rank, world)


def check_refusals_of_fixmatch(rank, world):
    group, maps = dist.group.WORLD, torch.randn(2, 3, 4, 4)

    def fail(maps):
        raise RuntimeError("the warp's own")

    criterion = FixMatchSegLoss(0.5, group=group)
    cases = [
        (
            lambda: criterion(maps, maps[:1] if rank == 1 else maps),
            ValueError,
            "logits_weak, logits_strong: got",
        ),
        (lambda: criterion(maps, maps, warp=fail if rank == 1 else None), RuntimeError, "the warp's own"),
        (
            lambda: segmentation_cross_entropy(maps, maps[:, 0] if rank == 1 else maps[:, 0].long(), group=group),
            TypeError,
            "target: got a class map",
        ),
    ]
    for call, error, message in cases:
        expected = (error, message) if rank == 1 else (ValueError, f"group: rank 1 .* its arguments: {message}")
        with pytest.raises(expected[0], match=expected[1]):
            call()
    # The group is in step afterwards, and the mean is over the pixels of all.
    weak, strong = 3 * torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)
    valid = torch.rand(4, 4, 4) < 0.5
    expected = FixMatchSegLoss(0.5)(weak, strong, valid_weak=valid)
    mine = slice(0, 1) if rank == 0 else slice(1, 4)
    loss = criterion(weak[mine], strong[mine], valid_weak=valid[mine])
    dist.all_reduce(loss)
    torch.testing.assert_close(loss / world, expected)


def check_loss(rank, world):
    """Each process its own images, all pools together: the mean over processes is the loss of one process."""
    logits_u, feat_u = torch.randn(4, 3, 4, 4), torch.randn(4, 5, 4, 4)
    feat_ref, y = torch.randn(4, 5, 4, 4), torch.randint(3, (4, 4, 4))
    expected = RPGLoss(0.5)(logits_u, feat_u, feat_ref, y)
    mine = slice(2 * rank, 2 * rank + 2)
    loss = RPGLoss(0.5, group=dist.group.WORLD)(logits_u[mine], feat_u[mine], feat_ref[mine], y[mine])
    dist.all_reduce(loss)
    torch.testing.assert_close(loss / world, expected)


def check_compiled(rank, world):
    """The exchange stays outside of the compiled graphs."""
    logits_u, feat_u = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    feat_ref, y = torch.randn(4, 5, 4, 4), torch.randint(3, (4, 4, 4))
    criterion = RPGLoss(0.5, group=dist.group.WORLD)
    mine = slice(2 * rank, 2 * rank + 2)
    expected = RPGLoss(0.5)(logits_u, feat_u, feat_ref, y)
    for _ in range(2):
        got = torch.compile(criterion, backend="eager")(logits_u, feat_u, feat_ref[mine], y[mine])
        torch.testing.assert_close(got, expected)


# Processes take seconds to start: a test for each number of them.


def check_pairs(rank, world):
    for check in (
        check_process_without_references, check_refusals, check_arguments_that_differ,
        check_refusals_of_fixmatch, check_copies, check_loss, check_compiled,
    ):  # fmt: skip
        torch.manual_seed(0)
        check(rank, world)


def check_implementations(rank, world):
    check_union(rank, world, impl="triton")
    check_impl(rank, world)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_union_equals_one_process(world, tmp_path):
    run(check_unions, world, tmp_path)


def test_groups_are_one_process_and_refuse_together(tmp_path):
    run(check_pairs, 2, tmp_path)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU this takes one GPU per process")
def test_the_fused_kernels_and_processes_that_agree_on_an_implementation(tmp_path):
    run(check_implementations, 2, tmp_path)
