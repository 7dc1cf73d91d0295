"""What images are normalised by: presets, and checks of means and deviations that a user gives."""

from __future__ import annotations

PRESETS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # Mean and standard deviation of each channel over the training set, of values in 0..1.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

Normalize = str | tuple[tuple[float, ...], tuple[float, ...]] | None


def mean_and_std(normalize: Normalize) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of values in 0..1.

    Raises:
        TypeError: ``normalize`` is not a name, two sequences of numbers or None.
        ValueError: there is no such preset, or the numbers are not those of values in 0..1.
    """
    if normalize is None:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if isinstance(normalize, str):
        if normalize not in PRESETS:
            raise ValueError(
                f"`normalize` must be one of {sorted(PRESETS)}, (mean, std) or None; got {normalize!r}. Pass one of "
                "them."
            )
        return PRESETS[normalize]
    try:
        mean, std = (tuple(float(value) for value in values) for values in normalize)
    except (TypeError, ValueError):
        raise TypeError(
            f"`normalize` must be a preset's name, (mean, std) or None; got {normalize!r}. Pass 'imagenet', or two "
            "sequences of three numbers each."
        ) from None
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise ValueError(
            f"`normalize` must be (mean, std), three numbers each, std > 0; got {normalize!r}. Pass one number for "
            "each of red, green and blue."
        )
    if not (all(0 <= value <= 1 for value in mean) and max(std) <= 1):
        raise ValueError(
            f"`normalize` must be the mean and standard deviation of values in 0..1; got {normalize!r}. Divide those "
            "of values in 0..255 by 255."
        )
    return mean, std
