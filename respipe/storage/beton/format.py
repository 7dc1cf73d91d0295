"""The layout of a ``.beton`` file, version 2, as NumPy dtypes: what FFCV reads and writes, without FFCV.

::

    0                 header        version, counts, page size, where the allocation table begins
    24                field table   one entry per field: type, name, arguments
    24 + 1041 F       metadata      one row per sample: numbers, and for images mode, size and pointer
    next page         data pages    encoded images; none crosses the end of a page
    ...               appendix      only in files written by respipe; see :mod:`respipe.storage.beton.appendix`
    allocation table  (sample, pointer, size) of everything in the pages, up to the end of the file

All numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

VERSION = 2
PAGE_SIZE = 8 << 20
NAME_SIZE = 16
MAX_PAGE_SIZE = 1 << 31

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
FIELD = np.dtype([("type_id", "u1"), ("name", "u1", (NAME_SIZE,)), ("arguments", "u1", (1024,))])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])


class FieldType(IntEnum):
    """What a field holds. 255 stands for types that only their own writer can read."""

    FLOAT = 0
    INT = 1
    IMAGE = 2
    BYTES = 3
    ARRAY = 4
    JSON = 5
    TENSOR = 6


class ImageMode(IntEnum):
    """How the bytes of an image are to be read."""

    JPEG = 0
    RAW = 1


_SPAN = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_METADATA = {
    FieldType.FLOAT: np.dtype("<f8"),
    FieldType.INT: np.dtype("<i8"),
    FieldType.IMAGE: IMAGE,
    FieldType.BYTES: _SPAN,
    FieldType.ARRAY: np.dtype("<u8"),
    FieldType.JSON: _SPAN,
    FieldType.TENSOR: np.dtype("<u8"),
}


def metadata_dtype(types: Sequence[FieldType]) -> np.dtype[np.void]:
    """The dtype of one metadata row, aligned as a C compiler would; fields are named ``f0``, ``f1``, ..."""
    return np.dtype([(f"f{number}", _METADATA[kind]) for number, kind in enumerate(types)], align=True)


def align(position: int, unit: int) -> int:
    """The next multiple of ``unit`` at or after ``position``."""
    return -(-position // unit) * unit
