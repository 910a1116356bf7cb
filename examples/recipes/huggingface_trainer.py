"""Segformer with Hugging Face's `Trainer`: the loss goes into `compute_loss`.

    python -m examples.recipes.huggingface_trainer    # pip install transformers accelerate

The trainer's data set is the unlabeled images; each step draws its pool beside them. The model is the tap, which the
trainer may move and wrap as it likes; `trainer.model.net` is the Segformer, to be saved by `save_pretrained`. It is
tiny and starts from random weights: nothing is downloaded.
"""

from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments, set_seed

from examples.recipes.scans import draw_scans
from rpg_loss import FeatureTap, ReferencePool, RPGLoss


class RPGTrainer(Trainer):
    def __init__(self, *args: Any, pool: DataLoader[Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pool = iter(pool)
        self.criterion = RPGLoss(k=0.5)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        images, labels = (tensor.to(self.args.device) for tensor in next(self.pool))
        logits, features = model(images)
        logits_u, features_u = model(inputs["pixel_values"])
        loss: Tensor = self.criterion(logits_u, features_u, features, labels, logits)
        return loss


def segformer() -> nn.Module:
    config = SegformerConfig(
        num_channels=1,
        num_labels=2,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[32, 64],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=32,
    )
    return SegformerForSemanticSegmentation(config)


def full_size(output: Any) -> Tensor:
    """Enlarge the logits, which Segformer returns at a fraction of the images' size, here half."""
    return F.interpolate(output.logits, scale_factor=2, mode="bilinear")


def main() -> float:
    set_seed(0)
    images, labels = draw_scans(6, 32, 32)
    labeled = TensorDataset(images, labels.clamp(max=1))  # the organ with the lesion in it
    unlabeled = [{"pixel_values": image} for image in draw_scans(60, 32, 32)[0]]
    images_test, labels_test = draw_scans(40, 32, 32)

    net = FeatureTap(segformer(), logits=full_size)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=8,
            per_device_train_batch_size=2,
            learning_rate=3e-3,
            remove_unused_columns=False,  # it would look for the images among the arguments of the tap
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        pool = DataLoader(labeled, batch_sampler=ReferencePool([label for _, label in labeled], size=3))
        RPGTrainer(net, arguments, train_dataset=unlabeled, pool=pool).train()

    net.eval()
    with torch.no_grad():
        logits, _ = net(images_test)
    organ, truth = logits.argmax(1) == 1, labels_test > 0
    iou = float((organ & truth).sum() / (organ | truth).sum())
    print(f"IoU {iou:.2f} on {len(images_test)} unseen scans, from {len(labeled)} labeled ones")
    return iou


if __name__ == "__main__":
    main()
