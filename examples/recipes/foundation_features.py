"""Pseudo-labels from the features of a frozen foundation model instead of the network's own.

    python -m examples.recipes.foundation_features    # pip install transformers

Features that do not change are computed once, and so are the pseudo-labels: of all unlabeled images against all
labeled ones, by `rpg_pseudo_labels`, before training begins. `segmentation_cross_entropy` weighs the loss. A tiny
Dinov2 with random weights stands in, to save the download, and what it teaches is accordingly: the IoU is lower than in
the bare loop. Yours would be `Dinov2Model.from_pretrained("facebook/dinov2-small")` on three-channel images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import Dinov2Config, Dinov2Model

from examples.recipes.plain_pytorch import network
from examples.recipes.scans import CLASSES, draw_scans, mean_iou
from rpg_loss import ReferencePool, rpg_pseudo_labels, segmentation_cross_entropy

PATCH = 2


def foundation_model(side: int) -> Dinov2Model:
    config = Dinov2Config(
        num_channels=1, image_size=side, patch_size=PATCH, hidden_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return Dinov2Model(config).eval()


@torch.no_grad()
def encode(model: Dinov2Model, images: Tensor) -> Tensor:
    """Return features (B, D, H / PATCH, W / PATCH), one vector for each patch."""
    tokens = model(images).last_hidden_state[:, 1:]  # the first is of the whole image
    return tokens.transpose(1, 2).unflatten(2, [side // PATCH for side in images.shape[2:]])


def main() -> tuple[float, float]:
    torch.manual_seed(0)
    images_l, labels_l = draw_scans(6, 32, 32)
    images_u, truth_u = draw_scans(60, 32, 32)
    images_test, labels_test = draw_scans(40, 32, 32)

    model = foundation_model(32)
    feat_ref, feat_u = encode(model, images_l), encode(model, images_u)
    center = feat_ref.mean((0, 2, 3), keepdim=True)  # what all patches share would make all cosines alike
    y_ref = labels_l[:, ::PATCH, ::PATCH]
    pseudo, weights = rpg_pseudo_labels(feat_u - center, feat_ref - center, y_ref, k=0.1)
    right = (pseudo == truth_u[:, ::PATCH, ::PATCH]).float()
    precision = float((weights * right).sum() / weights.sum())
    print(f"{precision:.0%} of the weight of the pseudo-labels is on right ones, mean weight {weights.mean():.2f}")

    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    pool = DataLoader(TensorDataset(images_l, labels_l), batch_sampler=ReferencePool(labels_l, size=3))
    unlabeled = TensorDataset(images_u, pseudo, weights)
    for epoch in range(8):
        for (images, labels), (batch_u, pseudo_u, weights_u) in zip(pool, DataLoader(unlabeled, 2, shuffle=True)):
            logits_u = net(batch_u)[:, :, ::PATCH, ::PATCH]
            loss = F.cross_entropy(net(images), labels) + segmentation_cross_entropy(logits_u, pseudo_u, weights_u)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    net.eval()
    with torch.no_grad():
        iou = mean_iou(net(images_test).argmax(1), labels_test)
    print(f"mean IoU {iou:.2f} on {len(images_test)} unseen scans, over {' and '.join(CLASSES[1:])}")
    return precision, iou


if __name__ == "__main__":
    main()
