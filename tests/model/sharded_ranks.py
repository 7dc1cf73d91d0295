"""Run by ``torchrun`` in a test: FSDP2 shards adapted networks, which train as whole ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from respipe.model.adapt import adapt, extract
from respipe.model.resnet_cifar import ResNetCifar
from respipe.schedules import LowMode, RSNet, Schedule


def adapted(schedule: Schedule) -> nn.Module:
    torch.manual_seed(0)
    return adapt(ResNetCifar(8, width=4, num_classes=3), schedule)


def trained(model: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, size in enumerate((16, 8, 16, 8)):
        images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(step))  # the same on each rank
        model(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def shard(model: nn.Module, mesh: DeviceMesh, parts: tuple[str, ...]) -> None:
    for name in parts:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)


def check(schedule: Schedule, parts: tuple[str, ...], mesh: DeviceMesh, rank: int) -> None:
    expected = trained(adapted(schedule))
    model = adapted(schedule)
    shard(model, mesh, parts)
    state = trained(model)
    if rank == 0:  # which has the whole state
        assert list(state) == list(expected)
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
        whole = adapted(schedule)
        whole.load_state_dict(state)
        extract(whole, 8)
    for refused in (lambda: adapt(model, schedule), lambda: extract(model, 8)):
        with pytest.raises(ValueError, match="`fully_shard` divided among processes"):
            refused()


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for schedule in (RSNet((16, 8)), LowMode(16)):
        for parts in ((), ("stages.0", "stages.1"), ("stem.0", "stem.1")):
            check(schedule, parts, mesh, torch.distributed.get_rank())
    torch.distributed.destroy_process_group()
