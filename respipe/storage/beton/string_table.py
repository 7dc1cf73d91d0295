"""Many strings in two arrays, so that a million file names cost no million objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


class TextTable:
    """A read-only sequence of strings, kept as UTF-8.

    Bytes that are not UTF-8, as file names may hold, survive as lone surrogates (``os.fsencode`` restores them).

    Args:
        text: (bytes,) uint8, all strings one after another.
        offsets: (N + 1,) int64, where each begins and the last one ends.

    Raises:
        ValueError: the offsets do not fit the text.
    """

    def __init__(self, text: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        if offsets.ndim != 1 or text.ndim != 1 or not len(offsets):
            raise ValueError(f"`offsets` must be one row of at least one number; got shape {offsets.shape}.")
        if offsets[0] != 0 or offsets[-1] != len(text) or (offsets[1:] < offsets[:-1]).any():
            raise ValueError(f"`offsets` must rise from 0 to {len(text)}; got {offsets[0]} to {offsets[-1]}.")
        self.text = text
        self.offsets = offsets

    @classmethod
    def of(cls, strings: Iterable[str]) -> TextTable:
        """A table of given strings."""
        return cls.of_bytes(string.encode("utf-8", "surrogateescape") for string in strings)

    @classmethod
    def of_bytes(cls, items: Iterable[bytes]) -> TextTable:
        """A table of given byte strings, which :meth:`raw` gives back; they need not be text."""
        encoded = list(items)
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        return self.raw(index).decode("utf-8", "surrogateescape")

    def raw(self, index: int) -> bytes:
        """One string's bytes."""
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in 0..{len(self) - 1}; got {index}.")
        return self.text[int(self.offsets[index]) : int(self.offsets[index + 1])].tobytes()

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
