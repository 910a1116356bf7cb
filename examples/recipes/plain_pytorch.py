"""A few labeled images, many unlabeled ones, a network that returns logits, and a bare PyTorch loop.

    python -m examples.recipes.plain_pytorch

`FeatureTap` gives the features that enter the network's last layer, `ReferencePool` draws the labeled images of each
step so that every class is among them, and `RPGLoss` is the whole loss, the supervised part included. The rest is the
loop that you have. Needs nothing but `rpg_loss`; it ends with the IoU on scans that it has not seen.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from examples.recipes.scans import CLASSES, draw_scans, mean_iou
from rpg_loss import FeatureTap, ReferencePool, RPGLoss


def network(width: int = 16) -> nn.Module:
    """Build a network; any will do. This one sees far by dilation."""
    layers: list[nn.Module] = []
    for channels, dilation in zip((1, width, width, width, width), (1, 2, 4, 2, 1)):
        convolution = nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation)
        layers += [convolution, nn.InstanceNorm2d(width, affine=True), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, len(CLASSES), 1))


def main() -> float:
    torch.manual_seed(0)
    labeled = TensorDataset(*draw_scans(6, 32, 32))  # (image, label) pairs
    unlabeled, _ = draw_scans(60, 32, 32)
    images_test, labels_test = draw_scans(40, 32, 32)

    net = FeatureTap(network())
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)

    # Three labeled images a step, drawn so that every class is among them.
    pool = DataLoader(labeled, batch_sampler=ReferencePool([label for _, label in labeled], size=3))
    criterion = RPGLoss(k=0.5)

    for epoch in range(4):
        for (images, labels), images_u in zip(pool, DataLoader(unlabeled, batch_size=2, shuffle=True)):
            logits, features = net(images)
            logits_u, features_u = net(images_u)
            loss = criterion(logits_u, features_u, features, labels, logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    net.eval()
    with torch.no_grad():
        logits, _ = net(images_test)
    iou = mean_iou(logits.argmax(1), labels_test)
    print(f"mean IoU {iou:.2f} on {len(images_test)} unseen scans, from {len(labeled)} labeled ones")
    return iou


if __name__ == "__main__":
    main()
