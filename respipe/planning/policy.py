"""All that decides what a run's batches hold, besides its schedule and its data, in one value."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from respipe.checks import check_bool, check_choice, check_int, check_probability
from respipe.planning.augmentation import Policy as AugmentPolicy
from respipe.planning.augmentation import check_policies
from respipe.planning.crops import CenterCrop, Crop
from respipe.planning.mixing import Mixing
from respipe.planning.random_resized_crop import RandomResizedCrop
from respipe.rng import check_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """An order that reads a file in large pieces, for slow disks and data larger than memory.

    Every epoch takes the blocks of the stored order in a new order, a window of several at a time, and shuffles the
    samples within the window. A window should fit into memory, and hold many classes: where data are stored class by
    class, it has no more of them than blocks.

    Args:
        size: samples of a block. A page of a ``.beton`` holds some 100 images of ImageNet.
        window: blocks whose samples are shuffled together.

    Raises:
        TypeError, ValueError: a number is not an integer of at least 1.
    """

    size: int = 256
    window: int = 4

    def __post_init__(self) -> None:
        check_int("size", self.size, least=1)
        check_int("window", self.window, least=1)


Shuffle = Literal["full", "blocks", "none"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingPolicy:
    """Which samples an epoch uses, in which order, and what is cut out of each.

    It is passed whole from the loader to whoever draws: ``planning/order.py`` reads which samples come and in which
    order, ``planning/epoch.py`` and ``planning/draws.py`` the rest. A field that is added gives no text in
    :meth:`describe` at its default, so that saved states stay valid.

    Args:
        training: random order, crops and flips, whole batches only; else every sample once, in order, unflipped.
        seed: 64-bit seed of all that is drawn.
        crop: chooser of the boxes. Default: ``RandomResizedCrop()`` in training, else ``CenterCrop()``.
        flip_probability: share of the training images that are mirrored.
        repeats: uses of each sample in a row in training, each cropped and flipped anew.
        indices: (M,) distinct sample numbers that are used, in the order of an evaluation; None for all of them.
        weights: (N,) numbers of at least 0, one for each sample of the data: training draws samples with replacement,
            each with its share of the weights of all that are used. None for every sample once.
        shuffle: "full" for a new permutation in every epoch of training; ``Blocks(...)``, or "blocks" for
            ``Blocks()``; "none" for the stored order.
        augment: policies of :mod:`respipe.augment` for the pixels of each training image, in this order.
        mix: mixup and CutMix of each training batch; None for none.
        strata: numbers of samples of the datasets that the data consists of, where each of these is to come as often as
            the share of its ``weights`` says, rounded up or down, and so is each sample; () for draws at random.
        pad_shares: whether all ranks get equally many samples in evaluation, the last ones repeated where some lack.

    Raises:
        TypeError, ValueError: a field is out of range, or not for evaluation.
    """

    training: bool = True
    seed: int = 0
    crop: Crop = cast("Crop", None)  # noqa: RUF009 - __post_init__ fills it in
    flip_probability: float = 0.5
    repeats: int = 1
    indices: NDArray[np.int64] | None = None
    weights: NDArray[np.float64] | None = None
    shuffle: Shuffle | Blocks = "full"
    augment: tuple[AugmentPolicy, ...] = ()
    mix: Mixing | None = None
    strata: tuple[int, ...] = ()
    pad_shares: bool = False

    def __post_init__(self) -> None:
        check_bool("training", self.training)
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.crop is None:  # pyright: ignore[reportUnnecessaryComparison]
            object.__setattr__(self, "crop", RandomResizedCrop() if self.training else CenterCrop())
        if not isinstance(self.crop, Crop) or isinstance(self.crop, type):
            raise TypeError(
                f"`crop` must be a crop such as respipe.sampling.RandomResizedCrop(); got {self.crop!r}. Pass one of "
                "respipe.sampling."
            )
        check_probability("flip_probability", self.flip_probability)  # kept as given: saved states have it as text
        object.__setattr__(self, "repeats", check_int("repeats", self.repeats, least=1))
        if self.indices is not None:
            object.__setattr__(self, "indices", _checked_indices(self.indices))
        if self.weights is not None:
            object.__setattr__(self, "weights", _checked_weights(self.weights))
        if not isinstance(self.shuffle, Blocks):
            check_choice("shuffle", self.shuffle, get_args(Shuffle))
            object.__setattr__(self, "shuffle", Blocks() if self.shuffle == "blocks" else self.shuffle)
        if self.weights is not None and self.shuffle != "full":
            raise ValueError(
                f"`shuffle` must be 'full' where samples are drawn by `weights` or from a mixture, in no order; got "
                f"{self.shuffle!r}. Leave one of them out."
            )
        object.__setattr__(self, "augment", check_policies("augment", self.augment))
        check_bool("pad_shares", self.pad_shares)
        if self.pad_shares and self.training:
            raise ValueError("`pad_shares` must be False in training, whose shares are equal anyway. Leave it out.")
        if not self.training and (self.augment or self.mix is not None):
            raise ValueError("`augment` and `mix` must be left out in evaluation, which shows images as they are.")
        if not self.training and (self.repeats > 1 or self.weights is not None):
            name, rule, value = ("repeats", 1, self.repeats) if self.repeats > 1 else ("weights", None, "weights")
            raise ValueError(
                f"`{name}` must be {rule} in evaluation, which uses each sample once; got {value}. Leave it out."
            )

    def check_fits(self, num_samples: int) -> None:
        """Compare the sample numbers and weights with a dataset.

        Raises:
            ValueError: it has no such samples, or not as many as there are weights.
        """
        if self.indices is not None and len(self.indices) and int(self.indices.max()) >= num_samples:
            raise ValueError(
                f"`indices` must be below {num_samples}, the number of samples; got {int(self.indices.max())}. Count "
                "from 0, and pass indices of this dataset."
            )
        if self.weights is None:
            return
        if len(self.weights) != num_samples:
            raise ValueError(
                f"`weights` must have one number for each of the {num_samples} samples; got {len(self.weights)}. Pass "
                "weights of the whole dataset, also with `indices`."
            )
        if not (self.weights if self.indices is None else self.weights[self.indices]).any():
            raise ValueError("`weights` must be above 0 for at least one sample; got zeros only. Raise some of them.")

    def num_samples(self, available: int) -> int:
        """Samples that an epoch has to fill its batches with, of those in the dataset."""
        return available if self.indices is None else len(self.indices)

    def describe(self) -> Iterator[str]:
        """The fields besides the seed in words, for fingerprints; those at a default that came later are left out."""
        yield f"training={self.training}"
        yield repr(self.crop)
        yield f"flip_probability={self.flip_probability}"
        if self.repeats > 1:
            yield f"repeats={self.repeats}"
        if self.indices is not None:
            yield f"indices={_digest(self.indices, '<i8')}"
        if self.weights is not None:
            yield f"weights={_digest(self.weights, '<f8')}"
        if self.strata:
            yield f"strata={self.strata}"
        if self.shuffle != "full":
            yield f"shuffle={self.shuffle}"
        if self.augment:
            yield f"augment={self.augment}"
        if self.mix is not None:
            yield f"mix={self.mix}"


def _checked_indices(indices: ArrayLike) -> NDArray[np.int64]:
    array: NDArray[Any] = np.asarray(indices)
    if array.size == 0:
        raise ValueError("`indices` must name at least one sample; got none. Pass None for all.")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"`indices` must be a row of whole numbers; got {array.dtype} of shape {array.shape}. Pass "
            "np.flatnonzero(mask) for a mask."
        )
    if int(array.min()) < 0:
        raise ValueError(f"`indices` must be at least 0; got {int(array.min())}. Count samples from 0.")
    if len(np.unique(array)) < len(array):
        values, counts = np.unique(array, return_counts=True)
        raise ValueError(
            f"`indices` must be distinct; got {int(values[counts.argmax()])} {int(counts.max())} times. Pass `weights` "
            "to use some samples more often."
        )
    return _frozen(array, np.int64)


def _checked_weights(weights: ArrayLike) -> NDArray[np.float64]:
    array: NDArray[Any] = np.asarray(weights)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise TypeError(
            f"`weights` must be a row of numbers, one for each sample; got {array.dtype} of shape {array.shape}. Pass "
            "for example respipe.sampling.class_balanced(labels)."
        )
    with np.errstate(over="ignore"):
        if not (np.isfinite(array.sum(dtype=np.float64)) and (array >= 0).all()):
            raise ValueError(
                "`weights` must be finite and at least 0, with a finite sum; some are not. Pass 0 for samples to leave "
                "out."
            )
    return _frozen(array, np.float64)


def _frozen(array: NDArray[Any], dtype: type[Any]) -> NDArray[Any]:
    copy = array.astype(dtype)
    copy.flags.writeable = False
    return copy


def _digest(array: NDArray[Any], dtype: str) -> str:
    return f"{len(array)} with sha256 {hashlib.sha256(array.astype(dtype).tobytes()).hexdigest()[:16]}"
