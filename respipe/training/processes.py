"""One process or many: what ``torchrun`` has set up."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Process:
    """This process's place in the run.

    Args:
        rank: number of this process from 0, below ``world_size``.
        world_size: number of processes.
        device: device of its model.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0


@contextmanager
def process_group(device: str) -> Generator[Process]:
    """Join the processes that ``torchrun`` started, or be the only one.

    What holds the group must be gone when the block ends: a model in ``DistributedDataParallel``, above all. Otherwise
    gloo's threads outlive it, and one that still has a tensor to release when the interpreter ends aborts the process.

    Args:
        device: "cpu", "cuda" or "auto".

    Raises:
        ValueError: there is no GPU for this process.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda" and local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"`runtime.device` must be cpu, or there must be a GPU for each process; process {local_rank} found "
            f"{torch.cuda.device_count()}. Start fewer processes or pass --set runtime.device=cpu."
        )
    place = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
        torch.backends.cudnn.benchmark = True  # a schedule has few shapes, each worth a search for its fastest kernels
    if "RANK" not in os.environ:
        yield Process(rank=0, world_size=1, device=place)
        return
    # DistributedDataParallel would import it later: the defaults of its functions are the group of the moment of its
    # import, which they keep from then on.
    importlib.import_module("torch.distributed.nn.functional")
    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Process(rank=torch.distributed.get_rank(), world_size=torch.distributed.get_world_size(), device=place)
    finally:
        gc.collect()  # a model in a cycle of references
        torch.distributed.destroy_process_group()


def wrap(model: nn.Module, process: Process, *, find_unused_parameters: bool) -> nn.Module:
    """The model with its gradients averaged over all processes."""
    if process.world_size == 1:
        return model
    devices = [process.device.index] if process.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, find_unused_parameters=find_unused_parameters)


def share_buffers(model: nn.Module, process: Process) -> None:
    """Give every process rank zero's buffers: BatchNorm's statistics differ after each step's own samples."""
    if process.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def sum_over_ranks(values: torch.Tensor, process: Process) -> torch.Tensor:
    """The sum of a tensor over all processes; the tensor itself is not changed."""
    total = values.clone()
    if process.world_size > 1:
        torch.distributed.all_reduce(total)
    return total
