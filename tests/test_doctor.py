"""``python -m rpg_loss.doctor``: what it finds, says and exits with on a machine without a GPU."""

import importlib.util
import json
import runpy
import sys

import pytest
import torch

import rpg_loss.doctor as doctor
import rpg_loss.matching.fused as fused
import rpg_loss.matching.self_check as self_check
from rpg_loss.matching import IMPLEMENTATIONS, Matches

from .problems import needs_triton, shrink_self_check

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(doctor, "_FEATURES", (3,))
    shrink_self_check(monkeypatch)
    times = doctor.times
    monkeypatch.setattr(doctor, "times", lambda device, m, n: times(device, 60, 90))


def test_a_healthy_machine(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "new"))
    doctor.main(["--device", "cpu"])
    printed = capsys.readouterr().out
    summary = printed.split("```")[1].splitlines()
    assert summary[1] == "python -m rpg_loss.doctor"
    assert f"installed: torch: {torch.__version__}, CUDA {torch.version.cuda}, 1 threads" in summary
    assert "installed: Triton's cache: writable" in summary
    assert [line.split(" (")[0] for line in summary if "agrees" in line] == [
        "cpu: reference: agrees", "cpu: chunked: agrees", "cpu: torch.compile: agrees"
    ]  # fmt: skip
    reason = "Triton is not installed; pip install triton"
    if importlib.util.find_spec("triton"):
        reason = "Triton would interpret its kernels"
    assert f"cpu: triton: not here: {reason}" in summary
    assert sum("cpu: times: " in line and " ms (first " in line for line in summary) == 4
    assert summary[-1] == "nothing wrong was found"


def spoiled(right, spoil):
    return lambda *args: Matches(*spoil(*right(*args)))


def noisy(labels, proximities):
    return labels, proximities * (1 - 1e-7 * torch.rand(proximities.shape))


SPOILED = {
    "nearest label sets are wrong": lambda labels, proximities: (labels.roll(1), proximities),
    "class proximities are wrong": lambda labels, proximities: (labels, proximities * 0.999),
    "results differ from one run to the next": noisy,
    "RuntimeError: broken": lambda labels, proximities: (_ for _ in ()).throw(RuntimeError("broken\nmore")),
}


@pytest.mark.parametrize(("fault", "how"), SPOILED.items(), ids=SPOILED)
def test_a_disagreement_is_named_and_the_exit_status_is_1(capsys, monkeypatch, fault, how):
    monkeypatch.setattr(doctor, "compiled", lambda device, **options: "agrees")
    monkeypatch.setitem(IMPLEMENTATIONS, "chunked", spoiled(IMPLEMENTATIONS["chunked"], how))
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--device", "cpu", "--json"])
    assert ended.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert f"FAILED: {fault}" in report["cpu"]["chunked"]
    assert report["cpu"]["reference"].startswith("agrees")
    assert f"cpu: chunked: {report['cpu']['chunked']}" in report["wrong"]
    with pytest.raises(SystemExit):
        doctor.main(["--device", "cpu"])
    assert f"wrong:\ncpu: chunked: FAILED: {fault}" in capsys.readouterr().out


def test_a_device_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--device", "gpu"])
    assert ended.value.code == 1
    assert "gpu: FAILED: RuntimeError: Expected one of cpu, cuda" in capsys.readouterr().out


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="in Triton's interpreter")
def test_the_fused_kernels_where_they_are_meant_to_run(monkeypatch):
    monkeypatch.setattr(fused, "is_preferred", lambda device: True)
    monkeypatch.setattr(self_check, "_verdicts", {(CPU, torch.float16, 16): None})  # tests of its own
    monkeypatch.setattr(self_check, "_SIZES", (1, 3, 20))
    monkeypatch.setattr(self_check, "_SETS", 3)
    monkeypatch.setattr(self_check, "_QUERIES", 9)
    monkeypatch.setattr(doctor, "_DTYPES", (torch.float32, torch.float16))
    reasons = {torch.float32: "it needs another version"}
    monkeypatch.setattr(doctor, "unavailable_reason", lambda impl, device, dtype=None: reasons.get(dtype))
    told = doctor.agreement("triton", CPU)
    assert told.startswith("agrees (")
    assert told.endswith("; it needs another version")
    reasons[torch.float16] = "it needs another card"
    assert doctor.agreement("triton", CPU) == "not here: it needs another version"


def test_compiled_code_that_differs(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *args, **options: lambda u, *rest: (torch.zeros(50), torch.zeros(50)))
    assert doctor.compiled(CPU) == "FAILED: results differ from those without"


def test_what_is_missing_is_none(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: "/nowhere")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/dev/null/cache")
    found = doctor.installed()
    assert [found[name] for name in ("triton", "C compiler", "Python.h", "Triton's cache")] == [
        "none", "none", "none", "not writable"
    ]  # fmt: skip


def test_all_devices_are_examined(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert doctor.devices() == ["cpu", "cuda:0", "cuda:1", "mps", "xpu"]


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor", "--help"])
    monkeypatch.delitem(sys.modules, "rpg_loss.doctor")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("rpg_loss.doctor", run_name="__main__")
    assert "The exit status is 1 if" in capsys.readouterr().out
