"""The process's setting for float32 products: suspended while similarities are computed, and left as it was."""

import threading

import pytest
import torch

from rpg_loss.matching.normalize import full_float32_matmul

from .test_matching import matmul_settings

NEW_INTERFACE = hasattr(torch._C, "_set_fp32_precision_setter")
PRECISIONS = [(backend, op) for backend in ("cuda", "mkldnn") for op in ("matmul", "all")] + [("generic", "all")]


@pytest.fixture
def precisions():
    """What holds for each backend and operation; what a test sets is undone."""
    if not NEW_INTERFACE:
        pytest.skip("before torch 2.9 there is one setting for all")

    def set_all(**own):
        for key in PRECISIONS:
            torch._C._set_fp32_precision_setter(*key, own.get("_".join(key), "none"))

    legacy = torch.get_float32_matmul_precision()
    yield set_all, lambda: [torch._C._get_fp32_precision_getter(*key) for key in PRECISIONS]
    set_all()
    torch.set_float32_matmul_precision(legacy)
    set_all()


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"generic_all": "tf32"},
        {"cuda_all": "tf32", "mkldnn_all": "bf16"},
        {"cuda_matmul": "tf32", "mkldnn_matmul": "bf16"},
        {"generic_all": "tf32", "cuda_matmul": "tf32"},
        {"generic_all": "tf32", "cuda_all": "tf32"},
        {"generic_all": "tf32", "cuda_matmul": "ieee"},
    ],
    ids=str,
)
def test_what_was_inherited_is_inherited_afterwards(own, precisions):
    set_all, shown = precisions
    # What shows when a general setting is taken back is what was set for the parts alone.
    set_all(**own)
    before = shown()
    taken_back = []
    for inside in (False, True):
        set_all(**own)
        if inside:
            with full_float32_matmul():
                assert set(shown()[::2][:2]) <= {"none", "ieee"}
            assert shown() == before
        for key in (("generic", "all"), ("cuda", "all"), ("mkldnn", "all")):
            torch._C._set_fp32_precision_setter(*key, "none")
            taken_back.append(shown())
    assert taken_back[:3] == taken_back[3:]


@pytest.mark.parametrize("allow", [True, False])
def test_what_the_older_interface_has_set_is_restored(allow, precisions):
    torch.backends.cuda.matmul.allow_tf32 = allow
    before = precisions[1](), torch.get_float32_matmul_precision()
    with full_float32_matmul():
        assert precisions[1]()[0] in ("none", "ieee")
    assert torch.backends.cuda.matmul.allow_tf32 == allow
    assert (precisions[1](), torch.get_float32_matmul_precision()) == before


def test_no_thread_computes_with_what_another_restores():
    """The first that comes sets it, and the last that goes restores it, in whatever order threads come and go."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        settings = matmul_settings()
        first, second = full_float32_matmul(), full_float32_matmul()
        first.__enter__()
        full = matmul_settings()
        second.__enter__()
        first.__exit__(None, None, None)
        assert matmul_settings() == full
        second.__exit__(None, None, None)
        assert matmul_settings() == settings != full
        barrier = threading.Barrier(8, timeout=60)

        def products():
            barrier.wait()
            for _ in range(200):
                with full_float32_matmul():
                    seen.add(matmul_settings())

        seen = set()
        threads = [threading.Thread(target=products) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == {full}
        assert matmul_settings() == settings
    finally:
        torch.set_float32_matmul_precision(before)
