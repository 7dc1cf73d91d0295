"""The inverse discrete cosine transform of 8 x 8 blocks, column by column while they are decoded, then row by row.

Blocks are stored in planes of bands, arrays (bands of BAND rows, columns, BAND), in which a column of a band is one
vector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from respipe.backends.tiles.intrinsics import add_scaled, store_pixels
from respipe.backends.tiles.simd import BAND
from respipe.jpeg.compilation import compiled, compiled_with_fast_math


def _basis() -> NDArray[np.float32]:
    frequency, sample = np.mgrid[:8, :8]
    scale = np.where(frequency == 0, np.sqrt(1 / 8), 0.5)
    return (scale * np.cos((2 * sample + 1) * frequency * np.pi / 16)).astype(np.float32).ravel()


def _zigzag() -> NDArray[np.int64]:
    # Diagonals from the upper left, walked down on odd ones and up on even ones (ITU-T T.81, figure 5).
    cells = [(v, u) for v in range(8) for u in range(8)]
    cells.sort(key=lambda cell: (sum(cell), cell[0] if sum(cell) % 2 else cell[1]))
    return np.array(cells, np.int64)


_ROWS = 8 * _zigzag()[:, 0].copy()

COLUMNS = 8 * _zigzag()[:, 1].copy()
"""(64,) int64: for each coefficient in zigzag order, where the column of its horizontal frequency begins in a block."""

BASIS = _basis()
"""(64,) float32: orthonormal cosines, [frequency][sample]."""


@compiled
def quantized_cosines(quantizers: NDArray[np.float32], cosines: NDArray[np.float32]) -> None:
    """What a coefficient of 1 adds to the eight samples of its column.

    Args:
        quantizers: (n x 64,) float32, quantisation tables in zigzag order.
        cosines: (n x 64 x 8,) float32, filled, in zigzag order.
    """
    cosines[:] = np.float32(0.0)
    for i in range(len(quantizers)):
        add_scaled(cosines, 8 * i, BASIS, _ROWS[i & 63], quantizers[i])


_E2, _E6 = BASIS[16], BASIS[17]
_O1, _O3, _O5, _O7 = BASIS[8], BASIS[9], BASIS[10], BASIS[11]
_E0 = BASIS[0]


@compiled_with_fast_math
def store_block(block: NDArray[np.float32], plane: NDArray[np.uint8], at: int) -> None:
    """Transform a block along its rows, and store its pixels.

    Args:
        block: (64,) float32, [horizontal frequency][y].
        plane: (n,) uint8.
        at: where in ``plane`` the block's first pixel goes.
    """
    half = np.float32(128.5)
    for y in range(8):
        b0, b1, b2, b3 = block[y], block[8 + y], block[16 + y], block[24 + y]
        b4, b5, b6, b7 = block[32 + y], block[40 + y], block[48 + y], block[56 + y]
        sum04, difference04 = half + _E0 * (b0 + b4), half + _E0 * (b0 - b4)
        large26, small26 = _E2 * b2 + _E6 * b6, _E6 * b2 - _E2 * b6
        even0, even3 = sum04 + large26, sum04 - large26
        even1, even2 = difference04 + small26, difference04 - small26
        odd0 = _O1 * b1 + _O3 * b3 + _O5 * b5 + _O7 * b7
        odd1 = _O3 * b1 - _O7 * b3 - _O1 * b5 - _O5 * b7
        odd2 = _O5 * b1 - _O1 * b3 + _O7 * b5 + _O3 * b7
        odd3 = _O7 * b1 - _O5 * b3 + _O3 * b5 - _O1 * b7
        block[y] = even0 + odd0
        block[8 + y] = even1 + odd1
        block[16 + y] = even2 + odd2
        block[24 + y] = even3 + odd3
        block[32 + y] = even3 - odd3
        block[40 + y] = even2 - odd2
        block[48 + y] = even1 - odd1
        block[56 + y] = even0 - odd0
    store_pixels(block, plane, at, BAND)


@compiled_with_fast_math
def flat_pixel(mean: float) -> np.uint8:
    """The pixels of a block that consists of its mean alone, which is given after the transform along one axis."""
    value = np.float32(128.5) + _E0 * np.float32(mean)
    return np.uint8(np.int32(min(max(value, np.float32(0.0)), np.float32(255.0))))
