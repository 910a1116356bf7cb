"""What a run depends on beside its options and data."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "kornia", "pillow", "triton")


def environment(device: str) -> dict[str, Any]:
    """Return versions, machine, device, threads and commit."""
    gpu = torch.device(device).type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if gpu else device,
        "cuda": torch.version.cuda if gpu else None,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "commit": git_commit(),
    }


def flat(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of an environment by name, versions of packages among it."""
    return {**{name: value for name, value in environment.items() if name != "packages"}, **environment["packages"]}


def git_commit() -> str:
    """Return the commit of these examples, with -dirty if files have changed since; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
