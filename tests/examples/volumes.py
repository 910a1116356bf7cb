"""Writes volumes in the form of RETOUCH: a drawn retina with three fluids."""

from pathlib import Path

import numpy as np
import SimpleITK

WIDTH, HEIGHT, SCANS = 64, 48, 4


def draw_volume(seed: int, dtype: type = np.uint16) -> tuple[np.ndarray, np.ndarray]:
    """Intensities and references (z, y, x). B-scan 0 shows IRF, 1 SRF as well, 2 and 3 PED as well."""
    rng = np.random.default_rng(seed)
    x, y = np.arange(WIDTH), np.arange(HEIGHT)[:, None]
    scans, references = [], []
    for z in range(SCANS):
        layer = curve(z)
        scan = rng.uniform(0, 0.12, (HEIGHT, WIDTH))
        scan[(y >= layer - 14) & (y < layer - 2)] += 0.25
        scan[(y >= layer - 2) & (y <= layer)] += 0.7
        reference = np.zeros(scan.shape, np.uint8)
        for fluid, (rise, left) in enumerate(((11, 8), (7, 28), (4, 46)), 1):
            if z >= fluid - 1:
                reference[(y >= layer - rise) & (y < layer - rise + 3) & (x >= left) & (x < left + 8)] = fluid
        scan[reference > 0] *= 0.3
        scan[:3, :20] = 1  # a white corner
        scans.append(scan)
        references.append(reference)
    return (np.stack(scans) * np.iinfo(dtype).max).round().astype(dtype), np.stack(references)


def curve(scan: int) -> np.ndarray:
    """The row of the brightest layer, by columns."""
    return np.rint(32 + 4 * np.linspace(-1, 1, WIDTH) ** 2 + scan).astype(int)


def write_image(path: Path, values: np.ndarray, *, big_endian: bool = False, compressed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if compressed:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path), True)
        return
    kind = {"uint8": "MET_UCHAR", "uint16": "MET_USHORT", "float32": "MET_FLOAT"}[values.dtype.name]
    path.write_text(
        f"ObjectType = Image\nNDims = {values.ndim}\nBinaryData = True\nBinaryDataByteOrderMSB = {big_endian}\n"
        f"CompressedData = False\nDimSize = {' '.join(map(str, values.shape[::-1]))}\n"
        f"ElementType = {kind}\nElementDataFile = {path.stem}.raw\n"
    )
    values.astype(values.dtype.newbyteorder(">" if big_endian else "<")).tofile(path.with_suffix(".raw"))


def write_volume(folder: Path, seed: int = 0, dtype: type = np.uint16, **form: bool) -> tuple[np.ndarray, np.ndarray]:
    scans, references = draw_volume(seed, dtype)
    write_image(folder / "oct.mhd", scans, **form)
    write_image(folder / "reference.mhd", references, **form)
    return scans, references


def write_tree(root: Path, first: int = 25, volumes: int = 10) -> Path:
    for number in range(first, first + volumes):
        write_volume(root / "TrainingSpectralis" / f"TRAIN{number:03d}", number)
    return root
