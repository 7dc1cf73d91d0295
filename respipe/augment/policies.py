"""Policies: which operations an image gets, and how strongly. They draw plans; :mod:`.operations` carries them out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from respipe.checks import check_choice, check_int, check_number, check_probability
from respipe.planning.augmentation import (
    FILL_MEAN,
    FILL_NONE,
    NUM_VALUES,
    Augmentation,
    Canvas,
    Draws,
    Op,
    Policy,
    check_policies,
    joined,
)
from respipe.rng import beta

Interpolation = Literal["nearest", "bilinear"]
Fill = Literal["mean"] | tuple[int, int, int] | None
Range = float | tuple[float, float]

# Policies that choose from a list of operations


@dataclass(frozen=True)
class RandAugment:
    """RandAugment (arXiv 1909.13719): a fixed number of operations, each of them any of fourteen at one magnitude.

    Args:
        num_ops: operations in a row.
        magnitude: number of the magnitude, from 0, below ``num_magnitude_bins``.
        num_magnitude_bins: magnitudes there are.
        interpolation: of geometric operations, "nearest" or "bilinear".
        fill: colour of what geometric operations bring in from outside: None for black, "mean" for the colour that
            normalises to 0, or (R, G, B) in 0..255.
    """

    num_ops: int = 2
    magnitude: int = 9
    _: KW_ONLY
    num_magnitude_bins: int = 31
    interpolation: Interpolation = "nearest"
    fill: Fill = None

    def __post_init__(self) -> None:
        check_int("num_ops", self.num_ops, least=1)
        check_int("magnitude", self.magnitude, least=0)
        if check_int("num_magnitude_bins", self.num_magnitude_bins, least=2) <= self.magnitude:
            raise ValueError(
                f"`magnitude` must be below `num_magnitude_bins` ({self.num_magnitude_bins}); got {self.magnitude}. "
                "Magnitudes count from 0."
            )
        _check_geometry(self.interpolation, self.fill)

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        uniforms = draws(2 * self.num_ops)
        space = _space(self.num_magnitude_bins, last=Op.IDENTITY)
        return space.columns(uniforms[:, 0::2], self.magnitude, uniforms[:, 1::2], self.interpolation, self.fill)


@dataclass(frozen=True, kw_only=True)
class TrivialAugmentWide:
    """TrivialAugment with the wide space (arXiv 2103.10158): one operation, any of fourteen at any magnitude.

    Args:
        num_magnitude_bins: magnitudes there are.
        interpolation, fill: treatment of geometric operations, as for :class:`RandAugment`.
        scale_with_size: whether shifts of up to 32 px are those at the schedule's base size; else at every size.
    """

    num_magnitude_bins: int = 31
    interpolation: Interpolation = "nearest"
    fill: Fill = None
    scale_with_size: bool = True

    def __post_init__(self) -> None:
        check_int("num_magnitude_bins", self.num_magnitude_bins, least=2)
        _check_geometry(self.interpolation, self.fill)

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        uniforms = draws(3)
        space = _space(
            self.num_magnitude_bins, last=Op.IDENTITY, shear=0.99, shift=32, angle=135, factor=0.99, bits=(8, 2)
        )
        magnitude = (uniforms[:, 1:2] * self.num_magnitude_bins).astype(np.int64)
        columns = space.columns(uniforms[:, :1], magnitude, uniforms[:, 2:], self.interpolation, self.fill)
        shifted = np.isin(columns.operations[:, 0], (Op.TRANSLATE_X, Op.TRANSLATE_Y))
        pixels = columns.values[:, 0, 0]
        columns.values[:, 0, 0] = np.where(shifted, canvas.shares(pixels, scale_with_size=self.scale_with_size), pixels)
        return columns


# Two operations in a row each: a letter, ten times its probability (a is 10), and the number of one of ten magnitudes.
_LETTERS = {
    "X": Op.SHEAR_X, "Y": Op.SHEAR_Y, "x": Op.TRANSLATE_X, "y": Op.TRANSLATE_Y, "R": Op.ROTATE, "B": Op.BRIGHTNESS,
    "C": Op.SATURATION, "T": Op.CONTRAST, "H": Op.SHARPNESS, "P": Op.POSTERIZE, "S": Op.SOLARIZE,
    "A": Op.AUTOCONTRAST, "E": Op.EQUALIZE, "I": Op.INVERT,
}  # fmt: skip
_PAIRS = {
    "imagenet": "P48R69 S65A60 E80E60 P67P66 E40S24 E40R88 S63E60 P85Ea0 R23S68 E60P46 R88C40 R49E60 E00E80 "
    "I60Ea0 C64Ta8 R88Ca2 C88S87 H47I60 X65Ea0 C40E60 E40S24 S65A60 I60Ea0 C64Ta8 E80E60",
    "cifar10": "I10T26 R72x39 H81H93 Y58y79 A50E90 Y27P37 C43B67 H39B79 E60E50 T67H65 C77x58 E30A40 y43H26 "
    "B96C28 S52I00 E20A60 E20E60 C99E60 A80S28 B13C70 S45A90 y99y79 A90S83 E80I10 y79A90",
    "svhn": "X94I20 Y98I70 E60S66 I90E60 E60R93 X94A80 Y98I40 Y95S26 I90A80 E60R93 X94S33 Y88I70 E90y66 "
    "I90E60 T33R84 I80y02 Y76S48 I60R84 Y37x93 X16I60 S72y67 Y84I80 X79y83 Y85A70 X72I10",
}


@dataclass(frozen=True)
class AutoAugment:
    """AutoAugment (arXiv 1805.09501): one of 25 pairs of operations, each with a probability and a magnitude.

    Args:
        policy: name of the dataset the pairs were found on: "imagenet", "cifar10" or "svhn".
        interpolation, fill: treatment of geometric operations, as for :class:`RandAugment`.
    """

    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"
    _: KW_ONLY
    interpolation: Interpolation = "nearest"
    fill: Fill = None

    def __post_init__(self) -> None:
        check_choice("policy", self.policy, tuple(_PAIRS))
        _check_geometry(self.interpolation, self.fill)

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        uniforms, space = draws(5), _space(10, last=Op.INVERT)
        places = {letter: list(space.operations).index(op) for letter, op in _LETTERS.items()}
        table = np.array(
            [
                [(places[pair[i]], int(pair[i + 1], 16), int(pair[i + 2])) for i in (0, 3)]
                for pair in _PAIRS[self.policy].split()
            ]
        )
        place, tenths, magnitude = np.moveaxis(table[(uniforms[:, 0] * len(table)).astype(np.int64)], 2, 0)
        chosen = (place + 0.5) / len(space.operations)
        columns = space.columns(chosen, magnitude, uniforms[:, 3:], self.interpolation, self.fill)
        return _kept(columns, 10 * uniforms[:, 1:3] < tenths)


@dataclass(frozen=True, kw_only=True)
class AugMix:
    """AugMix (arXiv 1912.02781): the image mixed with several chains of operations on it.

    Args:
        severity: number of magnitudes in use, the first of ten.
        mixture_width: number of chains.
        chain_depth: operations of a chain, or -1 for one to three of them.
        alpha: parameter of the beta and Dirichlet distributions of the weights, from 0.01 to 100.
        all_ops: whether to use brightness, saturation, contrast and sharpness, which overlap ImageNet-C's corruptions.
        interpolation, fill: treatment of geometric operations, as for :class:`RandAugment`.
    """

    severity: int = 3
    mixture_width: int = 3
    chain_depth: int = -1
    alpha: float = 1.0
    all_ops: bool = True
    interpolation: Interpolation = "bilinear"
    fill: Fill = None

    def __post_init__(self) -> None:
        if check_int("severity", self.severity, least=1) > 10:
            raise ValueError(f"`severity` must be from 1 to 10; got {self.severity}. Pass for example 3.")
        check_int("mixture_width", self.mixture_width, least=1)
        if self.chain_depth != -1:
            check_int("chain_depth", self.chain_depth, least=1)
        if check_number("alpha", self.alpha, least=0.01) > 100:
            raise ValueError(f"`alpha` must be at most 100; got {self.alpha}. Pass for example 1.0.")
        _check_geometry(self.interpolation, self.fill)

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        space = _space(10, last=None, colours=self.all_ops, shift=1 / 3, bits=(4, 0))
        depth, numbers = (3 if self.chain_depth < 0 else self.chain_depth), np.arange(1, self.mixture_width + 1)
        weights = beta(draws(1)[:, 0], self.alpha, self.alpha)
        parts, left = [_columns(Op.MIX_BEGIN, weights)], 1 - weights
        for others in self.mixture_width - numbers:
            uniforms = draws(2 + 3 * depth)
            # The weights of a Dirichlet distribution, one after another: a share of what is left each.
            weights = left * beta(uniforms[:, 0], self.alpha, self.alpha * others) if others else left
            left = left - weights
            operation, magnitude, sign = np.split(uniforms[:, 2:], 3, axis=1)
            columns = space.columns(
                operation, (magnitude * self.severity).astype(np.int64), sign, self.interpolation, self.fill
            )
            if self.chain_depth < 0:
                columns = _kept(columns, np.arange(depth) <= np.floor(depth * uniforms[:, 1:2]))
            parts += [columns, _columns(Op.MIX_ADD, weights)]
        return joined([*parts, _columns(Op.MIX_END, left)])


@dataclass(frozen=True)
class ThreeAugment:
    """3-Augment of DeiT III (arXiv 2204.07118): greyscale, solarisation or blur, one of them, then colour jitter.

    Args:
        color_jitter: reach of brightness, contrast and saturation; 0 leaves the jitter out.
        scale_with_size: see :class:`GaussianBlur`.
    """

    color_jitter: float = 0.3
    _: KW_ONLY
    scale_with_size: bool = True

    def __post_init__(self) -> None:
        check_number("color_jitter", self.color_jitter, least=0)

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        blur = GaussianBlur(scale_with_size=self.scale_with_size)
        choice = RandomChoice((RandomGrayscale(1.0), Solarize(128.0), blur))
        jitter = ColorJitter(self.color_jitter, self.color_jitter, self.color_jitter)
        return joined([policy.draw(draws, canvas) for policy in (choice, jitter)])


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue, in random order.

    Args:
        brightness, contrast, saturation: range of the factor, or its reach x, which means max(0, 1 - x) to 1 + x.
        hue: range of the shift in turns, within -0.5 to 0.5, or its reach.
    """

    brightness: Range = 0.0
    contrast: Range = 0.0
    saturation: Range = 0.0
    hue: Range = 0.0

    def __post_init__(self) -> None:
        for name, low in (("brightness", 0.0), ("contrast", 0.0), ("saturation", 0.0), ("hue", -0.5)):
            value: Any = getattr(self, name)
            centre = 0.0 if low else 1.0
            if not isinstance(value, Sequence):
                reach = check_number(name, value, least=0)
                value = (max(centre - reach, 0.0) if centre else -reach, centre + reach)
            bounds = _check_range(name, cast("object", value), least=low and -math.inf)
            if low and max(-bounds[0], bounds[1]) > 0.5:
                raise ValueError(f"`hue` must lie within -0.5 and 0.5 turns; got {bounds}. Pass at most 0.5.")
            object.__setattr__(self, name, bounds)

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        ranges = {Op.BRIGHTNESS: self.brightness, Op.CONTRAST: self.contrast, Op.SATURATION: self.saturation}
        uniforms = draws(8)
        parts = [
            _columns(op, _between(uniforms[:, number], cast("tuple[float, float]", one)))
            for number, (op, one) in enumerate((ranges | {Op.HUE: self.hue}).items())
            if one != 2 * (float(op != Op.HUE),)  # which would change nothing
        ]
        return _shuffled([*parts, _columns(Op.IDENTITY, uniforms[:, 0])], uniforms[:, 4 : 5 + len(parts)])


