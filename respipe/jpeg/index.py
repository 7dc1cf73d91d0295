r"""Where the restart intervals of a JPEG begin, kept inside the JPEG itself.

A JPEG with restart markers is cut into intervals of k MCUs each. Every interval starts at a whole byte with nothing
carried over from the one before, so that it can be decoded alone, if one knows where it begins. respipe's conversion
stores that as an application segment, which other decoders skip::

    FF EA | length | "respipe\0" | version | offsets, 3 bytes each, little-endian

With n intervals there are n + 1 offsets, counted from the first entropy-coded byte. Interval i begins at offset i and
ends two bytes before offset i + 1; those two bytes are the restart marker FF D0 + (i mod 8), or, after the last
interval, the end of the image FF D9.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from respipe.jpeg.header import JpegError, read_header, segments
from respipe.jpeg.markers import EOI, RST0

MARKER = 0xEA
SIGNATURE = b"respipe\x00\x01"
OFFSET_BYTES = 3

_SOI_BYTES = 2
_SEGMENT_HEADER = 4
_MAX_SEGMENT = 0xFFFF
_MAX_OFFSET = 1 << 8 * OFFSET_BYTES


def fitting_interval(num_columns: int, wanted: int) -> int:
    """MCUs per restart interval, so that intervals never span two rows and any crop is a rectangle of intervals.

    Args:
        num_columns: MCUs in a row.
        wanted: at most so many, at least 1.

    Returns:
        the largest number that does and divides a row.
    """
    return next(interval for interval in range(min(wanted, num_columns), 0, -1) if num_columns % interval == 0)


def with_index(data: bytes) -> bytes:
    """Add the index to a JPEG that has restart markers and one scan.

    Returns:
        the JPEG with the index after its JFIF header, or ``data`` itself where the index would not fit into a segment
        (images beyond some ten million pixels).

    Raises:
        JpegError: the markers are not those that the header promises.
    """
    header = read_header(data)
    scan = np.frombuffer(data, np.uint8)[header.scan_start :]
    escapes = np.flatnonzero(scan[:-1] == 0xFF)
    ends = escapes[scan[escapes + 1] != 0] + 2  # a stuffed zero follows every other 0xFF
    offsets = np.concatenate([[0], ends])
    count = header.num_intervals
    expected = [*(RST0 + (np.arange(count - 1) & 7)).tolist(), EOI]
    if not count or scan[ends - 1].tolist() != expected:
        raise JpegError(f"it has {len(ends)} markers in its scan where {count} are expected")
    length = 2 + len(SIGNATURE) + OFFSET_BYTES * len(offsets)
    if length > _MAX_SEGMENT or int(offsets[-1]) >= _MAX_OFFSET:
        return data
    packed = offsets.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :OFFSET_BYTES].tobytes()
    segment = bytes((0xFF, MARKER)) + length.to_bytes(2, "big") + SIGNATURE + packed
    place = _SOI_BYTES
    if data[place : place + 2] == b"\xff\xe0":  # JFIF wants to come first
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data[:place] + segment + data[place:]


def without_index(data: bytes) -> bytes:
    """A JPEG as it was before :func:`with_index`.

    Raises:
        JpegError: it is no JPEG.
    """
    for marker, start, end in segments(data):
        if marker == MARKER and data[start:end].startswith(SIGNATURE):
            return data[: start - _SEGMENT_HEADER] + data[end:]
    return data


def read_index(data: bytes | NDArray[np.uint8]) -> NDArray[np.int64] | None:
    """The (n + 1,) offsets of a JPEG's intervals, from its first entropy-coded byte, as they are recorded.

    Returns:
        None where the JPEG has no index, or one that does not match its size.

    Raises:
        JpegError: it is no JPEG.
    """
    header = read_header(data)
    view = data.data if isinstance(data, np.ndarray) else memoryview(data)
    contents = [bytes(view[start:end]) for marker, start, end in segments(view) if marker == MARKER]
    packed = [content[len(SIGNATURE) :] for content in contents if content.startswith(SIGNATURE)]
    count = header.num_intervals
    if not packed or not count or len(packed[-1]) != OFFSET_BYTES * (count + 1):
        return None
    offsets = np.zeros((count + 1, 4), np.uint8)
    offsets[:, :OFFSET_BYTES] = np.frombuffer(packed[-1], np.uint8).reshape(-1, OFFSET_BYTES)
    return offsets.view("<u4").ravel().astype(np.int64)
