"""What one training step looks like, and what a schedule of them must offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

from respipe.checks import check_choice, check_int, check_sequence

Mode = Literal["full", "low"]

# What a schedule may need of a model; see :class:`Schedule`.
BatchNorm = Literal["shared", "per_size"]
Kernels = Literal["full", "pooled"]


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

    Raises:
        TypeError: ``sizes`` is no sequence, or a number is no integer.
        ValueError: a field is out of range.
    """

    sizes: tuple[int, ...]
    batch_size: int
    duplicates: int = 1
    mode: Mode = "full"
    decimation: int = 1

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

    @property
    def num_images(self) -> int:
        """Images of each size in this step over all ranks: ``batch_size * duplicates``."""
        return self.batch_size * self.duplicates

    @property
    def decoded(self) -> Step:
        """What is to be decoded for this step: itself, or larger images if they are yet to be decimated."""
        if self.decimation == 1:
            return self
        return replace(self, sizes=tuple(size * self.decimation for size in self.sizes), decimation=1)


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