@dataclass(frozen=True)
class RandomErasing:
    """Random erasing (arXiv 1708.04896): a rectangle of random area, shape and place is filled.

    Args:
        probability: share of the images that are changed.
        scale: range of the rectangle's share of the image's area.
        ratio: range of its height over its width, drawn evenly on a logarithmic scale.
        fill: colour of the rectangle: "mean", which normalises to 0; (R, G, B) in 0..255; or None for black.
    """

    probability: float = 0.5
    _: KW_ONLY
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: Fill = "mean"

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        object.__setattr__(self, "scale", _check_range("scale", self.scale, least=0))
        object.__setattr__(self, "ratio", _check_range("ratio", self.ratio, least=0))
        if self.scale[1] > 1 or self.ratio[0] == 0:
            raise ValueError(
                f"`scale` must not exceed 1 and `ratio` must be above 0; got {self.scale} and {self.ratio}. "
                "Pass shares of the area, and heights over widths."
            )
        _check_geometry("nearest", self.fill)

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        """See :class:`Policy`. The first of ten rectangles that is smaller than the image; none where none is."""
        uniforms = draws(23)
        area = _between(uniforms[:, 3::2], self.scale)
        ratio = np.exp(_between(uniforms[:, 4::2], (float(np.log(self.ratio[0])), float(np.log(self.ratio[1])))))
        sides = np.sqrt(np.stack([area * ratio, area / ratio]))
        fits = np.all(np.rint(sides * canvas.sizes[:, None]) < canvas.sizes[:, None], axis=0)
        height, width = sides[:, np.arange(len(uniforms)), fits.argmax(axis=1)]
        columns = _columns(Op.ERASE, height, width, uniforms[:, 1], uniforms[:, 2], _fill_code(self.fill))
        return _kept(columns, (uniforms[:, :1] < self.probability) & np.any(fits, axis=1, keepdims=True))


