"""The recipes run as they are and teach their networks what they say; one class everywhere has an IoU below .25."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples.recipes.scans import draw_scans, mean_iou

from ..processes import needs_gloo

ROOT = Path(__file__).parents[2]
EXTRA = "pip install 'rpg-loss[recipes]'"


def run(recipe):
    return importlib.import_module(f"examples.recipes.{recipe}").main()


@pytest.mark.parametrize("size", [(32, 32), (6, 20, 24)])
def test_scans_hold_every_class(size):
    images, labels = draw_scans(8, *size)
    assert images.shape == (8, 1, *size)
    assert labels.shape == (8, *size)
    assert all(set(label.unique().tolist()) == {0, 1, 2} for label in labels)
    organ, lesion = labels == 1, labels == 2
    assert images[:, 0][organ].mean() > images[:, 0][lesion].mean() + 0.5
    assert mean_iou(labels, labels) == 1
    assert mean_iou(torch.where(lesion, 1, labels), labels) < 0.5


RECIPES = {
    "plain_pytorch": ((), 0.7),
    "volumes_3d": ((), 0.7),
    "lightning_module": (("lightning",), 0.7),
    "monai_unet": (("monai",), 0.7),
    "huggingface_trainer": (("accelerate", "transformers"), 0.5),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_teaches_its_network(recipe):
    packages, least = RECIPES[recipe]
    for package in packages:
        pytest.importorskip(package, reason=EXTRA)
    assert run(recipe) > least


def test_features_of_a_foundation_model():
    """Background alone would be right in four pixels of five."""
    pytest.importorskip("transformers", reason=EXTRA)
    precision, iou = run("foundation_features")
    assert precision > 0.85
    assert iou > 0.6


@needs_gloo
def test_torchrun():
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launched = subprocess.run(
        [sys.executable, *launch, "-m", "examples.recipes.torchrun_ddp"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    # Not the exit code: torch's gloo threads sometimes abort a process at its very end, after all is done.
    printed = re.search(r"the same in every process: ([\d.]+), ([\d.]+)$", launched.stdout, re.MULTILINE)
    assert printed, launched.stderr
    assert printed[1] == printed[2]
    assert float(printed[1]) > 0.6


def test_the_loop_in_the_readme_is_that_of_the_recipe():
    """Line by line: what the README leaves out is what stands before and after."""

    def lines(text):
        return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("from", "import"))]

    shown = lines((ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0])
    recipe = iter(lines((ROOT / "examples" / "recipes" / "plain_pytorch.py").read_text()))
    assert [line for line in shown if line not in recipe] == []
