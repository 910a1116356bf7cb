"""overlays.png: what the network says about test images, and what it would teach itself about them."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from torch import Tensor, nn

from examples.augment import View
from examples.data import Dataset
from examples.data.fusing import fuse_masks
from examples.methods import Method
from examples.metrics import IoU, class_masks, known_pixels, predicted_masks
from examples.unet import UNet

ROWS = 4
PICTURE_SIDE = 192  # of the pictures for grids
COLORS = ("#0072B2", "#56B4E9", "#D55E00", "#F0E442", "#00C78C", "#CC79A7", "#E69F00", "#999999")


@torch.no_grad()
def save_overlays(path: Path, net: UNet, method: Method, pool: View, data: Dataset) -> None:
    """Draws one row for each of a few test images, evenly spaced.

    Columns: image, truth, prediction and, for methods that have them, pseudo-label and weight, as the given pool of
    references would produce them.
    """
    net.eval()
    names, classes = data.evaluated_names, len(data.class_names)
    chosen = torch.linspace(0, len(data.test) - 1, min(ROWS, len(data.test))).long().tolist()
    test = data.test[chosen]
    predicted = fuse_masks(predicted_masks(net(test.images)[0], multilabel=data.multilabel), data.fused)
    truth = fuse_masks(class_masks(test.labels, classes), data.fused)
    known = known_pixels(test.labels)[:, None]
    iou = IoU()
    predicted = predicted & known  # what stands in padding counts nowhere
    iou.update(predicted, truth & known)
    pseudo_labels = method.pseudo_labels(net, pool, test.images)

    titles = ["image", "truth", "prediction"] + (["pseudo-label", "weight"] if pseudo_labels else [])
    size = (2.0 * len(titles) + 0.6, 2.0 * len(test) + 0.7)
    figure, axes = plt.subplots(len(test), len(titles), figsize=size, squeeze=False, layout="constrained")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=11)
    for row, (image, name) in enumerate(zip(test.images[:, 0].cpu(), test.names, strict=True)):
        show(axes[row, 0], image)
        axes[row, 0].set_ylabel(name, fontsize=9)
        show(axes[row, 1], image, truth[row])
        show(axes[row, 2], image, predicted[row])
        score = iou.per_image()[row].nanmean()
        axes[row, 2].set_xlabel("nothing to find" if score.isnan() else f"mIoU {score:.2f}", fontsize=9)
        if pseudo_labels:
            labels, weights = (maps[row : row + 1] for maps in pseudo_labels)
            masks = F.interpolate(class_masks(labels, classes).float(), image.shape)[0] > 0.5
            masks &= known[row].to(masks.device)
            show(axes[row, 3], image, fuse_masks(masks[None], data.fused)[0])
            # Where every label has a weight of its own, the smallest says how sure the whole pixel is.
            weight = weights[0].amin(0) if weights.ndim == 4 else weights[0]
            shown = axes[row, 4].imshow(weight.cpu().numpy(), vmin=0, vmax=1, cmap="magma")
    if pseudo_labels:
        figure.colorbar(shown, ax=axes[:, 4].tolist(), fraction=0.05, aspect=40)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    patches = [Patch(color=color(c), label=label.replace("_", " ")) for c, label in enumerate(names)]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(names), 6), frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


@torch.no_grad()
def save_pictures(out: Path, net: nn.Module, data: Dataset) -> dict[str, dict[str, str]]:
    """Small pictures of a few test images, for grids that compare methods: the image, its truth and the prediction.

    Returns:
        Image name -> {"image", "truth", "prediction"} -> file, relative to ``out``.
    """
    net.eval()
    chosen = torch.linspace(0, len(data.test) - 1, min(ROWS, len(data.test))).long().tolist()
    test = data.test[chosen]
    predicted = predicted_masks(net(test.images)[0], multilabel=data.multilabel)
    predicted &= known_pixels(test.labels)[:, None]
    truth = class_masks(test.labels, len(data.class_names))
    (out / "pictures").mkdir(exist_ok=True)
    files: dict[str, dict[str, str]] = {}
    for row, (image, name) in enumerate(zip(test.images[:, 0].cpu(), test.names, strict=True)):
        files[name] = {}
        for kind, masks in (("image", None), ("truth", truth[row]), ("prediction", predicted[row])):
            shown = fuse_masks(masks[None], data.fused)[0] if masks is not None else None
            picture = F.interpolate(
                tinted(image, shown).movedim(-1, 0)[None], (PICTURE_SIDE, PICTURE_SIDE), mode="bilinear", antialias=True
            )[0].movedim(0, -1)
            files[name][kind] = f"pictures/{name}-{kind}.png"
            plt.imsave(out / files[name][kind], picture.clamp(0, 1).numpy())
    return files


def color(label: int) -> str:
    return COLORS[label % len(COLORS)]


def tinted(image: Tensor, masks: Tensor | None = None) -> Tensor:
    """A grey image in [-1, 1] as colours (H, W, 3) in [0, 1], with masks (C, H, W) in translucent colours."""
    canvas = ((image + 1) / 2)[..., None].repeat(1, 1, 3)
    if masks is not None:
        for label, mask in enumerate(masks.cpu()):
            canvas[mask] = 0.6 * canvas[mask] + 0.4 * torch.tensor(to_rgb(color(label)))
    return canvas.clamp(0, 1)


def show(axis: Axes, image: Tensor, masks: Tensor | None = None) -> None:
    """Draws a grey image and masks (C, H, W) as translucent colours with an outline."""
    axis.imshow(tinted(image, masks).numpy())
    if masks is not None:
        for label, mask in enumerate(masks.cpu()):
            if mask.any() and not mask.all():
                axis.contour(mask.numpy(), levels=[0.5], colors=[color(label)], linewidths=0.8)
