"""Volumes `(B, 1, z, y, x)` with few thick slices.

    python -m examples.recipes.volumes_3d

Nothing changes but the number of axes: labels are `(P, z, y, x)`, and `map_size` takes one side per axis, so that the
slices, few as they are, are all kept. It prints the weight of the pseudo-labels too, which says whether they count.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from examples.recipes.scans import draw_scans
from rpg_loss import FeatureTap, ReferencePool, RPGLoss

SIZE, MAP_SIZE = (6, 32, 32), (6, 16, 16)


def network(width: int = 12) -> nn.Module:
    layers: list[nn.Module] = []
    for channels, dilation in zip((1, width, width, width), (1, 2, 4, 1)):
        convolution = nn.Conv3d(channels, width, 3, padding=(1, dilation, dilation), dilation=(1, dilation, dilation))
        layers += [convolution, nn.InstanceNorm3d(width, affine=True), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv3d(width, 2, 1))


def main() -> float:
    torch.manual_seed(0)
    volumes, labels = draw_scans(6, *SIZE)
    labeled = TensorDataset(volumes, labels.clamp(max=1))  # the organ with the lesion in it
    unlabeled, _ = draw_scans(24, *SIZE)
    volumes_test, labels_test = draw_scans(12, *SIZE)

    net = FeatureTap(network())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    # Volumes of two classes hold nothing but 0 and 1, as overlapping labels (C, y, x) do: say which they are.
    pool = DataLoader(labeled, batch_sampler=ReferencePool([label for _, label in labeled], size=2, multilabel=False))
    criterion = RPGLoss(k=0.5, map_size=MAP_SIZE)

    for epoch in range(4):
        for (volumes, labels), volumes_u in zip(pool, DataLoader(unlabeled, batch_size=2, shuffle=True)):
            logits, features = net(volumes)
            logits_u, features_u = net(volumes_u)
            loss, pseudo = criterion(logits_u, features_u, features, labels, logits, return_pseudo_labels=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        background, organ = pseudo.mean_weights(2).tolist()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, weight {background:.2f} on background, {organ:.2f} on organ")

    net.eval()
    with torch.no_grad():
        logits, _ = net(volumes_test)
    found, truth = logits.argmax(1) == 1, labels_test > 0
    iou = float((found & truth).sum() / (found | truth).sum())
    print(f"IoU {iou:.2f} on {len(volumes_test)} unseen volumes, from {len(labeled)} labeled ones")
    return iou


if __name__ == "__main__":
    main()
