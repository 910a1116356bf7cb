"""MONAI: its transforms, its UNet through `FeatureTap`, its sliding-window inference for evaluation.

    python -m examples.recipes.monai_unet    # pip install monai

Training is on crops. `RandCropByLabelClassesd` centers each on a class drawn at random, so that rare ones stay in the
pool after cropping. The UNet's last layer sees features at half the resolution: labels and logits are brought to it.
For whole scans MONAI's inferer takes the network in the tap, which is still the network that it was.
"""

import torch
from monai.data import DataLoader, Dataset
from monai.inferers import SlidingWindowInferer
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import Compose, NormalizeIntensityd, RandCropByLabelClassesd, RandFlipd, RandSpatialCropd
from monai.utils import set_determinism

from examples.recipes.scans import CLASSES, draw_scans
from rpg_loss import FeatureTap, ReferencePool, RPGLoss

CROP = (32, 32)


def main() -> float:
    set_determinism(0)
    both, num_classes = ["image", "label"], len(CLASSES)
    crop = RandCropByLabelClassesd(both, "label", CROP, ratios=[1] * num_classes, num_classes=num_classes)
    transform = Compose([NormalizeIntensityd("image"), crop, RandFlipd(both, prob=0.5)])
    transform_u = Compose([NormalizeIntensityd("image"), RandSpatialCropd("image", CROP, random_size=False)])
    transform_test = NormalizeIntensityd("image")

    images, labels = draw_scans(6, 48, 48)
    labeled = [{"image": image, "label": label[None]} for image, label in zip(images, labels)]
    unlabeled = [{"image": image} for image in draw_scans(40, 48, 48)[0]]
    test = [{"image": image, "label": label[None]} for image, label in zip(*draw_scans(20, 48, 48))]

    net = FeatureTap(UNet(2, 1, num_classes, channels=(16, 32, 64), strides=(2, 2)))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    pool = DataLoader(Dataset(labeled, transform), batch_sampler=ReferencePool(labels, size=3))
    loader_u = DataLoader(Dataset(unlabeled, transform_u), batch_size=2, shuffle=True)
    criterion = RPGLoss(k=0.5)

    for epoch in range(6):
        for batch, batch_u in zip(pool, loader_u):
            logits, features = net(batch["image"])
            logits_u, features_u = net(batch_u["image"])
            loss = criterion(logits_u, features_u, features, batch["label"][:, 0], logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    inferer = SlidingWindowInferer(CROP, sw_batch_size=4, overlap=0.5)
    dice = DiceMetric(include_background=False, num_classes=num_classes)
    net.eval()
    with torch.no_grad():
        for scan in DataLoader(Dataset(test, transform_test), batch_size=4):
            dice(inferer(scan["image"], net.net).argmax(1, keepdim=True), scan["label"])
    score = dice.aggregate().item()
    print(f"mean Dice {score:.2f} on {len(test)} whole unseen scans, from {len(labeled)} labeled ones")
    return score


if __name__ == "__main__":
    main()