@dataclass(frozen=True)
class Cutout:
    """Cutout (arXiv 1708.04552): square holes whose centres lie anywhere in the image, cut off at its edges.

    Args:
        size: side of a hole in pixels.
        holes: number of holes.
        fill: colour of the holes, as for :class:`RandomErasing`.
        scale_with_size: whether ``size`` is that at the schedule's base size; else at every size.
    """

    size: int
    _: KW_ONLY
    holes: int = 1
    fill: Fill = "mean"
    scale_with_size: bool = True

    def __post_init__(self) -> None:
        check_int("size", self.size, least=1)
        check_int("holes", self.holes, least=1)
        _check_geometry("nearest", self.fill)

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        side, fill = canvas.shares(float(self.size), scale_with_size=self.scale_with_size), _fill_code(self.fill)
        centres = (draws(2).T for _ in range(self.holes))
        return joined([_columns(Op.CUT, row, column, side, fill) for row, column in centres])


@dataclass(frozen=True)
class RandomGrayscale:
    """Replaces colours by their grey.

    Args:
        probability: share of the images that are changed.
    """

    probability: float = 0.1

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        uniforms = draws(1)
        return _kept(_columns(Op.GRAYSCALE, 0 * uniforms[:, 0]), uniforms < self.probability)


@dataclass(frozen=True)
class GaussianBlur:
    """Gaussian blur of random strength, with a kernel that reaches four standard deviations.

    Args:
        sigma: range of the standard deviation in pixels.
        scale_with_size: whether ``sigma`` is that at the schedule's base size; else at every size.
    """

    sigma: tuple[float, float] = (0.1, 2.0)
    _: KW_ONLY
    scale_with_size: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", _check_range("sigma", self.sigma, least=0))

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        sigma = _between(draws(1)[:, 0], self.sigma)
        return _columns(Op.BLUR, canvas.shares(sigma, scale_with_size=self.scale_with_size))


