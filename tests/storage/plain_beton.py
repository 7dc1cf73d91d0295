"""Small ``.beton`` files packed by hand from the format's description: the oracle for the reader's dtypes."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT, INT, IMAGE, ARRAY = 0, 1, 2, 4
START = 4096

Image = tuple[int, int, int, bytes]
"""mode, width, height, bytes"""


def write_plain_beton(
    path: Path,
    images: Sequence[Image],
    labels: Sequence[float] | NDArray[Any],
    *,
    label_type: int = INT,
    label_name: bytes = b"label",
) -> Path:
    """A file as FFCV writes it, with fields ``image`` and ``label``: no appendix, no checksums.

    Labels of the type ARRAY are (N, ...), one array per image.
    """
    arguments, arrays = b"", np.asarray(labels) if label_type == ARRAY else np.zeros((0,))
    if label_type == ARRAY:
        code = json.dumps(arrays.dtype.descr).encode()
        arguments = struct.pack("<32QQ", *arrays.shape[1:], *[0] * (33 - arrays.ndim), len(code)) + code
    places: list[int] = []
    data = bytearray()
    for stored in (*(stored for _, _, _, stored in images), *(array.tobytes() for array in arrays)):
        places.append(START + len(data))
        data += stored
    values = places[len(images) :] or labels
    code = {FLOAT: "d", INT: "q", ARRAY: "Q"}[label_type]
    rows = b"".join(
        struct.pack("<BHHQ3x" + code, mode, width, height, place, label)
        for (mode, width, height, _), place, label in zip(images, places, values, strict=False)
    )
    head = struct.pack("<HHIQQ", 2, 2, 1 << 23, len(images), START + len(data))
    head += struct.pack("<B16s1024x", IMAGE, b"image") + struct.pack("<B16s1024s", label_type, label_name, arguments)
    ends = [*places[1:], START + len(data)]
    table = b"".join(
        struct.pack("<QQQ", number % len(images), place, ends[number] - place)
        for number, place in reversed([*enumerate(places)])
    )
    assert len(head) + len(rows) <= START, "room for the metadata"
    path.write_bytes((head + rows).ljust(START, b"\0") + data + table)
    return path
