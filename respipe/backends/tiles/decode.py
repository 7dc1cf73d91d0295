"""Decoding the part of a JPEG that a crop needs into planes, interval by interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from respipe.backends.tiles import entropy
from respipe.backends.tiles.dct import COLUMNS, flat_pixel, store_block
from respipe.backends.tiles.intrinsics import add_scaled, load_word, spread, store_flat
from respipe.backends.tiles.simd import BAND
from respipe.jpeg.compilation import compiled
from respipe.jpeg.compiled_header import Layout, interval_bounds


class Region(NamedTuple):
    """A rectangle of MCUs: from ``top`` and ``left`` to before ``bottom`` and ``right``."""

    top: int
    left: int
    bottom: int
    right: int


class Planes(NamedTuple):
    """Where the decoded samples of a region are: luma, blue and red behind each other in one array.

    Each plane is (bands, columns, BAND) as :mod:`respipe.backends.tiles.dct` describes.

    Args:
        luma_columns, chroma_columns: columns of a plane.
        blue, red: where these planes begin.
        end: samples of all planes.
    """

    luma_columns: int
    chroma_columns: int
    blue: int
    red: int
    end: int


@compiled
def lay_out_planes(layout: Layout, region: Region) -> Planes:
    """Lay out the planes of a region."""
    across, down = region.right - region.left, region.bottom - region.top
    blue = _samples(down * layout.mcu_height, across * layout.mcu_width)
    chroma = _samples(8 * down, 8 * across) if layout.components == 3 else 0
    return Planes(across * layout.mcu_width, 8 * across, blue, blue + chroma, blue + 2 * chroma)


@compiled
def _samples(height: int, width: int) -> int:
    """Samples of a plane of whole bands."""
    return (height + BAND - 1) // BAND * BAND * width


@compiled
def covering_region(layout: Layout, top: int, left: int, bottom: int, right: int) -> Region:
    """The MCUs that a part of the image draws on, with those that chroma upsampling at its edge looks at."""
    high, wide = layout.mcu_height >> 3, layout.mcu_width >> 3
    return Region(
        max(top - high, 0) // layout.mcu_height,
        max(left - wide, 0) // layout.mcu_width,
        min((bottom + high - 1) // layout.mcu_height + 1, layout.rows),
        min((right + wide - 1) // layout.mcu_width + 1, layout.columns),
    )


@compiled
def _block_places(layout: Layout, planes: Planes, row: int, places: NDArray[np.int64]) -> None:
    """Where the blocks of a row of MCUs are.

    Args:
        layout, planes: of an image and a region.
        row: of MCUs in the region.
        places: (blocks of an MCU, 3) int64, filled: component, place of the first MCU's block, and step to the next.
    """
    wide, high = layout.mcu_width >> 3, layout.mcu_height >> 3
    for part in range(wide * high):
        y, x = 8 * (row * high + part // wide), 8 * (part % wide)
        places[part] = 0, _place(y, x, planes.luma_columns), layout.mcu_width * BAND
    for component in range(1, layout.components):
        start = planes.blue if component == 1 else planes.red
        places[wide * high + component - 1] = component, start + _place(8 * row, 0, planes.chroma_columns), 8 * BAND


@compiled
def _place(y: int, x: int, width: int) -> int:
    return (y // BAND * width + x) * BAND + y % BAND


@compiled
def _covered_intervals(data: NDArray[np.uint8], layout: Layout, region: Region) -> NDArray[np.int64]:
    """The intervals that a region touches.

    Returns:
        (n, 6) int64: start and end in ``data``; row and column of the first MCU, counted from the region's; how many
        MCUs to decode, and how many there are. No rows where the index is damaged.
    """
    across = (region.right - region.left - 1) // layout.interval + 2
    intervals = np.empty(((region.bottom - region.top) * across, 6), np.int64)
    count = 0
    for row in range(region.top, region.bottom):
        left, right = row * layout.columns + region.left, row * layout.columns + region.right
        for number in range(left // layout.interval, (right - 1) // layout.interval + 1):
            start, end = interval_bounds(data, layout, number)
            if start < 0:
                return intervals[:0]
            first = number * layout.interval
            stop = min(first + layout.interval, layout.rows * layout.columns)
            wanted = min(stop, right)
            intervals[count] = start, end, row - region.top, first - left, wanted - first, stop - first
            count += 1
    return intervals[:count]


@compiled
def decode_region(  # noqa: C901, PLR0915 - in one piece: handing on arrays at every block doubles the time
    data: NDArray[np.uint8],
    layout: Layout,
    region: Region,
    cosines: NDArray[np.float32],
    lookup: NDArray[np.int64],
    coded: NDArray[np.uint8],
    block: NDArray[np.float32],
    samples: NDArray[np.uint8],
) -> bool:
    """Decode every interval that a region touches, up to the last MCU that it needs of it.

    Args:
        data: (n,) uint8, an encoded image.
        layout, region: of the same, with an index; at least one MCU of it.
        cosines: see :func:`respipe.backends.tiles.dct.quantized_cosines`.
        lookup: see :func:`respipe.backends.tiles.entropy.standard_lookup`.
        coded: (len(data) + SLACK,) uint8 scratch, or more.
        block: (64,) float32 scratch.
        samples: (n,) uint8, filled as :func:`lay_out_planes` has it.

    Returns:
        False where the data is damaged.
    """
    planes = lay_out_planes(layout, region)
    places = np.empty(((layout.mcu_height >> 3) * (layout.mcu_width >> 3) + layout.components - 1, 3), np.int64)
    intervals = _covered_intervals(data, layout, region)
    means = np.empty(3, np.int64)
    block[:] = np.float32(0.0)
    for i in range(len(intervals)):
        num_bytes = entropy.unstuff(data, intervals[i, 0], intervals[i, 1], coded)
        if num_bytes < 0:
            return False
        if i == 0 or intervals[i, 2] != intervals[i - 1, 2]:
            _block_places(layout, planes, intervals[i, 2], places)
        position, buffer, loaded = 0, np.uint64(0), 0
        means[:] = 0
        for column in range(intervals[i, 3], intervals[i, 3] + intervals[i, 4]):
            for part in range(len(places)):
                component = places[part, 0]
                table, rows = np.uint64(2 * entropy.TABLE if component else 0), 512 * component
                buffer |= load_word(coded, position) >> np.uint64(loaded)
                position += (63 - loaded) >> 3
                loaded |= 56
                entry = lookup[table + entropy.short_code(buffer)]
                if entry == 0:
                    entry = lookup[table + entropy.long_code(buffer)]
                length, value = entropy.bits_and_value(entry, buffer)
                means[component] += value
                spread(block, np.float32(means[component]) * cosines[rows])
                buffer <<= np.uint64(length)
                loaded -= length
                table += np.uint64(entropy.TABLE)
                place = entropy.step(entry) - 1
                while place < 63:
                    buffer |= load_word(coded, position) >> np.uint64(loaded)
                    position += (63 - loaded) >> 3
                    loaded |= 56
                    for _ in range(2):  # 56 bits are enough for two
                        entry = lookup[table + entropy.short_code(buffer)]
                        if entry == 0:
                            entry = lookup[table + entropy.long_code(buffer)]
                        before = buffer
                        buffer <<= np.uint64(entropy.num_bits(entry))
                        loaded -= entropy.num_bits(entry)
                        value = entropy.value(entry)
                        if entropy.is_unread(entry):
                            size = value
                            value = entropy.read_value(buffer, 0, size)
                            buffer <<= np.uint64(size)
                            loaded -= size
                        place += entropy.step(entry)
                        if place < 63:
                            add_scaled(block, COLUMNS[np.uint64(place)], cosines, rows + 8 * place, np.float32(value))
                            place += entropy.second_step(entry)
                            if place <= 63:
                                value = entropy.second_value(entry)
                                add_scaled(
                                    block, COLUMNS[np.uint64(place)], cosines, rows + 8 * place, np.float32(value)
                                )
                        elif place == 63:  # what follows belongs to another block
                            if entropy.second_step(entry) != 0:
                                buffer = before << np.uint64(entropy.num_bits_of_first(entry))
                                loaded += entropy.num_bits(entry) - entropy.num_bits_of_first(entry)
                            add_scaled(block, COLUMNS[np.uint64(place)], cosines, rows + 8 * place, np.float32(value))
                        if place >= 63:
                            break
                if not entropy.is_end(place) or 8 * position - loaded > 8 * num_bytes:
                    return False
                at = places[part, 1] + column * places[part, 2]
                if column < 0:
                    block[:] = np.float32(0.0)
                elif place == entropy.END:  # and no coefficient before it
                    store_flat(flat_pixel(block[0]), samples, at, BAND)
                else:
                    store_block(block, samples, at)
        # Nothing is left of a whole interval but the bits that fill up its last byte.
        if intervals[i, 4] == intervals[i, 5] and 8 * (num_bytes - position) + loaded >= 8:
            return False
    return len(intervals) > 0