@dataclass(frozen=True)
class Solarize:
    """Inverts all values from a threshold on.

    Args:
        threshold: grey value, 0 to 255.
    """

    threshold: float = 128.0

    def __post_init__(self) -> None:
        if check_number("threshold", self.threshold, least=0) > 255:
            raise ValueError(f"`threshold` must be at most 255; got {self.threshold}. Pass a grey value.")

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        return _columns(Op.SOLARIZE, np.full(len(canvas.sizes), self.threshold))


@dataclass(frozen=True)
class Posterize:
    """Keeps the upper bits of all values.

    Args:
        bits: number of bits kept, 0 to 8.
    """

    bits: int

    def __post_init__(self) -> None:
        if check_int("bits", self.bits, least=0) > 8:
            raise ValueError(f"`bits` must be at most 8; got {self.bits}. Pass for example 4.")

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        return _columns(Op.POSTERIZE, np.full(len(canvas.sizes), float(self.bits)))


@dataclass(frozen=True)
class RandomApply:
    """Applies all of some policies, or none.

    Args:
        policies: a policy, or several in a row.
        probability: share of the images they are applied to.
    """

    policies: Policy | tuple[Policy, ...]
    _: KW_ONLY
    probability: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "policies", _check_some(self.policies))
        check_probability("probability", self.probability)

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        applied = draws(1) < self.probability
        policies = cast("tuple[Policy, ...]", self.policies)
        return _kept(joined([policy.draw(draws, canvas) for policy in policies]), applied)


