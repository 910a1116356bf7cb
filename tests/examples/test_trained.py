"""A checkpoint tells what its network says; what is none gets an answer that says what to do."""

import json
import os
import pickle
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from examples.data import load
from examples.engine.checkpoint import Checkpoints, atomic_save
from examples.inference.evaluation import Evaluate, measure
from examples.inference.trained import Labels, read_trained
from examples.train import train
from tests.examples.tiny import small, tiny
from tests.examples.trained import talkative, write_checkpoint

FLUIDS = Labels(("irf", "srf", "ped"), multilabel=False)


pytestmark = pytest.mark.usefixtures("shrunk")


def test_a_run_leaves_all_that_is_needed_to_use_its_network(tmp_path):
    fuse = tmp_path / "fuse.json"
    fuse.write_text(json.dumps({"lungs": ["left_lung", "right_lung"]}))
    of_run = tiny(tmp_path / "run", iterations=2, fuse=fuse, device="cpu")
    train(of_run)
    labels = Labels.of(load(of_run))
    fuse.unlink()  # the checkpoint is enough
    for name in ("best.pt", "last.pt", ""):
        trained = read_trained(tmp_path / "run" / name)
        assert trained.config == replace(of_run, device="cpu")
        assert trained.labels == labels
        assert trained.labels.fused == {"lungs": (1, 0)}
        logits, _ = trained.net()(torch.zeros(1, 1, 32, 32))
        assert logits.shape == (1, 5, 32, 32)
        assert logits.isfinite().all()
    assert measure(Evaluate(tmp_path / "run")).classes == ("lungs",)


def test_what_is_no_checkpoint_of_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint: .*absent\.pt is not a file; expected the best\.pt"):
        read_trained(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match=r"checkpoint: .*best\.pt is not a file"):
        read_trained(tmp_path)
    Checkpoints(tmp_path / "checkpoints").save(7, {"step": 7, "parts": {}})
    with pytest.raises(ValueError, match=r"step-00000007\.ckpt is what an unfinished run goes on from; expected"):
        read_trained(tmp_path / "checkpoints" / "step-00000007.ckpt")
    path = write_checkpoint(tmp_path / "best.pt", small("oct_phantom"), FLUIDS)
    torch.save({"model": {}}, tmp_path / "plain.pt")
    for content in (b"", b"noise", path.read_bytes()[:-500], (tmp_path / "plain.pt").read_bytes()):
        (tmp_path / "broken.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.pt cannot be read \("):
            read_trained(tmp_path / "broken.pt")
    atomic_save(tmp_path / "weights.pt", nn.Linear(2, 2).state_dict())
    with pytest.raises(ValueError, match=r"weights\.pt holds no model with its configuration and labels; expected"):
        read_trained(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", None),
        ("model", [1]),
        ("model", {"head.weight": 3}),
        ("model", {3: torch.zeros(1)}),
        ("config", []),
        ("config", {}),
        ("config", {"dataset": ["phantom"]}),
        ("config", {"dataset": "phantom", "image_size": "32"}),
        ("config", {"dataset": "phantom", "image_size": 32.0}),
        ("config", {"dataset": "phantom", "base_channels": True}),
        ("config", {"dataset": "phantom", "root": 7}),
        ("config", {"dataset": "phantom", 5: 7}),
        ("labels", 7),
        ("labels", {"names": ["a", "b", "c"]}),
        ("labels", {"names": [1, 2, 3], "multilabel": False, "fused": None}),
        ("labels", {"names": ["a", "b", "c"], "multilabel": "no", "fused": None}),
        ("labels", {"names": ["a", "b", "c"], "multilabel": True, "fused": {"ab": [0, 3]}}),
        ("labels", {"names": ["a", "b", "c"], "multilabel": True, "fused": {"ab": 0}}),
        ("division", None),
        ("division", {}),
        ("division", {"labeled": [1], "unlabeled": [], "validation": [], "test": [], "digests": {}}),
        ("division", {"labeled": 1, "unlabeled": [], "validation": [], "test": [], "digests": {}}),
    ],
)
def test_a_checkpoint_of_other_content_is_refused_in_one_line(field, value, tmp_path):
    path = write_checkpoint(tmp_path / "best.pt", small("oct_phantom"), FLUIDS, **{field: value})
    with pytest.raises(ValueError, match=r"^checkpoint: .*best\.pt") as refused:
        read_trained(path).net()
    assert str(refused.value).count("\n") == 0


def test_every_flipped_bit_is_found(tmp_path):
    """Unseen, one would change what the network says."""
    path = write_checkpoint(tmp_path / "best.pt", small("oct_phantom"), FLUIDS)
    written = path.read_bytes()
    draw = random.Random(0)
    for place in (0, 40, *(draw.randrange(len(written)) for _ in range(300))):
        flipped = bytearray(written)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"checkpoint: .*best\.pt cannot be read \(.*checksum"):
            read_trained(path)
    path.write_bytes(written)
    assert read_trained(path).labels == FLUIDS


def test_no_code_in_a_checkpoint_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    atomic_save(tmp_path / "best.pt", {"model": Trap(), "config": {}})
    with pytest.raises(ValueError, match=r"best\.pt cannot be read"):
        read_trained(tmp_path / "best.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(ValueError, match=r"plain\.pt cannot be read"):
        read_trained(tmp_path / "plain.pt")
    atomic_save(tmp_path / "step-00000001.ckpt", {"step": Trap()})  # what a run goes on from
    with pytest.raises(ValueError, match="refuses it"):
        Checkpoints(tmp_path).load()
    assert not (tmp_path / "trapped").exists()


def test_what_does_not_fit_is_said(tmp_path):
    of_run = small("oct_phantom")
    path = write_checkpoint(tmp_path / "best.pt", of_run, FLUIDS, model=talkative(9).state_dict())
    with pytest.raises(ValueError, match=r"not those of a unet of 2 base channels for 3 classes \(size mismatch"):
        read_trained(path).net()
    write_checkpoint(path, of_run, FLUIDS, config={**of_run.plain(), "depth": 3})
    with pytest.raises(ValueError, match=r"best\.pt is not what this version writes \(depth: no option of"):
        read_trained(path)
    write_checkpoint(path, of_run, FLUIDS)
    with pytest.raises(ValueError, match="device: got nowhere, expected auto"):
        read_trained(path, "nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: got cuda, but this PyTorch sees no GPU"):
            read_trained(path, "cuda")


def test_it_is_used_where_it_is_asked_for_not_where_it_was_trained(tmp_path):
    path = write_checkpoint(tmp_path / "best.pt", small("oct_phantom", device="cuda:7"), FLUIDS)
    trained = read_trained(path, "cpu")
    assert trained.config.device == "cpu"
    assert next(trained.net().parameters()).device.type == "cpu"
