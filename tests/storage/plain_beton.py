"""Small ``.beton`` files packed by hand from the format's description: the oracle for the reader's dtypes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

FLOAT, INT, IMAGE = 0, 1, 2
START = 4096

Image = tuple[int, int, int, bytes]
"""mode, width, height, bytes"""


def write_plain_beton(
    path: Path, images: Sequence[Image], labels: Sequence[float], *, label_type: int = INT, label_name: bytes = b"label"
) -> Path:
    """A file as FFCV writes it, with fields ``image`` and ``label``: no appendix, no checksums."""
    places: list[int] = []
    data = bytearray()
    for _, _, _, stored in images:
        places.append(START + len(data))
        data += stored
    rows = b"".join(
        struct.pack("<BHHQ3x" + ("d" if label_type == FLOAT else "q"), mode, width, height, place, label)
        for (mode, width, height, _), place, label in zip(images, places, labels, strict=True)
    )
    head = struct.pack("<HHIQQ", 2, 2, 1 << 23, len(images), START + len(data))
    head += b"".join(
        struct.pack("<B16s1024x", kind, name) for kind, name in ((IMAGE, b"image"), (label_type, label_name))
    )
    table = b"".join(
        struct.pack("<QQQ", number, place, len(images[number][3])) for number, place in reversed([*enumerate(places)])
    )
    assert len(head) + len(rows) <= START, "room for the metadata"
    path.write_bytes((head + rows).ljust(START, b"\0") + data + table)
    return path
