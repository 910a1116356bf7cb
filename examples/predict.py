"""Use what was trained: masks of images and volumes of any size.

    python -m examples.predict runs/jsrt/rpg_plus-n3-s0-seed0/best.pt IMAGES... --out DIR --overlays

IMAGES are files (png, jpg, tif, bmp, gif, DICOM, JSRT's .IMG, .mhd, .mha, NIfTI) or folders of them. They are prepared
as the training images were, and masks have the size of what they are of. DIR then holds

    masks/a.png          class ids, 0 the background, as a palette image: classes that exclude each other; or
    masks/lung/a.png     0 or 255: one folder for each label, where labels may overlap
    masks/a.mhd          the same of a volume, with its spacing, origin and direction (NIfTI: a.nii.gz)
    classes.txt          the names of the classes; with it and images/, DIR is one for the data set folder
    overlays/a.png       --overlays: to be looked at (of a volume, overlays/a/a_000.png, ...)
    probabilities/a.npz  --probabilities: "probabilities" (C, [Z,] H, W) float16 and the "names" of its first axis

A file that cannot be read is named at the end, with exit status 1; the others are predicted all the same.
"""

from __future__ import annotations

import torch
import tyro

from examples.command_line import FILES_ARE_WHOLE, end_naming, ending_in_words
from examples.inference.prediction import Predict, predict


def main() -> None:
    torch.set_flush_denormal(True)  # tiny activations of a trained net would slow a CPU down
    with ending_in_words(FILES_ARE_WHOLE):
        options = tyro.cli(Predict, description=__doc__, prog="python -m examples.predict")
        predicted, faults = predict(options)
    print(f"masks of {predicted} of {predicted + len(faults)} files in {options.out / 'masks'}")
    end_naming(faults)


if __name__ == "__main__":
    main()
