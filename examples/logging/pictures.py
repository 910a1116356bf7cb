"""What a network predicts for a few images, and its pseudo-labels for them: overlays.png and small pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor, nn

from examples.data import Dataset, Images, ImageSet
from examples.data.augment import View
from examples.data.fusing import fuse_masks
from examples.engine.metrics import IoU, class_masks, known_pixels, predicted_masks
from examples.methods import Method
from examples.models.base import Network

ROWS = 4
PICTURE_SIDE = 192  # of the pictures for grids
STRIP_SIDE, STRIP_GAP = 144, 4
COLORS = ("#0072B2", "#56B4E9", "#D55E00", "#F0E442", "#00C78C", "#CC79A7", "#E69F00", "#999999")


class Visualization(NamedTuple):
    """Predictions and pseudo-labels for a few images, on the CPU.

    Padding and ignored pixels, where nothing counts, are in no mask but the truth's.
    """

    images: Tensor  # (B, 1 or 3, H, W) in [-1, 1]
    truth: Tensor  # (B, C, H, W) bool
    known: Tensor  # (B,) bool: whether there is any truth
    prediction: Tensor  # (B, C, H, W) bool
    score: Tensor  # (B,) IoU, mean over the classes; NaN: none is in image or prediction
    pseudo_labels: Tensor | None  # (B, C, H, W) bool; None: the method has none
    weights: Tensor | None  # (B, h, w) in [0, 1]


@torch.no_grad()
def visualize(images: ImageSet, net: Network, method: Method, pool: View, data: Dataset) -> Visualization:
    """Return predictions in evaluation mode, and the pseudo-labels by the given pool of references."""
    net.eval()
    classes = len(data.class_names)
    known = known_pixels(images.labels)
    labeled = known.flatten(1).any(1)
    # An image without labels counts whole, but for its padding.
    counts = (known | ~labeled[:, None, None])[:, None]
    if images.shown is not None:
        counts &= images.shown[:, None]
    truth = fuse_masks(class_masks(images.labels, classes), data.fused)
    predicted = fuse_masks(predicted_masks(net(images.images)[0], multilabel=data.multilabel), data.fused) & counts
    iou = IoU()
    iou.update(predicted & known[:, None], truth & known[:, None])
    score = iou.per_image().nanmean(1)
    pseudo_labels = weights = None
    if given := method.pseudo_labels(net, pool, images.images):
        masks = F.interpolate(class_masks(given.labels, classes).float(), images.images.shape[2:]) > 0.5
        pseudo_labels = (fuse_masks(masks, data.fused) & counts).cpu()
        # Where every label has a weight of its own, the smallest says how sure the whole pixel is.
        weights = (given.weights.amin(1) if given.weights.ndim == 4 else given.weights).cpu()
    return Visualization(
        images.images.cpu(), truth.cpu(), labeled.cpu(), predicted.cpu(), score, pseudo_labels, weights
    )


def evenly(count: int, most: int = ROWS) -> list[int]:
    """Return the indices of a few of ``count`` images."""
    return torch.linspace(0, count - 1, min(most, count)).long().tolist()


def showing_all(images: Images, classes: int, most: int = ROWS) -> list[int]:
    """Return indices of evenly spaced images, and of the first that show the classes which those do not."""
    chosen = evenly(len(images), most)
    if not chosen:
        return []
    missing = ~class_masks(images[chosen].labels, classes).amax((0, 2, 3))
    for i in range(len(images)):
        if not missing.any():
            break
        there = class_masks(images[[i]].labels, classes).amax((0, 2, 3)) & missing
        if there.any():
            chosen.append(i)
            missing &= ~there
    return sorted(chosen)


def save_overlays(path: Path, net: Network, method: Method, pool: View, data: Dataset) -> None:
    """Draw one row for each of a few test images, evenly spaced.

    Columns: image, truth, prediction and, for methods that have them, pseudo-label and weight, as the given pool of
    references would produce them.
    """
    test = data.test[evenly(len(data.test))]
    seen = visualize(test, net, method, pool, data)
    titles = columns(seen)
    size = (2.0 * len(titles) + 0.6, 2.3 * len(test) + 1.0)
    figure, axes = plt.subplots(len(test), len(titles), figsize=size, squeeze=False, layout="constrained")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=20)
    for row, (image, name) in enumerate(zip(seen.images, test.names, strict=True)):
        show(axes[row, 0], image)
        axes[row, 0].set_ylabel(printable(name), fontsize=14)
        show(axes[row, 1], image, seen.truth[row])
        show(axes[row, 2], image, seen.prediction[row])
        score = seen.score[row]
        axes[row, 2].set_xlabel("nothing to find" if score.isnan() else f"IoU {score:.2f}", fontsize=18)
        if seen.pseudo_labels is not None and seen.weights is not None:
            show(axes[row, 3], image, seen.pseudo_labels[row])
            shown = axes[row, 4].imshow(seen.weights[row].numpy(), vmin=0, vmax=1, cmap="magma")
    if seen.weights is not None:
        figure.colorbar(shown, ax=axes[:, 4].tolist(), fraction=0.05, aspect=40).ax.tick_params(labelsize=16)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    names = data.evaluated_names
    patches = [Patch(color=color(c), label=label.replace("_", " ")) for c, label in enumerate(names)]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(names), 3), frameon=False, fontsize=20)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def columns(seen: Visualization) -> list[str]:
    return ["image", "truth", "prediction"] + (["pseudo-label", "weight"] if seen.pseudo_labels is not None else [])


def strips(seen: Visualization) -> list[Tensor]:
    """Return one small picture for each image, its ``columns`` side by side: (side, width, 4) uint8, clear between.

    The truth's outlines are drawn over the prediction. The truth of an image without labels is clear as well.
    """
    pictures = []
    for row, image in enumerate(seen.images):
        truth, prediction = seen.truth[row], tinted(image, seen.prediction[row])
        panels = [tinted(image), tinted(image, truth), outlined(prediction, truth)]
        if seen.pseudo_labels is not None and seen.weights is not None:
            panels += [tinted(image, seen.pseudo_labels[row]), heat(seen.weights[row])]
        panels = [F.pad(small(panel, STRIP_SIDE), (0, 1), value=1.0) for panel in panels]
        if not seen.known[row]:
            panels[1] = torch.zeros_like(panels[1])
        gaps = torch.zeros(STRIP_SIDE, STRIP_GAP, 4)
        joined = torch.cat([part for panel in panels for part in (panel, gaps)][:-1], dim=1)
        pictures.append((255 * joined).round().byte())
    return pictures


def heat(weights: Tensor) -> Tensor:
    """Return weights (h, w) in [0, 1] as colors (H, W, 3) in [0, 1], enlarged in blocks where they are few."""
    times = max(1, STRIP_SIDE // min(weights.shape))
    return in_heat(weights.repeat_interleave(times, 0).repeat_interleave(times, 1))


def in_heat(weights: Tensor) -> Tensor:
    return torch.from_numpy(matplotlib.colormaps["magma"](weights.numpy())[..., :3]).float()


def small(picture: Tensor, side: int) -> Tensor:
    """Resize colors (H, W, 3) in [0, 1]."""
    channels = picture.movedim(-1, 0)[None]
    resized = F.interpolate(channels, (side, side), mode="bilinear", antialias=True)
    return resized[0].movedim(0, -1).clamp(0, 1)


def picture_files(data: Dataset) -> dict[str, dict[str, str]]:
    """Return what :func:`save_pictures` writes: image name -> "image", "truth", "prediction" -> file in the run."""
    names = [data.test.names[i] for i in evenly(len(data.test))]
    # Numbered: a name can be too long for a file.
    return {
        name: {kind: f"pictures/{number}-{kind}.png" for kind in ("image", "truth", "prediction")}
        for number, name in enumerate(names)
    }


@torch.no_grad()
def save_pictures(out: Path, net: nn.Module, data: Dataset) -> None:
    """Write small pictures of a few test images, for grids that compare methods."""
    net.eval()
    test = data.test[evenly(len(data.test))]
    predicted = predicted_masks(net(test.images)[0], multilabel=data.multilabel)
    predicted &= known_pixels(test.labels)[:, None]
    truth = class_masks(test.labels, len(data.class_names))
    (out / "pictures").mkdir(exist_ok=True)
    for row, files in enumerate(picture_files(data).values()):
        image = test.images[row].cpu()
        for kind, masks in (("image", None), ("truth", truth[row]), ("prediction", predicted[row])):
            shown = fuse_masks(masks[None], data.fused)[0] if masks is not None else None
            plt.imsave(out / files[kind], small(tinted(image, shown), PICTURE_SIDE).numpy())


def encoded(picture: Image.Image, kind: str = "png", **options: Any) -> bytes:
    """Return a picture as a file holds it."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def color(label: int) -> str:
    return COLORS[label % len(COLORS)]


