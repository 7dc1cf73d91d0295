"""A loop of one's own, and what other scripts' loops touch."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from tests.integrations.runs import (
    NUM_EPOCHS,
    NUM_SAMPLES,
    Seen,
    cross_entropy,
    evaluation_loader,
    expected,
    make_loader,
    make_network,
    seen,
    train_plain,
)


def test_a_resumed_run_ends_with_the_weights_of_a_whole_one(tmp_path: Path) -> None:
    batches: list[Seen] = []
    whole = train_plain(tmp_path, batches.append, resume=False)
    saved_at = max(step for step in range(len(batches)) if step % 2 == 0)
    saved = torch.load(tmp_path / "latest.pt", weights_only=True)
    assert (batches, saved["step"]) == (expected(), saved_at + 2)

    class StopError(Exception):
        pass

    def stop(batch: Seen) -> None:
        batches.append(batch)
        if len(batches) == 6:
            raise StopError

    batches.clear()
    try:
        train_plain(tmp_path, stop, resume=False)
    except StopError:
        resumed = train_plain(tmp_path, batches.append, resume=True)
    assert batches == expected()[:6] + expected()[4:]
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_accumulated_losses_weighted_by_images_are_those_of_one_batch() -> None:
    network = make_network().double()
    batches = [(images.double(), labels) for images, labels in islice(make_loader(), 2)]
    for images, labels in batches:
        # Sizes differ, so that nothing but the losses can be put together.
        (len(images) * cross_entropy(network, images, labels) / sum(len(one) for one, _ in batches)).backward()
    gradient = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    losses = [torch.nn.functional.cross_entropy(network(one), two, reduction="none") for one, two in batches]
    torch.cat(losses).mean().backward()
    for one, parameter in zip(gradient, network.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


def test_slices_of_an_epochs_length_walk_through_the_epochs() -> None:
    loader = make_loader()
    batches = [seen(loader, *batch) for _ in range(NUM_EPOCHS) for batch in islice(loader, len(loader))]
    assert batches == expected()


def test_scripts_find_what_they_ask_a_loader_and_its_sampler_for() -> None:
    loader = make_loader(rank=0, world_size=2)
    assert len(loader.dataset) == NUM_SAMPLES
    for sampler in (loader.sampler, loader.batch_sampler, loader.batch_sampler.sampler):
        sampler.set_epoch(1)
        assert (loader.epoch, sampler.batch_sizes) == (1, (4, 3, 4, 3))
        assert (sampler.average_batch_size, sampler.batch_size) == (3.5, 2)
        sampler.set_epoch(0)
    loader.set_epoch(1)
    assert (len(loader.batch_sampler), len(loader.sampler), len(loader.batch_sampler.sampler)) == (4, 14, 14)


def test_the_samplers_of_an_evaluation_add_up_to_no_less_than_the_dataset() -> None:
    # PyTorch's own ImageNet script evaluates the rest of the dataset by itself.
    loaders = [evaluation_loader(rank=rank, world_size=5) for rank in range(5)]
    assert all(len(loader.sampler) * 5 >= NUM_SAMPLES for loader in loaders)
