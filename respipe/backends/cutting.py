"""The old place of :func:`respipe.jpeg.cut.cut`."""

from __future__ import annotations

import warnings


def cut(data: bytes, box: tuple[int, int, int, int]) -> tuple[bytes, tuple[int, int, int, int]]:
    """See :func:`respipe.jpeg.cut.cut`."""
    from respipe.jpeg.cut import cut as moved

    warnings.warn(
        "respipe.backends.cutting.cut is now respipe.jpeg.cut.cut; the old name goes with the next release.",
        DeprecationWarning,
        stacklevel=2,
    )
    return moved(data, box)
