"""Damaged JPEGs, and a search for accesses outside arrays: ``python -m tests.backends.fuzzing JPEG_AS_HEX ...``.

The search cuts damaged JPEGs by the interpreter, with ``NUMBA_DISABLE_JIT=1``, from arrays that refuse any index but
those of their elements, and prints each outcome that it met.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np


def damaged(data: bytes, *, count: int) -> Iterator[bytes]:
    """Copies of a JPEG with some of its bytes changed, missing or repeated, most often in its header."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        broken = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            place = int(len(broken) * rng.random() ** 3)
            length = int(rng.integers(1, 5))
            match rng.integers(5):
                case 0:
                    broken[place] ^= 1 << int(rng.integers(8))
                case 1:
                    broken[place : place + length] = rng.bytes(length)
                case 2:
                    broken[place : place + length] = bytes((0xFF, int(rng.integers(0xC0, 0x100))))
                case 3:
                    del broken[place : place + length]
                case _:
                    broken[place:place] = broken[place : place + length]
        yield bytes(broken[: rng.integers(1, len(broken))] if rng.random() < 0.2 else broken)


class Guarded:
    """An array of bytes without negative indices."""

    def __init__(self, data: bytes) -> None:
        self._data = bytearray(data)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, place: int) -> int:
        assert place >= 0
        return self._data[place]

    def __setitem__(self, place: int, value: int) -> None:
        assert place >= 0
        self._data[place] = value


def main() -> None:
    from respipe.jpeg import cut as cutting

    outcomes = set[int]()
    rng = np.random.default_rng(0)
    for text in sys.argv[1:]:
        for data in damaged(bytes.fromhex(text), count=500):
            source, box, out = Guarded(data), rng.integers(-10, 60, 4), Guarded(bytes(len(data)))
            layout = cutting.read_layout(source)
            outcomes.add(cutting.cut_crop(source, layout.height, layout.width, box, out).status)
    sys.stdout.write(" ".join(name for name in ("CUT", "WHOLE", "DAMAGED") if getattr(cutting, name) in outcomes))


if __name__ == "__main__":
    main()
