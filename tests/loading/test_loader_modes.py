"""The loader under schedules that ask more of the model than another size: several sizes at once, low mode."""

from __future__ import annotations

import itertools

import pytest
import torch

import respipe
from respipe.errors import StateMismatchError
from respipe.model.resnet_cifar import ResNetCifar
from respipe.sampling import CenterCrop
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


def test_training_with_the_evaluation_crop_shows_the_pixels_of_the_evaluation(dataset: MemoryDataset) -> None:
    with make(dataset, Constant(24), training=False) as loader:
        expected = {
            index: image for images, _, spec in loader for index, image in zip(spec.indices, images, strict=True)
        }
    with make(dataset, Constant(24), crop=CenterCrop(), flip_probability=0) as loader:
        order = [index for images, _, spec in loader for index, image in zip(spec.indices, images, strict=True)
                 if torch.equal(image, expected[index])]  # fmt: skip
    assert len(order) == 20
    assert order != sorted(order)


def test_repeats_fill_batches_with_fewer_samples_differently_cropped(dataset: MemoryDataset) -> None:
    with make(dataset, Constant(24), repeats=3) as loader, make(dataset, Constant(24)) as plain:
        assert len(loader) == len(plain) == loader.num_steps(7) == 5
        batches = list(loader)
        images = torch.cat([images for images, _, _ in batches])
        indices = list(itertools.chain(*(spec.indices.tolist() for _, _, spec in batches)))
        assert all(labels.tolist() == dataset.labels[spec.indices].tolist() for _, labels, spec in batches)
    assert len(images) == 20
    assert indices == list(itertools.chain(*([index] * 3 for index in indices[::3])))[:20]
    assert len(set(indices)) == 7
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("world_size", [2, 4])
def test_repeated_batches_resume_anywhere_and_are_the_same_for_any_ranks(
    dataset: MemoryDataset, world_size: int
) -> None:
    with make(dataset, Constant(24), repeats=3) as loader:
        loader.set_epoch(2)
        batches = list(loader)
        loader.set_epoch(2)
        iterator = iter(loader)
        next(iterator), next(iterator)
        state = loader.state_dict()
    for rank in range(world_size):
        with make(dataset, Constant(24), repeats=3, rank=rank, world_size=world_size) as part:
            part.load_state_dict(state)
            for (mine, _, _), (images, _, _) in zip(part, batches[2:], strict=True):
                assert torch.equal(mine, images[rank::world_size])


def test_state_belongs_to_its_number_of_repeats(dataset: MemoryDataset) -> None:
    with (
        make(dataset, repeats=3) as loader,
        make(dataset) as plain,
        pytest.raises(StateMismatchError, match="repeats=3"),
    ):
        plain.load_state_dict(loader.state_dict())


def test_evaluation_repeats_nothing(dataset: MemoryDataset) -> None:
    with pytest.raises(ValueError, match="`repeats` must be 1 in evaluation"):
        make(dataset, Constant(24), training=False, repeats=2)
