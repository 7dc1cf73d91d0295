"""What the header of a JPEG says, read without decoding and never beyond the end of the bytes given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from respipe.jpeg.markers import APP0, APP14, DRI, EOI, SOI, SOS

Coding = Literal["baseline", "extended", "progressive", "other"]
Colour = Literal["gray", "ycbcr", "rgb", "cmyk", "other"]

_CODINGS: dict[int, Coding] = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # and that of JPEG-LS
_STANDALONE = {0x00, 0x01, *range(0xD0, 0xD8), SOI, EOI}  # not in a header, though libjpeg skips some of them


class JpegError(ValueError):
    """The bytes are no complete JPEG header. The message says what was found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegHeader:
    """The header of a JPEG up to its first scan.

    Args:
        height, width: size in pixels as stored, before any rotation.
        marker: second byte of the frame header's marker, which tells the coding.
        precision: bits per sample.
        coding: kind of entropy coding.
        colour: what the components are, as libjpeg concludes it; "other" where decoders may conclude otherwise.
        sampling: (horizontal, vertical) sampling factor of each component.
        restart_interval: MCUs between restart markers, 0 for none.
        scan_start: place of the first entropy-coded byte.
    """

    height: int
    width: int
    marker: int
    precision: int
    coding: Coding
    colour: Colour
    sampling: tuple[tuple[int, int], ...]
    restart_interval: int
    scan_start: int

    @property
    def mcu(self) -> tuple[int, int]:
        """Rows and columns of the first component's 8 x 8 blocks in an MCU."""
        # A scan of one component has MCUs of one block, whatever its sampling factors are.
        wide, high = self.sampling[0] if len(self.sampling) > 1 else (1, 1)
        return high, wide

    @property
    def mcu_grid(self) -> tuple[int, int]:
        """Rows and columns of MCUs."""
        high, wide = self.mcu
        return -(-self.height // (8 * high)), -(-self.width // (8 * wide))

    @property
    def num_intervals(self) -> int:
        """Restart intervals that an image of this size has; 0 where it has no restart markers."""
        rows, columns = self.mcu_grid
        return -(-rows * columns // self.restart_interval) if self.restart_interval else 0

    @property
    def common_sampling(self) -> bool:
        """Whether the colour is subsampled in one of the ways that libjpeg-turbo has a name for."""
        factors = self.sampling
        return len(factors) == 1 or (
            factors[0] in {(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)} and set(factors[1:]) <= {(1, 1)}
        )

    @property
    def usual(self) -> bool:
        """Whether it has 8 bits, gray or YCbCr, with a common chroma subsampling."""
        return self.precision == 8 and self.colour in ("gray", "ycbcr") and self.common_sampling

    @property
    def plain(self) -> bool:
        """Whether every JPEG decoder, also one in hardware, can be expected to show it right: usual and baseline."""
        return self.usual and self.coding == "baseline"


def read_header(data: bytes | NDArray[np.uint8]) -> JpegHeader:
    """Parse the markers up to the first scan.

    Args:
        data: an encoded image, or its beginning.

    Raises:
        JpegError: it is no JPEG, or ends before the first scan.
    """
    view = _view(data)
    frame: tuple[int, memoryview] | None = None
    found: dict[int, list[bytes]] = {APP0: [], APP14: []}
    restart_interval = scan_start = 0
    for marker, start, end in segments(view):
        body = view[start:end]
        if marker in _FRAMES and frame is None:
            frame = marker, body
        elif marker in found:
            found[marker].append(bytes(body))
        elif marker == DRI and len(body) >= 2:
            restart_interval = _number(body, 0)
        elif marker == SOS:
            scan_start = end
    if frame is None:
        raise JpegError("its first scan comes before its frame header")
    marker, body = frame
    sampling, identifiers = _components(body)
    return JpegHeader(
        height=_number(body, 1),
        width=_number(body, 3),
        marker=marker,
        precision=body[0],
        coding=_CODINGS.get(marker, "other"),
        colour=_colour(identifiers, app0=found[APP0], app14=found[APP14]),
        sampling=sampling,
        restart_interval=restart_interval,
        scan_start=scan_start,
    )


def segments(data: bytes | memoryview | NDArray[np.uint8]) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG's header, the last of them the header of its first scan.

    Yields:
        the second byte of the segment's marker, and where its contents start and end.

    Raises:
        JpegError: it is no JPEG, or ends before the first scan.
    """
    view = _view(data)
    if bytes(view[:2]) != bytes((0xFF, SOI)):
        raise JpegError(f"it begins with {bytes(view[:4]).hex() or 'nothing'} where a JPEG begins with ffd8")
    marker, end = SOI, 2
    while marker != SOS:
        marker, start, end = _next_segment(view, end)
        yield marker, start, end


def is_complete(data: bytes | NDArray[np.uint8], header: JpegHeader) -> bool:
    """Whether an end-of-image marker follows the scan. What comes after it, as cameras append, does not matter."""
    end = bytes((0xFF, EOI))
    view = _view(data)
    return bytes(view[-2:]) == end or end in bytes(view[header.scan_start :])


def _view(data: bytes | memoryview | NDArray[np.uint8]) -> memoryview:
    return data.data if isinstance(data, np.ndarray) else memoryview(data)


def _next_segment(view: memoryview, position: int) -> tuple[int, int, int]:
    """Marker, start and end of the contents of the next segment that has any."""
    while True:
        if position + 4 > len(view):
            raise JpegError(f"it ends at byte {len(view)}, before its first scan")
        if view[position] != 0xFF:
            raise JpegError(f"byte {position} is {view[position]:#04x} where a marker is expected")
        marker = view[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in _STANDALONE:
            raise JpegError(f"marker ff{marker:02x} comes before its first scan")
        else:
            break
    end = position + 2 + _number(view, position + 2)
    if end < position + 4 or end > len(view):
        raise JpegError(f"the segment at byte {position} is said to end at {end} of {len(view)}")
    return marker, position + 4, end


def _number(view: memoryview, position: int) -> int:
    return view[position] << 8 | view[position + 1]


def _components(body: memoryview) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Sampling factors and identifiers of a frame header's components."""
    count = body[5] if len(body) >= 6 else 0
    if len(body) >= 6 and not _number(body, 1):
        raise JpegError("its height is not in its header, but in a DNL marker after its first scan")
    if not count or len(body) < 6 + 3 * count or not _number(body, 3):
        raise JpegError(f"its frame header {bytes(body[:24]).hex()} gives no size or no components")
    entries = [body[6 + 3 * i : 9 + 3 * i] for i in range(count)]
    return tuple((entry[1] >> 4, entry[1] & 15) for entry in entries), tuple(entry[0] for entry in entries)


def _colour(identifiers: tuple[int, ...], *, app0: list[bytes], app14: list[bytes]) -> Colour:
    """The rules by which libjpeg guesses the colour space (jdapimin.c, default_decompress_parms)."""
    jfif = any(segment.startswith(b"JFIF\x00") for segment in app0)
    transforms = [segment[11] for segment in app14 if segment.startswith(b"Adobe") and len(segment) >= 12]
    if len(identifiers) == 1:
        return "gray"
    if len(identifiers) == 4:
        return "cmyk"
    if len(identifiers) != 3:
        return "other"
    if jfif:
        return "ycbcr" if transforms[-1:] != [0] else "other"  # for libjpeg YCbCr, for others RGB
    if transforms:
        return "rgb" if transforms[-1] == 0 else "ycbcr"
    return "rgb" if bytes(identifiers) == b"RGB" else "ycbcr"
