"""How finely each frequency of a re-encoded JPEG is kept."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

# Table K.1 of Annex K of the JPEG standard (ITU-T T.81), for luma: by vertical frequency, then by horizontal.
_STANDARD_LUMA: NDArray[np.int64] = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
# Chosen by measuring, and so large that a quality has about the PSNR of that quality with the standard's tables.
_FLAT_LUMA, _FLAT_CHROMA = 96, 28


@functools.lru_cache(maxsize=128)
def quantization_tables(quality: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Steps of the 64 coefficients of a block, for luma and for chroma, as Pillow takes them: rows, not zigzag.

    The standard's tables are made for eyes, which hardly see errors of colour and of high frequencies. Networks see
    what PSNR counts, which is RGB. So chroma is kept finely, at all frequencies alike: it has few samples and costs
    few bytes. Luma has the geometric mean of the standard's table and a flat one, since resizing takes away part of
    the errors of high frequencies, though not as much as the standard reckons with.

    Args:
        quality: 1 to 100, by which libjpeg's formula scales the tables.
    """
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    luma = np.sqrt(_STANDARD_LUMA * _FLAT_LUMA)
    luma_steps, chroma_steps = (
        np.clip(np.rint(table * percent / 100), 1, 255).astype(int).ravel().tolist()
        for table in (luma, np.full((8, 8), _FLAT_CHROMA))
    )
    return tuple(luma_steps), tuple(chroma_steps)
