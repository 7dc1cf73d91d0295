from __future__ import annotations

import pytest

from respipe.schedules import Constant, MixSize, mean_batch_size

IMAGENET = {"num_samples": 1_281_167, "batch_size": 256}
CIFAR = {"num_samples": 50_000, "batch_size": 64}


def test_constant_batch_is_its_own_mean() -> None:
    for over in ("steps", "samples"):
        assert mean_batch_size(Constant(224), epochs=range(3), over=over, **IMAGENET) == 256


def test_mean_over_steps_is_the_samples_over_the_steps() -> None:
    """N / T is 683.3 and 91.6; the samples left out make the mean of the batches smaller by less than 0.2 %."""
    imagenet = mean_batch_size(MixSize("S144", rounding="pow2_ceil"), epochs=[0], **IMAGENET)
    assert imagenet == (500 * 256 + 500 * 256 + 750 * 1024 + 125 * 2048) / 1875
    assert imagenet == pytest.approx(683.3, rel=2e-3)
    cifar = mean_batch_size(MixSize("S28", rounding="pow2_ceil"), epochs=[0], **CIFAR)
    assert cifar == (234 * 64 + 156 * 64 + 117 * 128 + 39 * 256) / 546
    assert cifar == pytest.approx(91.6, rel=2e-3)


def test_mean_over_samples_weighs_batches_by_their_probabilities() -> None:
    rounded = mean_batch_size(MixSize("S144", rounding="pow2_ceil"), epochs=[0], over="samples", **IMAGENET)
    assert rounded / 256 == pytest.approx(4.2, rel=1e-3)
    exact = mean_batch_size(MixSize("S144", batch_multiple=1), epochs=[0], over="samples", **IMAGENET)
    assert exact / 256 == pytest.approx(3.1, rel=2e-3)


def test_copies_do_not_count() -> None:
    assert mean_batch_size(MixSize("S144", grow="duplicates"), epochs=[0], **IMAGENET) == 256


def test_epochs_of_different_lengths_weigh_by_their_steps() -> None:
    schedule = MixSize({32: 0.5, 16: 0.5}, base_size=32, weighting="progressive", num_epochs=2)
    # Two steps of 40 samples at 16 px, eight of 10 at 32 px.
    assert mean_batch_size(schedule, epochs=range(2), num_samples=80, batch_size=10) == 16


def test_no_epochs_and_an_unknown_mean_are_refused() -> None:
    with pytest.raises(ValueError, match="`epochs` must name at least one epoch"):
        mean_batch_size(Constant(32), epochs=[], **CIFAR)
    with pytest.raises(ValueError, match="`over` must be one of"):
        mean_batch_size(Constant(32), epochs=[0], over="epochs", **CIFAR)  # pyright: ignore[reportArgumentType]
