"""Files as users have them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def save_image(path: Path, values: np.ndarray) -> None:
    """Write an image, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(read_json(path) | changes))


def real_data(name: str) -> Path:
    """Return the folder of data that cannot be passed on; the test is skipped where they are not."""
    variable = f"RPG_LOSS_{name.partition('_')[0].upper()}"
    root = Path(os.environ.get(variable, SHARED / name))
    if not root.is_dir():
        pytest.skip(f"no {name} at {root}; name its folder in {variable}")
    return root
