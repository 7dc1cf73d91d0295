"""What policies draw: the same for an image wherever it is drawn, and as often as torchvision draws it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from respipe.augment import (
    AugMix,
    AutoAugment,
    ColorJitter,
    Cutout,
    GaussianBlur,
    Posterize,
    RandAugment,
    RandomApply,
    RandomChoice,
    RandomErasing,
    RandomGrayscale,
    RandomOrder,
    Solarize,
    ThreeAugment,
    TrivialAugmentWide,
)
from respipe.augment.operations import resolve
from respipe.planning.augmentation import Augmentation, Canvas, Op, Policy, plan_augmentation

EVERY = (
    RandAugment(),
    TrivialAugmentWide(),
    AutoAugment(),
    AugMix(),
    ThreeAugment(),
    ColorJitter(0.4, 0.4, 0.4, 0.1),
    RandomErasing(0.25),
    Cutout(16, holes=2),
    RandomGrayscale(0.2),
    GaussianBlur((0.1, 2.0)),
    RandomApply(Solarize(64.0), probability=0.3),
    RandomOrder((Posterize(4), Solarize(), RandAugment(1, 5))),
    RandomChoice((AugMix(), RandomGrayscale(1.0)), weights=(1.0, 3.0)),
)

# torchvision's names, and what its magnitude is to our parameter: an offset and a factor.
NAMES = {
    "Identity": (Op.IDENTITY, 0, 0),
    "ShearX": (Op.SHEAR_X, 0, 1),
    "ShearY": (Op.SHEAR_Y, 0, 1),
    "TranslateX": (Op.TRANSLATE_X, 0, 1 / 224),
    "TranslateY": (Op.TRANSLATE_Y, 0, 1 / 224),
    "Rotate": (Op.ROTATE, 0, 1),
    "Brightness": (Op.BRIGHTNESS, 1, 1),
    "Color": (Op.SATURATION, 1, 1),
    "Contrast": (Op.CONTRAST, 1, 1),
    "Sharpness": (Op.SHARPNESS, 1, 1),
    "Posterize": (Op.POSTERIZE, 0, 1),
    "Solarize": (Op.SOLARIZE, 0, 255),
    "AutoContrast": (Op.AUTOCONTRAST, 0, 0),
    "Equalize": (Op.EQUALIZE, 0, 0),
    "Invert": (Op.INVERT, 0, 0),
}


def plan(
    *policies: Policy, count: int = 8, epoch: int = 0, seed: int = 3, size: int = 224, copy: int = 0
) -> Augmentation:
    return plan_augmentation(
        policies,
        Canvas(sizes=np.full(count, size), base_size=224),
        seed=seed,
        epoch=epoch,
        indices=np.arange(count),
        copies=np.full(count, copy),
    )


def differ(one: Augmentation, other: Augmentation) -> bool:
    return not (np.array_equal(one.operations, other.operations) and np.array_equal(one.values, other.values))


def test_an_image_is_augmented_alike_whatever_else_is_in_its_batch() -> None:
    whole = plan(*EVERY, count=50)
    rows = np.array([31, 7, 7, 49])
    part = plan_augmentation(
        EVERY,
        Canvas(sizes=np.full(4, 224), base_size=224),
        seed=3,
        epoch=0,
        indices=rows,
        copies=np.zeros(4, np.int64),
    )
    assert not differ(part, whole.take(rows))


@pytest.mark.parametrize("policy", EVERY, ids=lambda policy: type(policy).__name__)
def test_seed_epoch_sample_and_copy_decide(policy: Policy) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - which must not matter
    reference = plan(policy, count=64)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert not differ(plan(policy, count=64), reference)
    assert differ(plan(policy, count=64, seed=4), reference)
    assert differ(plan(policy, count=64, epoch=1), reference)
    assert differ(plan(policy, count=64, copy=1), reference)


@pytest.mark.parametrize("policy", EVERY, ids=lambda policy: type(policy).__name__)
def test_a_policys_repr_is_code_that_makes_it(policy: Policy) -> None:
    import respipe.augment

    assert eval(repr(policy), vars(respipe.augment)) == policy


def torchvisions(transform: Any, count: int) -> Counter[tuple[int, float]]:
    """The operations and parameters of ``count`` draws, as they are carried out."""
    seen = Counter[tuple[int, float]]()

    def record(image: torch.Tensor, name: str, magnitude: float, *_: Any, **__: Any) -> torch.Tensor:
        op, offset, factor = NAMES[name]
        seen[op, round(offset + factor * magnitude + 1e-7, 4)] += 1
        return image

    transform._apply_image_or_video_transform = record
    image = torch.zeros(0, 224, 224, dtype=torch.uint8)  # no channels: mixing costs nothing
    torch.manual_seed(5)
    for _ in range(count):
        transform(image)
    return seen


def ours(policy: Policy, count: int) -> Counter[tuple[int, float]]:
    drawn = plan(policy, count=count)
    pairs = zip(drawn.operations.ravel().tolist(), (drawn.values[..., 0].ravel() + 1e-7).round(4).tolist(), strict=True)
    return Counter((op, abs(value) if value == 0 else value) for op, value in pairs if op < Op.MIX_BEGIN)


def two_sample_chi_square(one: Counter[Any], other: Counter[Any]) -> tuple[float, int]:
    """The statistic of two samples of possibly unequal size, and its degrees of freedom, rare outcomes pooled."""
    common = [key for key in one | other if one[key] + other[key] >= 10]
    counts = np.array([[sample[key] for key in common] for sample in (one, other)], float)
    rest = np.array([[sample.total()] for sample in (one, other)]) - counts.sum(axis=1, keepdims=True)
    counts = np.concatenate([counts, rest], axis=1) if rest.sum() else counts
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    return float(((counts - expected) ** 2 / expected).sum()), counts.shape[1] - 1


@pytest.mark.parametrize(
    ("policy", "transform", "ops_that_do_nothing"),
    [
        (RandAugment(2, 9), v2.RandAugment(2, 9), 0),
        (RandAugment(1, 3, num_magnitude_bins=10), v2.RandAugment(1, 3, 10), 0),
        (TrivialAugmentWide(num_magnitude_bins=9), v2.TrivialAugmentWide(9), 0),
        (AutoAugment("imagenet"), v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET), 1),
        (AutoAugment("cifar10"), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), 1),
        (AutoAugment("svhn"), v2.AutoAugment(v2.AutoAugmentPolicy.SVHN), 1),
        (AugMix(), v2.AugMix(), 1),
        (AugMix(severity=7, chain_depth=2, all_ops=False), v2.AugMix(severity=7, chain_depth=2, all_ops=False), 1),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "draw") else "",
)
def test_operations_and_magnitudes_are_as_frequent_as_torchvisions(
    policy: Policy, transform: Any, ops_that_do_nothing: int
) -> None:
    count = 500 if isinstance(policy, AugMix) else 3000
    found, wanted = ours(policy, 4 * count), torchvisions(transform, count)
    if ops_that_do_nothing:  # an operation left out is not carried out at all there
        found[Op.IDENTITY, 0.0] = 0
        found = Counter({key: number for key, number in found.items() if key[0] != Op.IDENTITY})
    assert not {*wanted} - {*found}
    statistic, freedom = two_sample_chi_square(found, wanted)
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    per_image = found.total() / (4 * count)
    assert per_image == pytest.approx(wanted.total() / count, rel=0.04)


def test_augmixs_weights_are_beta_and_dirichlet_distributed() -> None:
    for alpha in (0.3, 1.0, 4.0):
        drawn = plan(AugMix(alpha=alpha, mixture_width=4), count=20_000)
        kept = drawn.values[:, 0, 0]
        weights = drawn.values[:, :, 0][drawn.operations == Op.MIX_ADD].reshape(-1, 4)
        assert np.allclose(kept + weights.sum(axis=1), 1)
        assert kept.mean() == pytest.approx(0.5, abs=0.01)
        assert kept.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.04)
        shares = weights / np.maximum(1 - kept[:, None], 1e-300)
        assert shares.mean(axis=0) == pytest.approx([0.25] * 4, abs=0.015)
        assert shares.var(axis=0) == pytest.approx([0.1875 / (4 * alpha + 1)] * 4, rel=0.06)


def test_erased_rectangles_are_distributed_as_torchvisions() -> None:
    count, size = 4000, 64
    transform = v2.RandomErasing(p=1.0)
    torch.manual_seed(2)
    image = [torch.zeros(3, size, size)]
    theirs = np.array([[params[k] for k in "ijhw"] for params in (transform.make_params(image) for _ in range(count))])
    rectangles = resolve(plan(RandomErasing(1.0), count=count, size=size), size, (0, 0, 0)).values[:, 0, :4]
    mine = np.concatenate([rectangles[:, :2], rectangles[:, 2:] - rectangles[:, :2]], axis=1)
    for column in range(4):
        edges = np.unique(np.quantile(theirs[:, column], np.linspace(0, 1, 13)))
        edges[-1] += 1
        samples = [Counter(np.digitize(one[:, column], edges).tolist()) for one in (mine, theirs)]
        statistic, freedom = two_sample_chi_square(*samples)
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    erased = plan(RandomErasing(0.25), count=count).operations == Op.ERASE
    assert erased.mean() == pytest.approx(0.25, abs=0.03)


def test_jitters_factors_are_uniform_and_their_order_random() -> None:
    drawn = plan(ColorJitter(0.4, (0.5, 0.7), 0.2, 0.1), count=6000)
    ranges = {Op.BRIGHTNESS: (0.6, 1.4), Op.CONTRAST: (0.5, 0.7), Op.SATURATION: (0.8, 1.2), Op.HUE: (-0.1, 0.1)}
    for op, (low, high) in ranges.items():
        values = drawn.values[..., 0][drawn.operations == op]
        assert len(values) == 6000
        counts = np.histogram(values, bins=10, range=(low, high))[0]
        assert counts.sum() == 6000 and ((counts - 600) ** 2 / 600).sum() < 30
    orders = Counter(tuple(code for code in row if code) for row in drawn.operations.tolist())
    assert len(orders) == 24 and sum((number - 250) ** 2 / 250 for number in orders.values()) < 60


def test_policies_of_policies_choose_and_order() -> None:
    choice = plan(RandomChoice((Posterize(3), Solarize(100.0)), weights=(1, 3)), count=4000).operations
    assert {*choice.ravel().tolist()} == {Op.POSTERIZE, Op.SOLARIZE}
    assert (choice == Op.SOLARIZE).mean() == pytest.approx(0.75, abs=0.03)
    applied = plan(RandomApply((Posterize(3), Solarize(100.0)), probability=0.2), count=4000).operations
    assert {*map(tuple, applied.tolist())} == {(0, 0), (Op.POSTERIZE, Op.SOLARIZE)}
    assert (applied[:, 0] > 0).mean() == pytest.approx(0.2, abs=0.03)
    ordered = plan(RandomOrder((Posterize(3), Solarize(100.0))), count=4000).operations
    assert (ordered[:, 0] == Op.POSTERIZE).mean() == pytest.approx(0.5, abs=0.03)
    three = plan(ThreeAugment(), count=6000).operations
    kinds = Counter(
        next(code for code in row if code in (Op.GRAYSCALE, Op.SOLARIZE, Op.BLUR)) for row in three.tolist()
    )
    assert all(number == pytest.approx(2000, abs=200) for number in kinds.values()) and len(kinds) == 3


def test_lengths_follow_the_size_unless_told_otherwise() -> None:
    for policy, fixed in (
        (Cutout(56), Cutout(56, scale_with_size=False)),
        (GaussianBlur((2.0, 2.0)), GaussianBlur((2.0, 2.0), scale_with_size=False)),
    ):
        column = 2 if isinstance(policy, Cutout) else 0
        share = policy.draw(lambda n: np.zeros((1, n)), Canvas(sizes=np.array([112]), base_size=224))
        pixels = fixed.draw(lambda n: np.zeros((1, n)), Canvas(sizes=np.array([112]), base_size=224))
        assert pixels.values[0, 0, column] == 2 * share.values[0, 0, column]
    small = plan(TrivialAugmentWide(), size=112, count=500)
    large = plan(TrivialAugmentWide(scale_with_size=False), size=112, count=500)
    shifts = np.isin(small.operations, (Op.TRANSLATE_X, Op.TRANSLATE_Y))
    assert np.allclose(large.values[shifts, 0], 2 * small.values[shifts, 0])
    assert np.array_equal(large.values[~shifts], small.values[~shifts])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandAugment(2, 31), "`magnitude`"),
        (lambda: RandAugment(0), "`num_ops`"),
        (lambda: RandAugment(interpolation="cubic"), "`interpolation`"),  # type: ignore[arg-type]
        (lambda: TrivialAugmentWide(fill=(1, 2)), "`fill`"),  # type: ignore[arg-type]
        (lambda: AutoAugment("cifar100"), "`policy`"),  # type: ignore[arg-type]
        (lambda: AugMix(severity=11), "`severity`"),
        (lambda: AugMix(alpha=0.0), "`alpha`"),
        (lambda: ColorJitter(hue=0.6), "`hue`"),
        (lambda: ColorJitter(brightness=(1.2, 0.8)), "`brightness`"),
        (lambda: RandomErasing(25), "`probability`"),
        (lambda: RandomErasing(scale=(0.1, 1.5)), "`scale`"),
        (lambda: Cutout(0), "`size`"),
        (lambda: GaussianBlur((-1.0, 2.0)), "`sigma`"),
        (lambda: Solarize(300.0), "`threshold`"),
        (lambda: Posterize(9), "`bits`"),
        (lambda: RandomOrder(()), "`policies`"),
        (lambda: RandomChoice((Posterize(1),), weights=(1.0, 2.0)), "`weights`"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_torchvision_transform_is_no_policy() -> None:
    with pytest.raises(TypeError, match=r"respipe\.augment"):
        RandomApply(v2.RandAugment())  # type: ignore[arg-type]
