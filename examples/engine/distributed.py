"""One run on several processes, started by torchrun: what they tell each other.

    torchrun --nproc-per-node 2 -m examples.train ...

All run the same code on shares of the same batches (engine/sharding.py); only the first writes to the run's
folder. Started without torchrun, a run is one process and nothing here does anything.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    return rank() == 0


def group() -> ProcessGroup | None:
    """Return all processes, for the losses of ``rpg_loss``; None if there is but one."""
    return dist.group.WORLD if world_size() > 1 else None


@contextmanager
def started_by_torchrun() -> Iterator[None]:
    """Join the processes that torchrun has started, if it has; those after the first print nothing but errors."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    # NCCL for what lies on GPUs; what is counted on the CPU goes through gloo.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if is_main_process() else nowhere):
            yield
    finally:
        dist.destroy_process_group()


def default_device() -> str:
    """Return the device that ``auto`` stands for: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(device: str) -> str:
    """Return a device (auto, cpu, cuda, cuda:1, ...) as PyTorch names it."""
    if device == "auto":
        return default_device()
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device: got {device}, expected auto, cpu, cuda, cuda:1, ...") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {device}, but this PyTorch sees no GPU; pass --device cpu")
    return device


def own_device(device: str) -> str:
    """Return the device of this process: with several processes, ``cuda`` is another GPU for each."""
    device = resolve_device(device)
    if world_size() == 1 or device == "cpu":
        return device
    number, gpus = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
    if device != "cuda":
        raise ValueError(
            f"device: got {device} with {world_size()} processes, expected cpu, or cuda for a GPU for each"
        )
    if number >= gpus:
        raise ValueError(
            f"device: process {number} of this machine has no GPU, there are {gpus}; start no more of them"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"


@contextmanager
def fail_together() -> Iterator[None]:
    """End all processes where the block fails on one: one of those where it failed raises, the others exit silently."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as failure:
        error = failure
    if world_size() > 1:
        codes: list[int | None] = [None] * world_size()
        dist.all_gather_object(codes, None if error is None else exit_code(error))
        failed = [number for number, code in enumerate(codes) if code is not None]
        if failed and failed[0] != rank():
            raise SystemExit(codes[failed[0]])
    if error is not None:
        raise error


def is_peer_failure(error: RuntimeError) -> bool:
    """Return whether an exchange failed because another process has ended."""
    # gloo's are of no class of their own.
    return world_size() > 1 and (isinstance(error, dist.DistError) or "gloo/transport" in str(error))


def exit_code(error: BaseException) -> int:
    code = getattr(error, "code", 1)
    return code if isinstance(code, int) else 0 if code is None else 1


def broadcast_from_rank0(make: Callable[[], T]) -> T:
    """Return what ``make`` returns on the first process, on all; the others do not call it."""
    made: list[Any] = [None]
    with fail_together():
        if is_main_process():
            made = [make()]
    if world_size() > 1:
        dist.broadcast_object_list(made)
    result: T = made[0]
    return result


def all_gather(mine: T) -> list[T]:
    """Return what every process has, in the order of their ranks."""
    if world_size() == 1:
        return [mine]
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


class Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Sum.forward(ctx, gradient)


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum over all processes; gradients are those of the sum of all losses."""
    if world_size() == 1:
        return value
    total: Tensor = Sum.apply(value)  # type: ignore[no-untyped-call]
    return total


def all_reduce_mean(value: Tensor) -> Tensor:
    """Return the mean over all processes."""
    return all_reduce_sum(value) / world_size()


def all_reduce_max(number: int | None) -> int | None:
    """Return the largest number that a process brings, on all of them; None if all bring None."""
    if world_size() == 1:
        return number
    largest = torch.tensor(-1 if number is None else number)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return None if largest < 0 else int(largest)


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm by the statistics of all processes, for CPUs, which ``nn.SyncBatchNorm`` has no kernel for."""

    def forward(self, maps: Tensor) -> Tensor:
        if not self.training:
            return super().forward(maps)
        assert self.running_mean is not None
        axes, channels, dtype = (0, 2, 3), (1, -1, 1, 1), maps.dtype
        maps = maps.to(self.running_mean.dtype)  # under autocast they are in half precision
        count = all_reduce_sum(torch.tensor(float(maps.numel() // maps.shape[1])))
        mean = all_reduce_sum(maps.sum(axes)) / count
        centered = maps - mean.view(channels)
        variance = all_reduce_sum(centered.square().sum(axes)) / count
        self.remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centered * scale.view(channels) + self.bias.view(channels)).to(dtype)

    @torch.no_grad()
    def remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def with_synced_batch_norm(module: nn.Module) -> nn.Module:
    """Return the module with the statistics of its batch norms over all processes, and the same ``state_dict`` keys."""
    if world_size() == 1:
        return module
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and not isinstance(child, SyncedBatchNorm):
            setattr(module, name, synced(child))
        else:
            with_synced_batch_norm(child)
    return module


def synced(norm: nn.BatchNorm2d) -> nn.Module:
    if norm.weight.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    result = SyncedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(result, name, getattr(norm, name))  # the same: a teacher's need no gradient
    return result


class StepModule(nn.Module):
    """A network and its method as the one module, called once a step, that DistributedDataParallel asks for."""

    def __init__(self, net: nn.Module, method: nn.Module) -> None:
        super().__init__()
        self.net, self.method = net, method

    def forward(self, *inputs: Any) -> Any:
        return self.method(self.net, *inputs)


def data_parallel(net: nn.Module, method: nn.Module) -> Callable[..., Any]:
    """Return ``method`` with its first argument ``net``; its gradients are then the means over all processes."""
    if world_size() == 1:
        return partial(method, net)
    # Buffers are the same everywhere.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(StepModule(net, method), **options)
