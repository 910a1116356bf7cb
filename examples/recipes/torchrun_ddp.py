"""Several processes, here two on a CPU, with `DistributedDataParallel`.

    torchrun --standalone --nproc-per-node 2 -m examples.recipes.torchrun_ddp

Every process draws a pool of its own and has its share of the unlabeled images. With `group=` the pools of all
processes are one reference set, twice as large here; the references stay where they are. Wrap the tap, not the network
in it. On GPUs say `"nccl"` and move network and batches to the process's device.
"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from examples.recipes.plain_pytorch import network
from examples.recipes.scans import draw_scans, mean_iou
from rpg_loss import FeatureTap, ReferencePool, RPGLoss


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # the same scans in all processes
    labeled = TensorDataset(*draw_scans(6, 32, 32))
    unlabeled, _ = draw_scans(60, 32, 32)
    images_test, labels_test = draw_scans(40, 32, 32)

    net = DistributedDataParallel(FeatureTap(network()))  # with batch norm: broadcast_buffers=False
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)

    draws = torch.Generator().manual_seed(dist.get_rank())  # other pools in every process
    pool = DataLoader(labeled, batch_sampler=ReferencePool([label for _, label in labeled], size=3, generator=draws))
    share = DistributedSampler(unlabeled)
    criterion = RPGLoss(k=0.5, group=dist.group.WORLD)

    for epoch in range(2):
        share.set_epoch(epoch)
        for (images, labels), images_u in zip(pool, DataLoader(unlabeled, batch_size=2, sampler=share)):
            logits, features = net(images)
            logits_u, features_u = net(images_u)
            loss = criterion(logits_u, features_u, features, labels, logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    net.eval()
    with torch.no_grad():
        logits, _ = net(images_test)
    iou = mean_iou(logits.argmax(1), labels_test)
    ious = [0.0] * dist.get_world_size()
    dist.all_gather_object(ious, iou)
    if dist.get_rank() == 0:
        print(f"mean IoU on unseen scans, the same in every process: {', '.join(f'{iou:.2f}' for iou in ious)}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
