"""On a GPU, at real sizes: the fused kernels and the chunked implementation against the definition on the CPU."""

import pytest
import torch

from rpg_loss import RPGLoss
from rpg_loss.matching import match
from rpg_loss.matching.definition import match_reference
from rpg_loss.matching.references import LocalReferences

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def problem(m=4096, n=12288, d=64, sets=9, dtype=torch.float32):
    """Features after a ReLU, with a direction per label set; the last references are copies of the first."""
    ids = torch.randint(sets, (n,))
    ids[:sets] = torch.arange(sets)
    centres = torch.randn(sets, d)
    u, r = ((centres[i] + torch.randn(len(i), d)).relu().to(dtype) for i in (torch.randint(sets, (m,)), ids))
    r[-100:] = r[:100]
    return u, r, ids


def assert_close_matches(got, expected, atol):
    """Labels may differ where two references are as near as rounding can tell, in few queries."""
    assert (got.nearest_sets.cpu() != expected.nearest_sets).float().mean() <= 1e-3
    off = ((got.proximities.cpu() - expected.proximities).abs() > atol).any(1)
    assert off.float().mean() <= 1e-3


@pytest.mark.parametrize("impl", ["triton", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("m", "n", "d", "sets"),
    [(4096, 12288, 64, 9), (1000, 5001, 64, 100), (333, 4000, 1024, 512), (65, 40000, 3, 2), (41, 401, 130, 1)],
)
def test_agreement_with_the_definition(m, n, d, sets, dtype, impl):
    u, r, ids = problem(m, n, d, sets, dtype)
    for k in (1, n // 10, n // 2, n):
        got = match(u.cuda(), LocalReferences(r.cuda(), ids.cuda(), sets), k, impl)
        assert_close_matches(got, match_reference(u, LocalReferences(r, ids, sets), k), atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["all alike", "opposite", "zeros", "tiny", "huge"])
def test_nasty_inputs(name, dtype):
    u, r, ids = problem(500, 3000, 40, 9)
    if name == "all alike":
        u, r = torch.ones_like(u), torch.ones_like(r)
    elif name == "opposite":
        r = -r
    elif name == "zeros":
        u[::2], r[::3] = 0, 0
    elif name == "tiny":
        u, r = u * 1e-4, r * 1e-4
    elif name == "huge":
        u, r = u * 1e3, r * 1e3
    u, r = u.to(dtype), r.to(dtype)
    for k in (1, 1000, 3000):
        got = match(u.cuda(), LocalReferences(r.cuda(), ids.cuda(), 9), k, "triton")
        assert_close_matches(got, match_reference(u, LocalReferences(r, ids, 9), k), atol=2e-6)


def test_auto_takes_the_fused_kernels_and_repeats_itself():
    u, r, ids = (arg.cuda() for arg in problem())
    references = LocalReferences(r, ids, 9)
    one, again, fused = (match(u, references, 7000, impl) for impl in ("auto", "auto", "triton"))
    for other in (again, fused):
        assert torch.equal(one.nearest_sets, other.nearest_sets)
        assert torch.equal(one.proximities, other.proximities)


def test_memory_of_full_resolution():
    """262,144 queries of 512 x 512 against three such images: neither a matrix nor a list of neighbors fits."""
    u, r, ids = (arg.cuda() for arg in problem(2**18, 3 * 2**18, 64, 9, torch.bfloat16))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    match(u, LocalReferences(r, ids, 9), len(r) // 2, "triton")
    # M |S| results, references sorted with their keys, and a slab.
    assert torch.cuda.max_memory_allocated() - before < 512 * 2**20


@pytest.mark.parametrize("impl", ["triton", "chunked"])
def test_loss_under_autocast_compiled_and_not(impl):
    head = torch.nn.Conv2d(64, 3, 1).cuda()
    feat_u, feat_ref = torch.rand(2, 64, 64, 64).cuda(), torch.rand(3, 64, 64, 64).cuda()
    y = torch.randint(3, (3, 64, 64)).cuda()
    y[:, :5] = -100
    criterion = RPGLoss(0.5, map_size=32, impl=impl)

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return criterion(head(feat_u), feat_u.bfloat16(), feat_ref.bfloat16(), y, head(feat_ref))

    expected = step()
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(), expected, atol=1e-2, rtol=1e-2)
    expected.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())
