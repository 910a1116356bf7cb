"""What a run has trained, read back from its best.pt or last.pt; it runs no code that the file may hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from examples.config import Config
from examples.data import Dataset
from examples.data.division import Division
from examples.engine.checkpoint import load_verified
from examples.engine.distributed import resolve_device
from examples.models import Network, build_network

EXPECTED = "expected the best.pt or last.pt of a run, or its folder"


@dataclass(frozen=True)
class Labels:
    """What a network's outputs mean."""

    names: tuple[str, ...]  # the classes without background, in the order of the outputs
    multilabel: bool  # whether they may overlap (sigmoid) or not (softmax, background first)
    fused: dict[str, tuple[int, ...]] | None = None  # as in :class:`Dataset`

    @classmethod
    def of(cls, data: Dataset) -> Labels:
        return cls(data.class_names, data.multilabel, data.fused)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Labels:
        """Return the inverse of ``plain``.

        Raises:
            KeyError, TypeError, ValueError: these are no labels.
        """
        names, fused = tuple(plain["names"]), plain["fused"]
        if not all(isinstance(name, str) for name in names) or not isinstance(plain["multilabel"], bool):
            raise TypeError("labels are not named")
        if fused is not None:
            fused = {str(label): tuple(fine) for label, fine in fused.items()}
            if any(part not in range(len(names)) for fine in fused.values() for part in fine):
                raise ValueError("labels are fused from others")
        return cls(names, plain["multilabel"], fused)

    def plain(self) -> dict[str, Any]:
        """Return as checkpoints hold it."""
        fused = None if self.fused is None else {label: list(fine) for label, fine in self.fused.items()}
        return {"names": list(self.names), "multilabel": self.multilabel, "fused": fused}

    @property
    def num_outputs(self) -> int:
        return len(self.names) + (not self.multilabel)


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds."""

    path: Path  # of the file
    config: Config  # of the run
    weights: dict[str, Tensor]  # of the network
    labels: Labels  # what its outputs mean
    division: Division  # of the images of the run

    def net(self) -> Network:
        """Return the network, ready to predict, on ``config.device``."""
        net = build_network(self.config, self.labels.num_outputs)
        try:
            net.load_state_dict(self.weights)
        except RuntimeError as error:
            outputs = f"{len(self.labels.names)} classes" + " that may overlap" * self.labels.multilabel
            raise ValueError(
                f"checkpoint: the weights in {self.path} are not those of a {self.config.network} of"
                f" {self.config.base_channels} base channels for {outputs} ({str(error).splitlines()[-1].strip()})"
            ) from error
        try:
            return net.to(self.config.device).eval()
        except RuntimeError as error:  # there are fewer GPUs
            raise ValueError(f"device: {self.config.device} cannot be used ({str(error).splitlines()[0]})") from error


def read_trained(path: Path, device: str = "auto") -> Trained:
    """Read a checkpoint: best.pt, last.pt, or a run's folder, of which it is best.pt.

    ``device`` takes the place of the one that was trained on; auto: a GPU if there is one.
    """
    device = resolve_device(device)
    path = path / "best.pt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} is not a file; {EXPECTED}")
    try:
        content = load_verified(path)
    except ValueError as error:
        raise ValueError(f"checkpoint: {path} cannot be read ({error}); {EXPECTED}") from error
    if isinstance(content, dict) and "parts" in content:
        raise ValueError(f"checkpoint: {path} is what an unfinished run goes on from; {EXPECTED}")
    if not isinstance(content, dict) or not {"model", "config", "labels", "division"} <= content.keys():
        raise ValueError(f"checkpoint: {path} holds no model with its configuration and labels; {EXPECTED}")
    try:
        config = Config.from_plain({**content["config"], "device": device})
        labels, division = Labels.from_plain(content["labels"]), Division.from_plain(content["division"])
        weights = {
            str(name): value.float() if value.is_floating_point() else value for name, value in content["model"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint: {path} is not what this version writes ({error}); {EXPECTED}") from error
    return Trained(path, config, weights, labels, division)
