"""The stand-in for a sampler that trainers look for on a loader."""

from __future__ import annotations

from typing import Protocol


class EpochLoader(Protocol):
    """A loader whose epoch can be chosen."""

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...


class EpochSetter:
    """What trainers expect of a sampler: a length and ``set_epoch``."""

    def __init__(self, loader: EpochLoader) -> None:
        self._loader = loader

    @property
    def sampler(self) -> EpochSetter:
        """Itself: some trainers look for ``batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """See :meth:`respipe.Loader.set_epoch`."""
        self._loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._loader)
