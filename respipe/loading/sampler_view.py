"""What trainers look for on a loader."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from respipe.loading.loader import Loader


class SamplerView:
    """What trainers expect of a sampler: a length, ``set_epoch``, and the samples that this rank has of each batch."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    @property
    def sampler(self) -> SamplerView:
        """Itself: some trainers look for ``batch_sampler.sampler``."""
        return self

    @property
    def batch_size(self) -> int:
        """Samples that this rank has of a batch at the schedule's base size."""
        return self._loader.batch_size // self._loader.world_size

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Samples that this rank has of each batch of the current epoch."""
        return tuple(size // self._loader.world_size for size in self._loader.batch_sizes)

    @property
    def average_batch_size(self) -> float:
        """Mean of the samples that a rank has of a batch of the current epoch."""
        return self._loader.average_batch_size / self._loader.world_size

    @property
    def drop_last(self) -> bool:
        return self._loader.drop_last

    def set_epoch(self, epoch: int) -> None:
        self._loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._loader)
