"""References in the features of a frozen foundation model instead of the network's own.

    python -m examples.recipes.foundation_features    # pip install transformers

`FrozenFeatures` is all that is added to the bare loop, and takes the place of `FeatureTap`. The network needs no layer
that could be tapped; the optimizer, checkpoints and DistributedDataParallel do not see the model. A tiny Dinov2 with
random weights stands in, to save the download, and what it teaches is accordingly: the IoU is no higher than in the
bare loop. Yours would be `Dinov2Model.from_pretrained("facebook/dinov2-small")`, with the `mean` and `std` that its
images were scaled by. Images that are not augmented need encoding only once: the features do not change.
"""

import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import Dinov2Config, Dinov2Model

from examples.recipes.plain_pytorch import network
from examples.recipes.scans import CLASSES, draw_scans, mean_iou
from rpg_loss import FrozenFeatures, ReferencePool, RPGLoss


def foundation_model(side: int) -> Dinov2Model:
    """Build a model for three-channel images; the scans have one, which is repeated."""
    config = Dinov2Config(image_size=side, patch_size=2, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    return Dinov2Model(config)


def main() -> tuple[float, float]:
    torch.manual_seed(0)
    images_l, labels_l = draw_scans(6, 32, 32)
    images_u, truth_u = draw_scans(60, 32, 32)
    images_test, labels_test = draw_scans(40, 32, 32)

    net = network()  # returns logits alone
    features = FrozenFeatures(
        foundation_model(32), ["encoder.layer.0", "encoder.layer.1"], size=16, layout="tokens", positions=0.5
    )
    criterion = RPGLoss(k=0.5, map_size=16)

    pseudo, weights = criterion.pseudo_labels(features(images_u), features(images_l), labels_l)
    right = (pseudo == truth_u[:, ::2, ::2]).float()
    precision = float((weights * right).sum() / weights.sum())
    print(f"{precision:.0%} of the weight of the pseudo-labels is on right ones, mean weight {weights.mean():.2f}")

    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    pool = DataLoader(TensorDataset(images_l, labels_l), batch_sampler=ReferencePool(labels_l, size=3))
    for epoch in range(4):
        for (images, labels), batch_u in zip(pool, DataLoader(images_u, batch_size=2, shuffle=True)):
            loss = criterion(net(batch_u), features(batch_u), features(images), labels, net(images))
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
