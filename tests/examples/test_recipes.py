"""The recipes run as they are and teach their networks what they say; an untrained network has an IoU below .25."""

import importlib
from pathlib import Path

import pytest
import torch

from examples.scans import draw_scans, mean_iou

ROOT = Path(__file__).parents[2]


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


def test_plain_pytorch():
    assert run("plain_pytorch") > 0.7


def test_the_loop_in_the_readme_is_that_of_the_recipe():
    """Line by line: what the README leaves out is what stands before and after."""

    def lines(text):
        return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("from", "import"))]

    shown = lines((ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0])
    recipe = iter(lines((ROOT / "examples" / "recipes" / "plain_pytorch.py").read_text()))
    assert [line for line in shown if line not in recipe] == []
