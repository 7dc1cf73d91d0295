"""Mixup and CutMix: timm's results from the same parameters, the same pairs on any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target, rand_bbox

from respipe.augment import Mixing
from respipe.augment.mixing import mix_images, mix_labels
from respipe.planning.mixing import MixPlan


def plan(mixing: Mixing, count: int = 400, *, step: int = 0, epoch: int = 0, **more: Any) -> MixPlan:
    indices = more.pop("indices", np.arange(count))
    copies = more.pop("copies", np.zeros(len(indices), np.int64))
    return mixing.plan(indices, copies, seed=7, epoch=epoch, step=step, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_images_and_labels_are_mixed_as_timm_mixes_them(dtype: torch.dtype) -> None:
    images = (torch.arange(4 * 3 * 8 * 8) % 251).view(4, 3, 8, 8).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.tensor([2, 0, 1, 1])
    made = MixPlan(
        np.array([1, 0, 3, 2]),
        np.array([0.75, 0.75, 0.4375, 1.0]),
        np.array([False, False, True, False]),
        np.array([[0.0, 0.0], [0.0, 0.0], [0.9, 0.3], [0.5, 0.5]]),
    )
    mixed = mix_images(images, made)
    assert mixed.dtype == dtype and mixed.is_contiguous(memory_format=torch.channels_last)
    floats = images.float()
    for row, partner in ((0, 1), (1, 0)):
        wanted = floats[row] * 0.75 + floats[partner] * 0.25
        assert torch.equal(mixed[row].float(), wanted.round() if dtype == torch.uint8 else wanted)
    # timm cuts int(8 * 0.75) = 6 pixels around row 7 and column 2, cut off at the edge: rows 4 to 8, columns 0 to 5.
    cut = images[2].clone()
    cut[:, 4:8, 0:5] = images[3][:, 4:8, 0:5]
    assert torch.equal(mixed[2], cut) and torch.equal(mixed[3], images[3])
    soft = mix_labels(labels, made, 8, num_classes=3, label_smoothing=0.1)
    own = torch.tensor([0.75, 0.75, 1 - 20 / 64, 1.0])[:, None]
    one_hot = mixup_target(labels, 3, 1.0, 0.1)
    assert torch.allclose(soft, one_hot * own + one_hot[[1, 0, 3, 2]] * (1 - own))
    assert torch.allclose(soft.sum(dim=1), torch.ones(4))


def test_rectangles_are_distributed_as_timms() -> None:
    drawn = plan(Mixing(cutmix=1.0, mode="elem"), 4000)
    np.random.seed(0)  # noqa: NPY002 - timm draws from it
    theirs = np.array([rand_bbox((3, 32, 32), weight) for weight in drawn.weights])[:, [0, 2, 1, 3]]
    mine = drawn.rectangles(32)
    for column in range(4):
        edges = np.linspace(0, 33, 12)
        one, other = (np.histogram(sample[:, column], edges)[0] for sample in (mine, theirs))
        used = one + other > 0
        assert ((one - other)[used] ** 2 / (one + other)[used]).sum() < 40
    assert np.array_equal(mine[:, 2:] - mine[:, :2] <= 32, np.ones((4000, 2), bool))


def test_parameters_have_timms_distribution() -> None:
    drawn = plan(Mixing(0.8, 1.0, probability=0.9, switch_probability=0.3, mode="elem"), 20_000)
    mixed = drawn.weights < 1
    assert mixed.mean() == pytest.approx(0.9, abs=0.01)
    assert drawn.cut[mixed].mean() == pytest.approx(0.3, abs=0.015)
    assert not drawn.cut[~mixed].any()
    for alpha, chosen in ((1.0, drawn.cut), (0.8, mixed & ~drawn.cut)):
        assert drawn.weights[chosen].mean() == pytest.approx(0.5, abs=0.01)
        assert drawn.weights[chosen].var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize(("mode", "distinct"), [("batch", 1), ("pair", 20), ("elem", 40)])
def test_a_mode_says_what_gets_parameters_of_its_own(mode: Any, distinct: int) -> None:
    drawn = plan(Mixing(0.4, mode=mode), 40)
    assert len(np.unique(drawn.weights)) == distinct
    assert drawn.partners.tolist() == [number ^ 1 for number in range(40)]
    if mode == "pair":
        assert np.array_equal(drawn.weights[drawn.partners], drawn.weights)
    assert not np.array_equal(plan(Mixing(0.4, mode=mode), 40, epoch=1).weights, drawn.weights)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_ranks_mix_what_one_process_mixes(mode: Any) -> None:
    indices = np.random.default_rng(0).permutation(100)[:24]
    whole = plan(Mixing(0.4, 1.0, mode=mode), indices=indices, step=3)
    for rank in range(3):
        part = slice(8 * rank, 8 * rank + 8)
        local = plan(Mixing(0.4, 1.0, mode=mode), indices=indices[part], step=3)
        assert np.array_equal(local.weights, whole.weights[part]) and np.array_equal(local.cut, whole.cut[part])
        assert np.array_equal(local.partners + 8 * rank, whole.partners[part])


def test_copies_and_repeats_meet_other_samples() -> None:
    copies = plan(Mixing(0.4), indices=np.repeat(np.arange(4), 3), copies=np.tile([0, 1, 2], 4), duplicates=3)
    assert copies.partners.tolist() == [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]
    repeats = plan(Mixing(0.4), indices=np.repeat(np.arange(4), 2), copies=np.tile([0, 1], 4), repeats=2)
    assert repeats.partners.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


def test_mixing_ends_where_it_was_told_to_and_labels_stay_soft() -> None:
    mixing = Mixing(0.4, off_epoch=2, label_smoothing=0.1)
    assert (plan(mixing, epoch=1).weights < 1).all()
    after = plan(mixing, epoch=2)
    assert (after.weights == 1).all()
    labels = torch.arange(400) % 5
    assert torch.allclose(
        mix_labels(labels, after, 32, num_classes=5, label_smoothing=0.1), mixup_target(labels, 5, 1.0, 0.1)
    )


def test_vectors_of_labels_are_mixed_as_timms_multi_label() -> None:
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    made = MixPlan(np.array([1, 0]), np.array([0.25, 0.25]), np.zeros(2, bool), np.zeros((2, 2)))
    wanted = mixup_target(labels, 2, 0.25, 0.2, multi_label=True)  # which mixes with the reversed batch
    assert torch.allclose(mix_labels(labels, made, 32, num_classes=2, label_smoothing=0.2), wanted)


def test_what_makes_no_sense_is_refused() -> None:
    for make, words in (
        (Mixing, "`mixup` or `cutmix`"),
        (lambda: Mixing(0.001), "`mixup`"),
        (lambda: Mixing(1.0, mode="half"), "`mode`"),  # type: ignore[arg-type]
        (lambda: Mixing(1.0, label_smoothing=10), "`label_smoothing`"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    with pytest.raises(ValueError, match="even on each rank"):
        plan(Mixing(1.0), 5)
