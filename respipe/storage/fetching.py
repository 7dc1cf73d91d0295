"""What a dataset asks for bytes of its files that are not there yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


class Held(Protocol):
    """A hold of stored images, which ends when it is dropped."""

    @property
    def is_waiting(self) -> bool:
        """Whether some of them are not there yet."""
        ...

    def wait(self) -> None:
        """Wait until they are. Raises :class:`respipe.StorageError` where they cannot be read."""
        ...


class Source(Protocol):
    """Whoever fetches parts of files; see :class:`respipe.storage.remote.blocks.Blocks`."""

    volatile: bool

    def hold(self, numbers: Numbers, offsets: Numbers, lengths: Numbers) -> Held | None: ...


class FetchedFiles:
    """Files of which some are fetched in parts: nothing may be read of these that is not held.

    Args:
        places: for each file, who fetches it, and its number there; None where all of it is there.
    """

    def __init__(self, places: Sequence[tuple[Source, int] | None]) -> None:
        self._sources: list[tuple[Source, Numbers]] = []
        for source in dict.fromkeys(place[0] for place in places if place is not None):
            numbers = [place[1] if place is not None and place[0] is source else -1 for place in places]
            self._sources.append((source, np.array(numbers, np.int64)))

    @property
    def volatile(self) -> bool:
        """Whether bytes that were there may be fetched anew, and so must be checked at each use."""
        return any(source.volatile for source, _ in self._sources)

    def hold(self, rows: NDArray[np.void]) -> list[Held] | None:
        """Begin to fetch some stored images, to stay as long as all that is returned is referred to.

        Args:
            rows: (n,) of :data:`respipe.backends.base.ROW`, whose buffers are the files.

        Returns:
            None where there is no room for them before others are dropped.
        """
        held: list[Held] = []
        for source, numbers in self._sources:
            mine = rows[numbers[rows["buffer"]] >= 0]
            one = source.hold(numbers[mine["buffer"]], mine["offset"], mine["length"])
            if one is None:
                return None
            held.append(one)
        return held
