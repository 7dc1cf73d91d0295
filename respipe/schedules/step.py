"""What one training step looks like, and what a schedule of them must offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

Mode = Literal["full", "low"]


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

    Raises:
        ValueError: a field is out of range.
    """

    sizes: tuple[int, ...]
    batch_size: int
    duplicates: int = 1
    mode: Mode = "full"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"`sizes` must be one or more positive side lengths; got {self.sizes}.")
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1; got {self.batch_size}.")
        if self.duplicates < 1:
            raise ValueError(f"`duplicates` must be at least 1; got {self.duplicates}.")
        if self.mode not in get_args(Mode):
            raise ValueError(f"`mode` must be one of {get_args(Mode)}; got {self.mode!r}.")

    @property
    def num_images(self) -> int:
        """Images of each size in this step over all ranks: ``batch_size * duplicates``."""
        return self.batch_size * self.duplicates


@runtime_checkable
class Schedule(Protocol):
    """Decides the size of every step of a run.

    A schedule is a value: immutable, comparable, with a ``repr`` that names every field (loader states and
    checkpoints compare it). ``steps`` is a pure function. It touches no global random state and gives the same answer
    on every rank, worker and platform, for epochs asked for in any order.
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
