"""Use what was trained: masks of images and volumes of any size.

    python -m examples.predict runs/jsrt/rpg_plus-n3-s0-seed0/best.pt IMAGES... --out DIR --overlays

IMAGES are files (png, jpg, tif, bmp, gif, JSRT's .IMG, .mhd, .mha) or folders of them. They are prepared as the
training images were, and masks have the size of what they are of. DIR then holds

    masks/a.png          class ids, 0 the background, as a palette image: classes that exclude each other; or
    masks/lung/a.png     0 or 255: one folder for each label, where labels may overlap
    masks/a.mhd          the same of a volume, slice by slice, with its spacing, origin and direction
    classes.txt          the names of the classes; with it and images/, DIR is one for the data set folder
    overlays/a.png       --overlays: to be looked at (of a volume, overlays/a/a_000.png, ...)
    probabilities/a.npz  --probabilities: "probabilities" (C, [Z,] H, W) float16 and the "names" of its first axis

A file that cannot be read is named at the end, with exit status 1; the others are predicted all the same.
"""

from __future__ import annotations

import sys

import torch
import tyro

from examples.inference.prediction import Predict, predict


def main() -> None:
    torch.set_flush_denormal(True)  # tiny activations of a trained net would slow a CPU down
    options = tyro.cli(Predict, description=__doc__, prog="python -m examples.predict")
    try:
        predicted, faults = predict(options)
    except (ValueError, OSError) as error:  # the message says what to do; a traceback would bury it
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; every file that was written is whole, and --overwrite begins again", file=sys.stderr)
        sys.exit(130)
    print(f"masks of {predicted} of {predicted + len(faults)} files in {options.out / 'masks'}")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
