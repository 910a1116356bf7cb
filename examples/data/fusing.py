"""Labels fused to coarser ones: trained on the fine labels, evaluated on their unions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from examples.json_files import read_json

EXPECTED = 'expected {"label": ["fine label", ...], ...}'


def read_fusing(path: Path, class_names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read a file ``{"label": ["fine label", ...], ...}``, as label -> indices into the trained ``class_names``."""
    if not path.is_file():
        raise FileNotFoundError(f"fuse: {path} is not a file; {EXPECTED} in it")
    try:
        fusing = read_json(path)
    except ValueError as error:
        raise ValueError(f"fuse: {path} is not JSON: {error}") from error
    if not isinstance(fusing, dict) or not fusing:
        raise ValueError(f"fuse: {path} holds {json.dumps(fusing):.60}, {EXPECTED}")
    position = {name: i for i, name in enumerate(class_names)}
    fused = {}
    for label, fine in fusing.items():
        if not isinstance(fine, list) or not fine or not all(isinstance(name, str) for name in fine):
            raise ValueError(f"fuse: {path} gives {label!r} {json.dumps(fine):.60}, {EXPECTED}")
        for name in fine:
            if name not in position:
                near = get_close_matches(name, class_names, n=1, cutoff=0)[0]
                raise ValueError(f"fuse: {path} gives {label!r} the label {name!r}, which is not trained; {near!r}?")
        fused[label] = tuple(dict.fromkeys(position[name] for name in fine))
    return fused


def fuse_masks(masks: Tensor, fused: Mapping[str, Sequence[int]] | None) -> Tensor:
    """Return unions (B, len(fused), H, W) of masks (B, C, H, W) bool, or the masks where nothing is to be fused."""
    if fused is None:
        return masks
    return torch.stack([masks[:, list(channels)].any(1) for channels in fused.values()], dim=1)
