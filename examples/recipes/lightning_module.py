"""A `LightningModule` with pools and unlabeled images in a `CombinedLoader`.

    python -m examples.recipes.lightning_module    # pip install lightning

`mode="min_size"` ends an epoch with the unlabeled images: the pool never ends. On several GPUs give the trainer
`use_distributed_sampler=False`, every process a `DistributedSampler` of the unlabeled images, and the loss a `group`,
as in the recipe for torchrun: in `setup`, as there is no group yet when the module is made, and `dist.group.WORLD` is
None.
"""

import lightning
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassJaccardIndex

from examples.recipes.plain_pytorch import network
from examples.recipes.scans import CLASSES, draw_scans
from rpg_loss import FeatureTap, ReferencePool, RPGLoss


class Segmenter(lightning.LightningModule):
    def __init__(self, net: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.net = FeatureTap(net)
        self.criterion = RPGLoss(k=0.5)
        self.iou = MulticlassJaccardIndex(num_classes)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        (images, labels), images_u = batch["pool"], batch["unlabeled"]
        logits, features = self.net(images)
        logits_u, features_u = self.net(images_u)
        loss: Tensor = self.criterion(logits_u, features_u, features, labels, logits)
        self.log("loss", loss, batch_size=len(images_u))
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits, _ = self.net(images)
        self.iou(logits, labels)
        self.log("IoU", self.iou)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def main() -> float:
    lightning.seed_everything(0)
    labeled = TensorDataset(*draw_scans(6, 32, 32))
    unlabeled, _ = draw_scans(60, 32, 32)
    test = TensorDataset(*draw_scans(40, 32, 32))

    batches = {
        "pool": DataLoader(labeled, batch_sampler=ReferencePool([label for _, label in labeled], size=3)),
        "unlabeled": DataLoader(unlabeled, batch_size=2, shuffle=True),
    }
    model = Segmenter(network(), len(CLASSES))
    trainer = lightning.Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, CombinedLoader(batches, mode="min_size"))
    (result,) = trainer.test(model, DataLoader(test, batch_size=8), verbose=False)
    print(f"after {trainer.global_step} steps: IoU {result['IoU']:.2f}, mean over {', '.join(CLASSES)}")
    return result["IoU"]


if __name__ == "__main__":
    main()
