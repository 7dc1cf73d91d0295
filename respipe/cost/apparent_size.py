"""How large objects look in evaluation, compared with training, and the test size at which they look alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from respipe.checks import check_int

Area = tuple[float, float]

_CROP_RATIO = 7 / 8


@dataclass(frozen=True, kw_only=True)
class TestSizeSuggestion:
    """The test size at which objects look as large as they did in training.

    Args:
        size: side in pixels, a multiple of the model's stride.
        exact: the same before rounding.
        ratio: what :func:`apparent_size_ratio` gives for testing at the training size.
        reason: all that in words.
    """

    __test__ = False  # for pytest, which would take the name for that of a test

    size: int
    exact: float
    ratio: float
    reason: str

    @property
    def zoom(self) -> float:
        """The exact size over the training size."""
        return 1 / self.ratio


def mean_crop_side(area: Area = (0.08, 1.0)) -> float:
    """Mean side of a random resized crop as a share of the image's, by the mean of which objects are enlarged.

    F = 2/3 (b^3 - a^3) / (b^2 - a^2) for sides between a and b, the square roots of ``area``, whose squares are drawn
    uniformly (FixRes, arXiv 1906.06423, equation 5): 0.708 for the usual 0.08 to 1. Crops that do not fit into their
    image, and are drawn again, are neglected.

    Args:
        area: smallest and largest area of a crop as a share of the image's, within (0, 1].

    Raises:
        ValueError: ``area`` is not that.
    """
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise ValueError(
            f"`area` must be two areas, smallest first, within (0, 1]; got {area}. Pass RandomResizedCrop's `scale`."
        )
    low, high = (math.sqrt(bound) for bound in area)
    # The quotient with its common factor taken out, so that one area alone is no division by zero.
    return 2 / 3 * (low**2 + low * high + high**2) / (low + high)


def apparent_size_ratio(
    train_size: int, test_size: int | None = None, *, area: Area = (0.08, 1.0), crop_ratio: float = _CROP_RATIO
) -> float:
    """How large objects look on average in evaluation, over how large they look in training.

    Training takes a part of the image and resizes it to ``train_size``; evaluation resizes the whole image, its shorter
    side to floor(test_size / crop_ratio), and cuts out the centre. So objects look larger in training by 1 / F for the
    crop (see :func:`mean_crop_side`), which makes the ratio F x resized side / train_size (FixRes, arXiv 1906.06423,
    equation 5): 0.708 x 256 / 224 = 0.81 for training and testing at 224 pixels as usual.

    Args:
        train_size: side in pixels of the training images.
        test_size: side in pixels of the evaluation images; default: ``train_size``.
        area: of the random resized crops in training, smallest and largest, as a share of the image's; (1, 1) where
            whole images are trained on.
        crop_ratio: side of the evaluation crop over the resized shorter side; 1 where whole images are evaluated.

    Raises:
        ValueError: an argument is out of range.
    """
    train_size = check_int("train_size", train_size, least=1)
    test_size = check_int("test_size", train_size if test_size is None else test_size, least=1)
    if not 0 < crop_ratio <= 1:
        raise ValueError(f"`crop_ratio` must be above 0 and at most 1; got {crop_ratio}. Pass CenterCrop's `ratio`.")
    ratio = Fraction(crop_ratio).limit_denominator(10_000)
    resized_side = test_size * ratio.denominator // ratio.numerator
    return mean_crop_side(area) * resized_side / train_size


def suggest_test_size(
    train_size: int, *, area: Area = (0.08, 1.0), crop_ratio: float = _CROP_RATIO, stride: int = 32
) -> TestSizeSuggestion:
    """The test size at which objects look as large as in training, rounded to what the model's stride divides.

    Testing at 224 pixels a model trained at 224, objects look smaller than in training by 0.81; at 224 / 0.81 = 277,
    rounded to 288, they look alike, and accuracy is often best near there without any further training (FixRes, arXiv
    1906.06423). It is a place to look first: :func:`respipe.evaluate` tells.

    Args:
        train_size, area, crop_ratio: as for :func:`apparent_size_ratio`.
        stride: total stride of the model in pixels (:func:`respipe.model.adapt.total_stride`). Accuracy drops right
            after each of its multiples, where maps grow by a row that shows little.

    Raises:
        ValueError: an argument is out of range.
    """
    stride = check_int("stride", stride, least=1)
    ratio = apparent_size_ratio(train_size, area=area, crop_ratio=crop_ratio)
    exact = train_size / ratio
    size = max(1, round(exact / stride)) * stride
    low, high = (f"{100 * bound:g}%" for bound in area)
    areas = f"{low} to {high}" if low != high else high
    looks = "as large" if math.isclose(ratio, 1) else f"{ratio:.2f} times as large on average"
    reason = (
        f"Trained at {train_size} px on crops of {areas} of an image's area; in evaluation at {train_size} px objects "
        f"look {looks}. At {train_size} / {ratio:.3f} = {exact:.0f} px they look as large as in training; {size} px is "
        f"the nearest multiple of the model's stride of {stride} px."
    )
    return TestSizeSuggestion(size=size, exact=exact, ratio=ratio, reason=reason)
