"""The bytes of a ``.beton`` that nobody reads: between the parts of the file, and after the last image of a page."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.beton.structure import Structure, read_structure

# How much is looked at together, to bound the memory that it takes.
_CHUNK = 64 << 20


def find_stray_bytes(dataset: BetonDataset, *, most: int) -> tuple[int, ...]:
    """Places of bytes between the parts of a file that are not zero, as respipe writes them.

    They harm nobody, but tell that the file was changed after it was written. With the checksums, which cover all other
    bytes, no change of the file goes unseen.

    Args:
        dataset: an open file.
        most: how many places to return.

    Returns:
        the first places, rising; none for a file without respipe's appendix, whose gaps may hold anything.
    """
    (memory,) = dataset.buffers
    structure = read_structure(dataset.path, memory)
    if structure.appendix is None:
        return ()
    found: list[int] = []
    for start, stop in _gaps(_parts(dataset, structure)):
        for at in range(start, stop, _CHUNK):
            found += (at + np.flatnonzero(memory[at : min(at + _CHUNK, stop)])[: most - len(found)]).tolist()
            if len(found) == most:
                return tuple(found)
    return tuple(found)


def _parts(dataset: BetonDataset, structure: Structure) -> NDArray[np.int64]:
    """(n, 2) start and end of everything that has a checksum."""
    assert structure.appendix is not None
    parts = [np.array([(0, structure.data_start), *structure.appendix.parts], np.int64)]
    parts.extend(np.stack([level.offsets, level.offsets + level.sizes], axis=1) for level in dataset.levels)
    end = len(dataset.buffers[0])
    return np.concatenate([*parts, np.array([[end, end]], np.int64)])


def _gaps(parts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Start and end of what lies between parts, which may overlap."""
    parts = parts[np.argsort(parts[:, 0], kind="stable")]
    covered = np.maximum.accumulate(parts[:, 1])
    rows = np.flatnonzero(parts[1:, 0] > covered[:-1])
    yield from zip(covered[rows].tolist(), parts[rows + 1, 0].tolist(), strict=True)
