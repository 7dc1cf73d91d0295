"""Giving a JPEG restart markers without decoding it: lossless, since every coefficient stays what it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from respipe.jpeg.header import JpegHeader, read_header, segments
from respipe.jpeg.huffman import AC_CHROMA, AC_LUMA, DC_CHROMA, DC_LUMA
from respipe.jpeg.index import fitting_interval, with_index
from respipe.jpeg.markers import APP0, DHT, DQT, DRI, EOI, SOF0, SOI, SOS
from respipe.jpeg.recode import AC_CODES, DC_CODES, TOO_LONG, Scan, recode, symbols_by_bits

_JFIF = b"JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_ALL_COEFFICIENTS = bytes((0, 63, 0))
_QUANTIZATION_BYTES = 64


class TranscodeError(ValueError):
    """A JPEG cannot be transcoded. The message says what stands in the way."""


def transcode(data: bytes, *, restart_interval: int, max_bytes: int) -> tuple[bytes, bool]:
    """Code a JPEG's coefficients anew, with restart markers, their index and the standard Huffman tables.

    Everything that is not needed to decode the image is left out.

    Args:
        data: a sound JPEG.
        restart_interval: MCUs per restart interval, at most; see :func:`respipe.jpeg.index.fitting_interval`.
        max_bytes: how long the result may become, but for its header.

    Returns:
        the JPEG, and whether it is tiled, as :func:`respipe.conversion.pyramid.encode` has it.

    Raises:
        TranscodeError: it is not baseline with one scan of 8-bit gray or YCbCr, is damaged, or becomes too long.
        JpegError: it is no JPEG.
    """
    header = read_header(data)
    if not header.plain:
        raise TranscodeError(f"it is {header.coding}, {header.colour}, of {header.precision} bits")
    components, quantization = _read_tables(data)
    interval = fitting_interval(header.mcu_grid[1], restart_interval)
    scan = _recoded(data, header, components, interval=interval, max_bytes=max_bytes)
    frame = bytes((8, *header.height.to_bytes(2, "big"), *header.width.to_bytes(2, "big"), len(components)))
    coding = bytes([len(components)])
    for number, (component, (wide, high)) in enumerate(zip(components, header.sampling, strict=True), start=1):
        frame += bytes((number, wide << 4 | high, component.quantization))
        coding += bytes((number, 0x00 if number == 1 else 0x11))
    parts = (
        bytes((0xFF, SOI)),
        _segment(APP0, _JFIF),  # with it, three components are YCbCr
        *(_segment(DQT, bytes([number]) + table) for number, table in sorted(quantization.items())),
        _segment(SOF0, frame),
        *_STANDARD_TABLES[: 2 * len(components)],
        _segment(DRI, interval.to_bytes(2, "big")),
        _segment(SOS, coding + _ALL_COEFFICIENTS),
        scan,
        bytes((0xFF, EOI)),
    )
    plain = b"".join(parts)
    indexed = with_index(plain)
    return indexed, indexed is not plain


class _Component(NamedTuple):
    """The number of a component's quantisation table, and its Huffman tables as :class:`Scan` has them."""

    quantization: int
    dc_symbols: NDArray[np.uint16]
    ac_symbols: NDArray[np.uint16]


def _read_tables(data: bytes) -> tuple[list[_Component], dict[int, bytes]]:
    """The components, and the quantisation tables that they use, by number."""
    quantization: dict[int, bytes] = {}
    huffman: dict[int, tuple[bytes, bytes]] = {}
    frame = scan = b""
    for marker, start, end in segments(data):
        body = data[start:end]
        if marker == DQT:
            quantization |= _quantization_tables(body)
        elif marker == DHT:
            huffman |= _huffman_tables(body)
        elif marker == SOF0:
            frame = frame or body
        elif marker == SOS:
            scan = body
    entries = [frame[place : place + 3] for place in range(6, 6 + 3 * frame[5], 3)]
    coding = [scan[place : place + 2] for place in range(1, 1 + 2 * len(entries), 2)]
    same = scan[:1] == frame[5:6] and [entry[:1] for entry in entries] == [choice[:1] for choice in coding]
    if not same or scan[1 + 2 * len(entries) :] != _ALL_COEFFICIENTS:
        raise TranscodeError("it has several scans, or one in another order than its components")
    try:
        used = {entry[2]: quantization[entry[2]] for entry in entries}
        return [
            _Component(entry[2], symbols_by_bits(*huffman[tables >> 4]), symbols_by_bits(*huffman[0x10 | tables & 15]))
            for entry, (_, tables) in zip(entries, coding, strict=True)
        ], used
    except (KeyError, ValueError) as error:
        raise TranscodeError(f"a table is missing or impossible ({error})") from error


def _quantization_tables(body: bytes) -> dict[int, bytes]:
    """Each table that a segment defines, by number."""
    tables: dict[int, bytes] = {}
    for place in range(0, len(body), 1 + _QUANTIZATION_BYTES):
        table = body[place + 1 : place + 1 + _QUANTIZATION_BYTES]
        if body[place] > 3 or len(table) != _QUANTIZATION_BYTES:
            raise TranscodeError("its quantisation tables are not of 8 bits")
        tables[body[place]] = table
    return tables


def _huffman_tables(body: bytes) -> dict[int, tuple[bytes, bytes]]:
    """Counts by length, and symbols, of each table that a segment defines, by kind and number."""
    tables: dict[int, tuple[bytes, bytes]] = {}
    place = 0
    while place < len(body):
        counts = body[place + 1 : place + 17]
        end = place + 17 + sum(counts)
        tables[body[place]] = counts, body[place + 17 : end]
        place = end
    return tables


def _recoded(data: bytes, header: JpegHeader, components: list[_Component], *, interval: int, max_bytes: int) -> bytes:
    (rows, columns), (high, wide) = header.mcu_grid, header.mcu
    scan = Scan(
        start=header.scan_start,
        num_mcus=rows * columns,
        blocks=np.array([0] * (wide * high) + list(range(1, len(components))), np.int64),
        source_interval=header.restart_interval or rows * columns,
        target_interval=interval,
        dc_symbols=np.stack([component.dc_symbols for component in components]),
        ac_symbols=np.stack([component.ac_symbols for component in components]),
        dc_codes=DC_CODES,
        ac_codes=AC_CODES,
    )
    output = np.empty(max_bytes, np.uint8)
    num_bytes = recode(np.frombuffer(data, np.uint8), scan, output)
    if num_bytes < 0:
        what = f"takes more than {max_bytes} bytes" if num_bytes == TOO_LONG else "is damaged"
        raise TranscodeError(f"its scan {what}")
    return output[:num_bytes].tobytes()


def _segment(marker: int, contents: bytes) -> bytes:
    return bytes((0xFF, marker)) + (2 + len(contents)).to_bytes(2, "big") + contents


_STANDARD_TABLES = [
    _segment(DHT, bytes([number]) + table.counts.tobytes() + table.symbols.tobytes())
    for number, table in ((0x00, DC_LUMA), (0x10, AC_LUMA), (0x01, DC_CHROMA), (0x11, AC_CHROMA))
]