def moves_pixels(policy: Policy) -> bool:
    """Whether a policy may shear, shift or turn an image, so that what lies beside it, such as a mask, is off."""
    parts = cast("tuple[Policy, ...]", getattr(policy, "policies", ()))
    return isinstance(policy, (RandAugment, TrivialAugmentWide, AutoAugment, AugMix)) or any(map(moves_pixels, parts))


@dataclass(frozen=True)
class RandomOrder:
    """Applies all of some policies, in random order.

    Args:
        policies: at least one policy.
    """

    policies: tuple[Policy, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "policies", _check_some(self.policies))

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        uniforms = draws(len(self.policies))
        return _shuffled([policy.draw(draws, canvas) for policy in self.policies], uniforms)


@dataclass(frozen=True)
class RandomChoice:
    """Applies one of some policies.

    Args:
        policies: at least one policy.
        weights: likelihood of each, in any unit; equal where left out.
    """

    policies: tuple[Policy, ...]
    _: KW_ONLY
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "policies", _check_some(self.policies))
        if self.weights is not None:
            weights = tuple(check_number("weights", one, least=0) for one in self.weights)
            if len(weights) != len(self.policies) or not sum(weights):
                raise ValueError(
                    f"`weights` must be {len(self.policies)} numbers, not all 0; got {self.weights!r}. Pass one for "
                    "each policy."
                )
            object.__setattr__(self, "weights", weights)

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        weights = np.array(self.weights or [1.0] * len(self.policies))
        bounds = np.cumsum(weights / weights.sum())[:-1]
        chosen = np.searchsorted(bounds, draws(1), side="right")
        return _picked([policy.draw(draws, canvas) for policy in self.policies], chosen)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Space:
    """K operations at M magnitudes: codes (K,), table (K, M), and whether magnitudes get a random sign (K,)."""

    operations: NDArray[np.int64]
    table: NDArray[np.float64]
    signed: NDArray[np.bool_]

    def columns(
        self,
        chosen: NDArray[np.float64],
        magnitude: NDArray[np.int64] | int,
        signs: NDArray[np.float64],
        interpolation: Interpolation,
        fill: Fill,
    ) -> Augmentation:
        """Operations from (N, L) uniforms for which and for the sign, and the magnitudes' numbers."""
        operation = (chosen * len(self.operations)).astype(np.int64)
        code, value = self.operations[operation], self.table[operation, magnitude]
        value *= np.where(self.signed[operation] & (signs < 0.5), -1, 1)
        affine = (code >= Op.SHEAR_X) & (code <= Op.ROTATE)
        values = np.zeros((*operation.shape, NUM_VALUES))
        values[..., 0] = value + ((code >= Op.BRIGHTNESS) & (code <= Op.SHARPNESS))  # factors are around 1
        values[..., 1] = affine * float(interpolation == "bilinear")
        values[..., 2] = affine * _fill_code(fill)
        return Augmentation(operations=code.astype(np.uint8), values=values)


