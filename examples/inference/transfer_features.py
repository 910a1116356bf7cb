"""The features that images are matched by: of a pretrained encoder, which is named on the command line."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from examples.models.encoders import LITE0_LAYERS, lite0
from examples.models.named import named
from rpg_loss import FrozenFeatures

IMAGE_SIZE = 256  # at which images are encoded
GRID = 64  # side of the grid on which they are matched
POSITIONS = 2.0  # how much a pixel's place counts, beside 1 for each layer


class HuggingFace(nn.Module):
    """A model of the Hugging Face Hub, as a module that makes its last hidden state of images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(pixel_values=images).last_hidden_state


def build_features(encoder: str, size: int, positions: float) -> FrozenFeatures:
    """Return what makes features (B, D, size, size) of images (B, 1 or 3, H, W) in [-1, 1]; see ``Transfer``."""
    if encoder == "lite0":
        return FrozenFeatures(lite0(), LITE0_LAYERS, size=size, positions=positions)
    kind, _, name = encoder.partition(":")
    if not kind or not name:
        raise ValueError(f"encoder: got {encoder!r}, expected lite0, hf:NAME or module:callable")
    if kind == "hf":
        net, mean, std = load_hugging_face(name)
    else:
        make, mean, std = named(encoder, "encoder"), [0.0], [1.0]
        try:
            net = make()
        except TypeError as error:
            raise ValueError(f"encoder: {encoder} cannot be called without arguments: {error}") from error
        if not isinstance(net, nn.Module):
            raise ValueError(f"encoder: {encoder} returned a {type(net).__name__}, expected a torch.nn.Module")
    tapped = nn.Sequential(OrderedDict(net=net, output=nn.Identity()))
    return FrozenFeatures(tapped, "output", size=size, positions=positions, layout="tokens", mean=mean, std=std)


def load_hugging_face(name: str) -> tuple[nn.Module, list[float], list[float]]:
    """Return a model, and mean and standard deviation of its images in [-1, 1]."""
    try:
        from transformers import AutoModel
        from transformers.image_processing_base import ImageProcessingMixin
    except ImportError as error:
        raise ImportError("encoder: hf:... needs transformers: pip install transformers") from error
    try:
        model = AutoModel.from_pretrained(name)
        # Not AutoImageProcessor, which needs torchvision.
        scale, _ = ImageProcessingMixin.get_image_processor_dict(name)
        mean, std = scale["image_mean"], scale["image_std"]
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"encoder: hf:{name} cannot be loaded: {error}") from error
    if model.main_input_name != "pixel_values":
        raise ValueError(f"encoder: hf:{name} takes {model.main_input_name}, expected a model of images")
    return HuggingFace(model), [2 * value - 1 for value in mean], [2 * value for value in std]
