"""The package as a user meets it: what it exports, what it drags in, its examples, the README's loop."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import rpg_loss

ROOT = Path(__file__).parent.parent


def test_importing_drags_in_nothing_heavy():
    code = """
import sys, torch
before = set(sys.modules)
import rpg_loss
print(sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert set(ast.literal_eval(printed)) <= {"rpg_loss", "torch"} | set(sys.stdlib_module_names)


def test_every_public_name_is_documented():
    for name in rpg_loss.__all__:
        assert inspect.getdoc(getattr(rpg_loss, name)), name


def test_typed():
    assert (ROOT / "rpg_loss" / "py.typed").exists()


@pytest.mark.parametrize(
    "module", ["rpg_loss", *(m.name for m in pkgutil.walk_packages(rpg_loss.__path__, "rpg_loss."))]
)
def test_docstring_examples(module):
    result = doctest.testmod(
        importlib.import_module(module), extraglobs={"torch": torch}, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.failed == 0


def test_every_public_name_has_an_example_that_is_executed():
    finder = doctest.DocTestFinder(recurse=False)
    for name in rpg_loss.__all__:
        public = getattr(rpg_loss, name)
        (found,) = finder.find(public, name, module=inspect.getmodule(public))
        assert found.examples, f"{name} has no example, or one that is not executed"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.classifier = nn.Conv2d(8, 3, 1)

    def forward(self, images):
        features = self.body(images)
        return self.classifier(features), features


def test_the_loop_in_the_readme():
    """The first Python block of the README runs as printed and trains the network."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    net = Net()
    labels = torch.randint(3, (4, 16, 16))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    scope = {
        "net": net,
        "optimizer": torch.optim.SGD(net.parameters(), 0.1),
        "labeled": list(zip(torch.randn(4, 1, 16, 16), labels, strict=True)),
        "unlabeled": list(torch.randn(6, 1, 16, 16)),
    }
    exec(block, scope)
    assert scope["loss"].isfinite()
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
