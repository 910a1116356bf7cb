"""The fused kernels compiled for cards that are not there; all variants: ``python -m benchmarks.compile_kernels``."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .problems import HAS_TRITON, needs_triton

pytestmark = [
    needs_triton,
    pytest.mark.skipif(
        HAS_TRITON and importlib.util.find_spec("triton.knobs") is None, reason="Triton before 3.4 hides its tools"
    ),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ptxas comes with Triton on Linux alone"),
]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def compile_kernels(tmp_path_factory):
    """Run the command in a process of its own, as this one interprets kernels; what is compiled once is remembered."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*arguments, before=""):
        code = f"import benchmarks.compile_kernels as it\n{before}\nit.main({[str(each) for each in arguments]})"
        environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)

    return run


def test_every_card_compiles_within_its_shared_memory_and_registers(compile_kernels, tmp_path):
    done = compile_kernels("--quick", "--json", tmp_path / "compiled.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "compiled.json").read_text())["rows"]
    cards = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
    kernels = ["set_maxima", "count_above", "lowest_key"]
    assert [(row["card"], row["kernel"]) for row in rows] == [(card, kernel) for card in cards for kernel in kernels]
    assert all(0 < row["registers"] <= 255 and 0 < row["shared"] <= row["limit"] for row in rows)


FAULTS = {
    "more shared memory than the card has": "it.CARDS[9, 0] = 1000",
    "more spilled than admitted": "usage = it.usage\nit.usage = lambda compiled: usage(compiled) | {'spilled': 200}",
    "CompilationError": "import rpg_loss.matching.kernels as kernels\ndel kernels._tile",
}


@pytest.mark.parametrize(("fault", "before"), FAULTS.items(), ids=FAULTS)
def test_kernels_that_a_card_cannot_take_are_named(compile_kernels, fault, before):
    done = compile_kernels("--quick", "--cards", "9.0", before=before)
    assert done.returncode == 1
    assert "sm_90 set_maxima float32 D 64: " in done.stderr
    assert fault in done.stderr
