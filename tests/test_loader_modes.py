"""The loader under schedules that ask more of the model than another size: several sizes at once, low mode."""

from __future__ import annotations

import pytest
import torch

import respipe
from respipe.model.resnet_cifar import ResNetCifar
from respipe.schedules import Constant, LowMode, RSNet, Schedule
from tests.loaders import make
from tests.memory_dataset import MemoryDataset


@pytest.fixture
def dataset() -> MemoryDataset:
    return MemoryDataset([(40 + 3 * i % 17, 60 - 5 * i % 23) for i in range(21)])


def test_rsnet_shows_the_same_crops_at_every_size(dataset: MemoryDataset) -> None:
    with make(dataset, RSNet((16, 32, 24))) as loader:
        batches = list(loader)
    assert len(batches) == 5
    for place, size in enumerate((32, 24, 16)):
        with make(dataset, Constant(size)) as loader:
            for (together, labels, _), (alone, same_labels, _) in zip(batches, loader, strict=True):
                assert torch.equal(together[place], alone)
                assert torch.equal(labels, same_labels)


def test_low_steps_have_small_images_and_say_so(dataset: MemoryDataset) -> None:
    with make(dataset, LowMode(32)) as loader:
        seen = [(spec.step.mode, images.shape[-1]) for _ in range(3) for images, _, spec in loader]
    assert set(seen) == {("full", 32), ("low", 16)}


@pytest.mark.parametrize("schedule", [RSNet((32, 16)), LowMode(32, probability=0.5)])
def test_adapted_network_learns_from_its_batches(dataset: MemoryDataset, schedule: Schedule) -> None:
    torch.manual_seed(0)
    model = respipe.adapt(ResNetCifar(8, width=4, num_classes=2), schedule)
    loss = respipe.MRED(len(schedule.steps(0, num_samples=21, batch_size=4)[0].sizes))
    both = respipe.AllSizes(model, loss)
    before = {name: parameter.detach().clone() for name, parameter in both.named_parameters()}
    optimizer = torch.optim.SGD([{"params": model.parameters()}, loss.parameter_group()], lr=0.1)
    with make(dataset, schedule, with_spec=False) as loader:
        for _ in range(2):
            for images, labels in loader:
                optimizer.zero_grad()
                both(images, labels % 2).backward()
                optimizer.step()
    still = {name for name, parameter in both.named_parameters() if torch.equal(parameter, before[name])}
    assert still == (set() if isinstance(schedule, RSNet) else {"criterion.alpha"})
