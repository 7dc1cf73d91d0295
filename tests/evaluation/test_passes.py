from __future__ import annotations

import pytest

from respipe.evaluation.passes import Pass, plan_passes
from respipe.sampling import CenterCrop, WholeImage
from tests.memory_dataset import MemoryDataset

ALIKE = [(128, 160), (160, 128), (128, 128)]


def test_one_stored_level_is_one_pass_for_all_sizes() -> None:
    passes = plan_passes(MemoryDataset(ALIKE), (24, 96, 40), crop=CenterCrop(), batch_size=4)
    assert passes == [Pass(sizes=(96, 40, 24), batch_size=4)]


def test_sizes_share_a_pass_with_those_that_read_the_same_level() -> None:
    # Shorter sides of 128, 64 and 32, of which an evaluation crop takes seven eighths: 112, 56 and 28.
    dataset = MemoryDataset(ALIKE, fractions=(0.5, 0.25))
    passes = plan_passes(dataset, (16, 21, 35, 49, 56, 63, 112, 224), crop=CenterCrop(), batch_size=4)
    assert [one.sizes for one in passes] == [(224, 112, 63), (56, 49, 35), (21, 16)]


def test_sizes_for_which_only_some_samples_read_another_level_do_not_share() -> None:
    dataset = MemoryDataset([(128, 128), (96, 128)], fractions=(0.5,))
    # A whole image of 64 x 64 serves up to 64 px, one of 48 x 64 up to 48 px.
    passes = plan_passes(dataset, (80, 64, 60, 48), crop=WholeImage(), batch_size=4)
    assert [one.sizes for one in passes] == [(80,), (64, 60), (48,)]


@pytest.mark.parametrize(("sizes", "expected"), [((448,), 256), ((448, 448), 256), ((448, 224), 204), ((32, 16), 256)])
def test_batches_of_several_sizes_have_no_more_pixels_than_one_of_the_largest(
    sizes: tuple[int, ...], expected: int
) -> None:
    (only,) = plan_passes(MemoryDataset(ALIKE), sizes, crop=CenterCrop(), batch_size=256)
    assert only.batch_size == expected


def test_a_batch_has_a_sample() -> None:
    sizes = tuple(range(4000, 5000, 50))
    (only,) = plan_passes(MemoryDataset(ALIKE), sizes, crop=CenterCrop(), batch_size=1)
    assert only.batch_size == 1