def tinted(image: Tensor, masks: Tensor | None = None) -> Tensor:
    """Return an image (1 or 3, H, W) in [-1, 1] as colors (H, W, 3) in [0, 1], with translucent masks (C, H, W)."""
    canvas = ((image + 1) / 2).movedim(0, -1).repeat(1, 1, 3 // len(image))
    if masks is not None:
        for label, mask in enumerate(masks.cpu()):
            canvas[mask] = 0.6 * canvas[mask] + 0.4 * torch.tensor(to_rgb(color(label)))
    return canvas.clamp(0, 1)


def outlined(canvas: Tensor, masks: Tensor) -> Tensor:
    """Draw the outlines of masks (C, H, W) over colors (H, W, 3) in [0, 1]."""
    for label, edge in enumerate(masks & ~eroded(masks)):
        canvas[edge] = torch.tensor(to_rgb(color(label)))
    return canvas


def eroded(masks: Tensor) -> Tensor:
    """Return what is left of masks (C, H, W) without the pixels at their edges; the border of the image is none."""
    return F.max_pool2d((~masks).float(), 3, stride=1, padding=1) == 0


def show(axis: Axes, image: Tensor, masks: Tensor | None = None) -> None:
    """Draw an image (1 or 3, H, W) and masks (C, H, W) as translucent colors with an outline."""
    axis.imshow(tinted(image, masks).numpy())
    if masks is not None:
        for label, mask in enumerate(masks.cpu()):
            if mask.any() and not mask.all():
                axis.contour(mask.numpy(), levels=[0.5], colors=[color(label)], linewidths=0.8)


def printable(name: str) -> str:
    """Return a file's name as text can hold it; on some systems it may be any bytes."""
    return name.encode(errors="replace").decode()
