"""Label images by a few that are labeled, without training: each pixel as its nearest reference pixels are.

    python -m examples.transfer folder --root my_data --out proposals

my_data/images holds all images, my_data/masks the masks of three of them or more. Features of a pretrained encoder are
compared; --encoder names another one. DIR then is a data set for folder, to train on or to correct, and more:

    images/a.png         the images, as they are
    masks/...            in their own size: proposals, and the references' masks as they are; classes.txt: their names
    weights/a.png        how far each pixel's label is trusted, 0 to 255
    overlays/a.jpg       the proposals over the images
    transfer.html        to look through, the least certain first, and what to label next; strips/: its pictures
    label_next.csv       all images, those first that the references explain least
    transfer.json        settings, and scores over the images whose truth is known

With --labeled (and data sets other than folder) the data are divided as in examples.train: its labeled images are the
references, and scores are over its test images, so that both can be compared.
"""

from __future__ import annotations

import torch
import tyro

from examples.command_line import FILES_ARE_WHOLE, end_naming, ending_in_words
from examples.inference.transfer import Transfer, transfer


def main() -> None:
    torch.set_flush_denormal(True)
    with ending_in_words(FILES_ARE_WHOLE):
        options = tyro.cli(Transfer, description=__doc__, prog="python -m examples.transfer")
        result, faults = transfer(options)
    print(f"{result['images']} images labeled by {result['labeled']} in {result['seconds']:.0f} s: {options.out}")
    if result["miou"] is not None:
        print(f"IoU of {result['scored']}: {result['miou']:.3f} per image, {result['miou_pooled']:.3f} pooled")
    end_naming(faults)


if __name__ == "__main__":
    main()
