"""What one training step looks like, and what a schedule of them must offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from respipe.checks import check_choice, check_int, check_probability, check_sequence

Mode = Literal["full", "low"]

# What a schedule may need of a model; see :class:`Schedule`.
BatchNorm = Literal["shared", "per_size"]
Kernels = Literal["full", "pooled"]


def short_repr(value: Any, *optional: str) -> str:
    """The ``repr`` of a dataclass without those optional fields that are at their default.

    They came later than the others, and saved states hold the text from before.
    """
    shown = (one for one in fields(value) if one.name not in optional or getattr(value, one.name) != one.default)
    return f"{type(value).__name__}({', '.join(f'{one.name}={getattr(value, one.name)!r}' for one in shown)})"


@dataclass(frozen=True, slots=True)
class View:
    """Crops of each sample that are drawn apart from its other crops, as are their flips and augmentation.

    Args:
        size: side in pixels; for :class:`MultiCrop` also a schedule that decides it step by step.
        count: number of such crops, all different.
        scale: smallest and largest area of a crop as a share of the image's, within (0, 1]: short for
            ``crop=respipe.sampling.RandomResizedCrop(scale)``.
        crop: one of :mod:`respipe.sampling`; None, also for ``scale``, for the loader's.
        augment: policies of :mod:`respipe.augment`, in the place of the loader's; () for none, None for the loader's.

    Raises:
        TypeError, ValueError: a field is out of range, or both ``scale`` and ``crop`` are given.
    """

    size: Any
    count: int = 1
    _: KW_ONLY
    scale: tuple[float, float] | None = None
    crop: Any = None
    augment: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.size, Schedule):
            object.__setattr__(self, "size", check_int("size", self.size, least=1))
        object.__setattr__(self, "count", check_int("count", self.count, least=1))
        if self.scale is not None:
            low, high = scale = tuple(check_probability("scale", bound) for bound in self.scale)
            if self.crop is not None or not 0 < low <= high:
                raise ValueError(
                    f"`scale` must be two areas within (0, 1], smallest first, and given without `crop`; got {scale} "
                    f"with crop={self.crop!r}. Pass shares of the image."
                )
            object.__setattr__(self, "scale", scale)
        if self.augment is not None:
            several = isinstance(self.augment, Sequence)
            object.__setattr__(self, "augment", tuple(self.augment) if several else (self.augment,))

    def __repr__(self) -> str:
        return short_repr(self, "count", "scale", "crop", "augment")


@dataclass(frozen=True, slots=True)
class Step:
    """The shape of one training step, the same on every rank.

    Args:
        sizes: side lengths in pixels of the square batches this step yields; more than one where several resolutions
            of the same crops are wanted (RS-Net).
        batch_size: number of distinct samples over all ranks.
        duplicates: number of independently augmented copies of each sample; the step trains on
            ``batch_size * duplicates`` images.
        mode: ``"low"`` where the model is to pool its kernels for this step, else ``"full"``.
        decimation: a power of two. Where above 1, crops are resized to sides ``decimation`` times as large, then
            blurred, and every ``decimation``-th pixel is kept.
        views: for steps whose images are crops of their own: what each is cropped and augmented like, in the order of
            ``sizes``. Empty where all sizes show the same crops.

    Raises:
        TypeError: ``sizes`` is no sequence, or a number is no integer.
        ValueError: a field is out of range.
    """

    sizes: tuple[int, ...]
    batch_size: int
    duplicates: int = 1
    mode: Mode = "full"
    decimation: int = 1
    views: tuple[View, ...] = ()

    def __post_init__(self) -> None:
        sizes = tuple(check_int("sizes", size, least=1) for size in check_sequence("sizes", self.sizes))
        if not sizes:
            raise ValueError("`sizes` must name at least one side length; got none.")
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "batch_size", check_int("batch_size", self.batch_size, least=1))
        object.__setattr__(self, "duplicates", check_int("duplicates", self.duplicates, least=1))
        check_choice("mode", self.mode, get_args(Mode))
        decimation = check_int("decimation", self.decimation, least=1)
        if decimation & (decimation - 1):
            raise ValueError(f"`decimation` must be a power of two; got {decimation}. Pass 1, 2 or 4.")
        object.__setattr__(self, "decimation", decimation)
        object.__setattr__(self, "views", views := tuple(self.views))
        if views and sizes != (expected := tuple(view.size for view in views for _ in range(view.count))):
            raise ValueError(f"`sizes` must be those of `views`, {expected}; got {sizes}. Leave `views` out, or alike.")

    def __repr__(self) -> str:
        return short_repr(self, "views")

    @property
    def num_images(self) -> int:
        """Images of each size in this step over all ranks: ``batch_size * duplicates``."""
        return self.batch_size * self.duplicates

    @property
    def decoded(self) -> Step:
        """What is to be decoded for this step: itself, or larger images if they are yet to be decimated."""
        if self.decimation == 1:
            return self
        return replace(self, sizes=tuple(size * self.decimation for size in self.sizes), decimation=1, views=())


def check_schedule(schedule: object) -> None:
    """Raise ``TypeError`` unless ``schedule`` is one: neither a size nor a schedule's class is."""
    if not isinstance(schedule, Schedule) or isinstance(schedule, type):
        raise TypeError(
            f"`schedule` must be a schedule; got {schedule!r}. Pass for example respipe.schedules.Constant(224)."
        )


@runtime_checkable
class Schedule(Protocol):
    """Decides the size of every step of a run.

    A schedule is a value: immutable, comparable, with a ``repr`` that names every field (loader states and
    checkpoints compare it). ``steps`` is a pure function. It touches no global random state and gives the same answer
    on every rank, worker and platform, for epochs asked for in any order.

    A schedule may also say what it needs of a model, with attributes that :func:`respipe.adapt` reads where they are:

    * ``batchnorm``: "per_size" where every size is to have BatchNorms of its own; without it, "shared".
    * ``kernels``: "pooled" where steps of ``mode="low"`` run with pooled kernels, at the side ``low_size`` in pixels;
      without it, "full".
    """

    @property
    def base_size(self) -> int:
        """Side in pixels that ``batch_size`` and the cost of a run are quoted at."""
        ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every side in pixels that a step may have, largest first."""
        ...

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        """The steps of one epoch, in order.

        Args:
            epoch: number of the epoch, from 0.
            num_samples: samples in the dataset; an epoch uses each at most once.
            batch_size: global batch size at ``base_size``.

        Raises:
            ValueError: ``epoch`` is negative, or the dataset holds less than one batch.
        """
        ...
