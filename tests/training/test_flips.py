from __future__ import annotations

import torch

from respipe.sampling import WholeImage
from respipe.schedules import RSNet
from respipe.training.batches import flip_each_size
from tests.loaders import make
from tests.memory_dataset import MemoryDataset


def is_flipped(images: torch.Tensor, originals: torch.Tensor) -> list[bool]:
    """Which images are mirrored; fails where one is neither that nor as it was."""
    flags = [bool(torch.equal(one, other.flip(-1))) for one, other in zip(images, originals, strict=True)]
    assert all(
        torch.equal(one, other.flip(-1) if flag else other)
        for one, other, flag in zip(images, originals, flags, strict=True)
    )
    return flags


def test_each_size_is_mirrored_on_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    originals = [torch.randn(400, 3, size, size, generator=generator) for size in (4, 2)]
    originals = [one.to(memory_format=torch.channels_last) for one in originals]
    labels = torch.arange(400)
    torch.manual_seed(0)
    images, same_labels = flip_each_size(originals, labels)
    assert same_labels is labels
    flags = [is_flipped(one, other) for one, other in zip(images, originals, strict=True)]
    # Expected 200, 200 and 100 with standard deviations 10 and 9.
    assert all(160 < sum(one) < 240 for one in flags)
    assert 64 < sum(one and other for one, other in zip(*flags, strict=True)) < 136
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in images)


def test_single_size_and_raw_pixels_are_taken() -> None:
    images = torch.randint(256, (50, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (flipped,), _ = flip_each_size(images, torch.zeros(50))
    assert flipped.dtype == torch.uint8
    assert 0 < sum(is_flipped(flipped, images)) < 50


def test_loader_mirrors_each_size_the_same_way_in_every_run() -> None:
    dataset = MemoryDataset([(24, 24)] * 16)
    options = {"crop": WholeImage(), "flip_probability": 0.0, "batch_size": 8}
    with make(dataset, RSNet((16, 8)), **options) as loader:
        plain = [images for images, _, _ in loader]
    runs = []
    for _ in range(2):
        with make(dataset, RSNet((16, 8)), batch_transform=flip_each_size, **options) as loader:
            batches = [images for images, _, _ in loader]
        runs.append(
            [[is_flipped(*pair) for pair in zip(*both, strict=True)] for both in zip(batches, plain, strict=True)]
        )
    assert runs[0] == runs[1]
    assert any(large != small for large, small in runs[0])