def _space(
    bins: int,
    *,
    last: Op | None,
    colours: bool = True,
    shear: float = 0.3,
    shift: float = 150 / 331,
    angle: float = 30.0,
    factor: float = 0.9,
    bits: tuple[int, int] = (8, 4),
) -> _Space:
    """The operations that policies choose from; magnitudes go from nothing to the given extremes."""
    up = np.linspace(0, 1, bins)
    rows: dict[Op, NDArray[np.float64]] = {Op.SHEAR_X: shear * up, Op.SHEAR_Y: shear * up}
    rows |= {Op.TRANSLATE_X: shift * up, Op.TRANSLATE_Y: shift * up, Op.ROTATE: angle * up}
    if colours:
        rows |= dict.fromkeys((Op.BRIGHTNESS, Op.SATURATION, Op.CONTRAST, Op.SHARPNESS), factor * up)
    num_signed = len(rows)
    rows |= {Op.POSTERIZE: np.rint(bits[0] - (bits[0] - bits[1]) * up), Op.SOLARIZE: 255 * (1 - up)}
    rows |= dict.fromkeys((Op.AUTOCONTRAST, Op.EQUALIZE, *([] if last is None else [last])), 0 * up)
    return _Space(
        operations=np.array(list(rows)),
        table=np.stack(list(rows.values())),
        signed=np.arange(len(rows)) < num_signed,
    )


def _columns(operation: Op, first: NDArray[np.float64], *others: Any) -> Augmentation:
    """One operation for each image, from values (N,) or the same for all."""
    values = np.zeros((len(first), 1, NUM_VALUES))
    for number, value in enumerate((first, *others)):
        values[:, 0, number] = value
    return Augmentation(operations=np.full((len(first), 1), operation, np.uint8), values=values)


def _kept(columns: Augmentation, mask: NDArray[np.bool_]) -> Augmentation:
    """Nothing is done where the mask, (N, L) or (N, 1), is false."""
    return replace(columns, operations=np.where(mask, columns.operations, np.uint8(Op.IDENTITY)))


def _picked(parts: Sequence[Augmentation], numbers: NDArray[np.int64]) -> Augmentation:
    """For each image the parts with the given numbers (N, P), in that order."""
    (count, places), length = numbers.shape, max(part.operations.shape[1] for part in parts)
    operations = np.zeros((count, len(parts), length), np.uint8)
    values = np.zeros((count, len(parts), length, NUM_VALUES))
    for number, part in enumerate(parts):
        operations[:, number, : part.operations.shape[1]] = part.operations
        values[:, number, : part.operations.shape[1]] = part.values
    rows = np.arange(len(numbers))[:, None]
    return Augmentation(
        operations=operations[rows, numbers].reshape(count, places * length),
        values=values[rows, numbers].reshape(count, places * length, NUM_VALUES),
    )


def _shuffled(parts: Sequence[Augmentation], uniforms: NDArray[np.float64]) -> Augmentation:
    """The parts in an order of each image's own, from (N, P) uniforms."""
    return _picked(parts, np.argsort(uniforms, axis=1, kind="stable"))


def _between(uniforms: NDArray[np.float64], bounds: tuple[float, float]) -> NDArray[np.float64]:
    return bounds[0] + (bounds[1] - bounds[0]) * uniforms


def _fill_code(fill: Fill) -> float:
    if fill is None:
        return FILL_NONE
    return FILL_MEAN if fill == "mean" else float(fill[0] << 16 | fill[1] << 8 | fill[2])


def _check_geometry(interpolation: str, fill: object) -> None:
    check_choice("interpolation", interpolation, get_args(Interpolation))
    colour = cast("tuple[Any, ...]", fill if isinstance(fill, tuple) else ())
    if fill is not None and fill != "mean" and (len(colour) != 3 or not {*colour} <= {*range(256)}):
        raise ValueError(
            f"`fill` must be None, 'mean' or a tuple of three integers from 0 to 255; got {fill!r}. Pass 'mean'."
        )


def _check_range(name: str, value: object, *, least: float) -> tuple[float, float]:
    bounds = cast("Sequence[Any]", value)
    if isinstance(value, str) or not isinstance(value, Sequence) or len(bounds) != 2:
        raise TypeError(f"`{name}` must be a pair of numbers; got {value!r}. Pass (lowest, highest).")
    low, high = (check_number(name, one, least=least) for one in bounds)
    if high < low:
        raise ValueError(f"`{name}` must be (lowest, highest); got {value!r}. Swap them.")
    return low, high


def _check_some(policies: object) -> tuple[Policy, ...]:
    if not (checked := check_policies("policies", policies)):
        raise ValueError("`policies` must name at least one policy; got none.")
    return checked
