"""Whether the tiles of respipe's JPEGs are worth decoding on a GPU: two kernels, and how long they take.

Every restart interval is a stream of its own of about a hundred bytes, whose place is known. A batch has tens of
thousands. The host gathers those that the crops touch, without the stuffed zeros, sorted by length, so that the threads
of a warp end together. K1 decodes an interval in each thread to coefficients, and K2 transforms blocks to samples.

    python -m tools.benchmarks.cuda_tiles DATA --json benchmarks/cuda_tiles.json

DATA is a ``.beton`` of ``respipe convert`` or a folder of class folders, of which a few hundred images are enough; it
takes some five minutes. Needs ``numba-cuda`` and a CUDA GPU. ``compute-sanitizer --tool memcheck`` before the command,
with ``--rounds 1``, looks for accesses outside of arrays. With NUMBA_ENABLE_CUDASIM=1 the kernels run on a CPU, very
slowly. Decoding on the GPU is given up unless K1 and K2 take less than 1 ms together for 256 crops at 224 px.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import cuda
from numpy.typing import NDArray

import respipe
from respipe.backends.routing import route
from respipe.backends.tiles.dct import BASIS, COLUMNS
from respipe.backends.tiles.decode import _covered_intervals, covering_region
from respipe.backends.tiles.entropy import SLACK, unstuff
from respipe.jpeg.compiled_header import read_layout, read_quantizers
from respipe.jpeg.huffman import AC_CHROMA, AC_LUMA, DC_CHROMA, DC_LUMA, HuffmanTable

STOP_MILLISECONDS = 1.0

# Of the table of intervals: first word of the coded bytes, their number; number of the image; block at which the first
# MCU is stored; MCUs left of the region, which are decoded only for what follows; MCUs to decode, and all there are.
_WORD, _BYTES, _IMAGE, _BLOCK, _SKIPPED, _WANTED, _ALL = range(7)

# Of the table of images: the first block and their number; MCUs in a row; blocks of luma in an MCU, across and down;
# components; the first sample.
_FIRST, _COUNT, _ACROSS, _WIDE, _HIGH, _COMPONENTS, _SAMPLE = range(7)

# A look-up table has a part for the next 11 bits, and one for codes that begin with eight ones, by the eight bits
# behind those. An entry is length << 8 | symbol; 0 where the second part must be asked.
_SHORT_BITS, _SHORT, _TABLE = 11, 1 << 11, (1 << 11) + (1 << 8)
_NO_CODE = 0xFFFF
_ENTRIES = 4 * _TABLE

_INTERVALS_PER_GROUP = 128
_BLOCKS_PER_GROUP = 32


class Gathered(NamedTuple):
    """What the GPU is given of a batch.

    Args:
        words: (w,) uint32, coded bytes, the first one of a word highest.
        intervals: (n, 7) int32, sorted by length, the longest first; see ``_WORD`` and so on.
        images: (B, 7) int64; see ``_FIRST`` and so on.
        quantizers: (B, 192) float32, of each component in zigzag order.
        flags: (B,) int32, 1 for images whose damage shows while gathering.
    """

    words: NDArray[np.uint32]
    intervals: NDArray[np.int32]
    images: NDArray[np.int64]
    quantizers: NDArray[np.float32]
    flags: NDArray[np.int32]

    @property
    def num_blocks(self) -> int:
        """Blocks of all images."""
        return int(self.images[-1, _FIRST] + self.images[-1, _COUNT])


def lookup_tables() -> NDArray[np.uint16]:
    """(4 x 2304,) uint16: for means and for other coefficients of luma, then of chroma."""
    return np.concatenate([_lookup_table(table) for table in (DC_LUMA, AC_LUMA, DC_CHROMA, AC_CHROMA)])


def _lookup_table(table: HuffmanTable) -> NDArray[np.uint16]:
    entries = np.full(_TABLE, _NO_CODE, np.uint16)
    entries[0xFF << _SHORT_BITS - 8 : _SHORT] = 0
    for code, length, symbol in zip(*(part.tolist() for part in (*table.codes(), table.symbols)), strict=True):
        free = _SHORT_BITS - length
        start, stop = (code << free, code + 1 << free) if free >= 0 else (code << 5 + free, code + 1 << 5 + free)
        if free < 0:
            start, stop = _SHORT + (start & 0xFF), _SHORT + (stop - 1 & 0xFF) + 1
        entries[start:stop] = length << 8 | symbol
    return entries


# On the host


def gather(memory: NDArray[np.uint8], stored: NDArray[np.int64], covers: NDArray[np.int64]) -> Gathered:
    """Collect what decoding a batch needs.

    Args:
        memory: (n,) uint8, a file.
        stored: (B, 2) int64, offset and size of each image in it.
        covers: (B, 4) int64, top, left, height and width of the part of each image that is wanted, in pixels.
    """
    images, flags = np.zeros((len(stored), 7), np.int64), np.zeros(len(stored), np.int32)
    num_intervals, num_words = _measure(memory, stored, covers, images, flags)
    words, intervals = _host_array(num_words, np.uint32), np.empty((num_intervals, 7), np.int32)
    quantizers = np.zeros((len(stored), 192), np.float32)
    _fill(memory, stored, covers, images, flags, words, intervals, quantizers)
    ordered = _host_array(intervals.shape, np.int32)
    _sort(intervals, ordered)
    return Gathered(words, ordered, images, quantizers, flags)


def _host_array(shape: Any, dtype: Any) -> NDArray[Any]:
    """Memory that a GPU can copy from without the host's help."""
    return cuda.pinned_array(shape, dtype) if cuda.is_available() else np.empty(shape, dtype)


@numba.njit(nogil=True, cache=True)
def _measure(
    memory: NDArray[np.uint8],
    stored: NDArray[np.int64],
    covers: NDArray[np.int64],
    images: NDArray[np.int64],
    flags: NDArray[np.int32],
) -> tuple[int, int]:
    """Fill in the table of images, and count intervals and words. One that is damaged has no intervals."""
    num_intervals, num_words, block, sample = 0, 0, 0, 0
    for i in range(len(stored)):
        data = memory[stored[i, 0] : stored[i, 0] + stored[i, 1]]
        layout = read_layout(data)
        images[i, _FIRST], images[i, _SAMPLE], images[i, _ACROSS] = block, sample, 1
        flags[i] = 1
        if layout.offsets == 0:
            continue
        region = covering_region(layout, *_inside(covers[i], layout.height, layout.width))
        across, down = region.right - region.left, region.bottom - region.top
        wide, high = layout.mcu_width >> 3, layout.mcu_height >> 3
        images[i, _ACROSS], images[i, _WIDE], images[i, _HIGH] = across, wide, high
        images[i, _COMPONENTS] = layout.components
        images[i, _COUNT] = across * down * (wide * high + layout.components - 1)
        block += images[i, _COUNT]
        sample += 64 * images[i, _COUNT]
        found = _covered_intervals(data, layout, region)
        if len(found) > 0:
            flags[i] = 0
        num_intervals += len(found)
        for j in range(len(found)):
            num_words += (found[j, 1] - found[j, 0] + 3) >> 2
    return num_intervals, num_words


@numba.njit(nogil=True, cache=True)
def _inside(cover: NDArray[np.int64], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what lies inside the image, one pixel at least."""
    top, left = min(max(cover[0], 0), height - 1), min(max(cover[1], 0), width - 1)
    return top, left, max(min(cover[0] + cover[2], height), top + 1), max(min(cover[1] + cover[3], width), left + 1)


@numba.njit(nogil=True, cache=True)
def _fill(
    memory: NDArray[np.uint8],
    stored: NDArray[np.int64],
    covers: NDArray[np.int64],
    images: NDArray[np.int64],
    flags: NDArray[np.int32],
    words: NDArray[np.uint32],
    intervals: NDArray[np.int32],
    quantizers: NDArray[np.float32],
) -> None:
    """Copy the coded bytes, and fill in the table of intervals."""
    coded = np.empty(stored[:, 1].max() + SLACK, np.uint8)
    count, word = 0, 0
    for i in range(len(stored)):
        if flags[i] != 0:
            continue
        data = memory[stored[i, 0] : stored[i, 0] + stored[i, 1]]
        layout = read_layout(data)
        region = covering_region(layout, *_inside(covers[i], layout.height, layout.width))
        if not read_quantizers(data, layout, quantizers[i]):
            flags[i] = 1
        parts = images[i, _WIDE] * images[i, _HIGH] + layout.components - 1
        found = _covered_intervals(data, layout, region)
        for j in range(len(found)):
            num_bytes = unstuff(data, found[j, 0], found[j, 1], coded)
            if num_bytes < 0:
                flags[i] = 1
                num_bytes = 0
            row, column = found[j, 2], found[j, 3]
            skipped = max(-column, 0)
            block = images[i, _FIRST] + (row * images[i, _ACROSS] + column + skipped) * parts
            entry = intervals[count]
            entry[_WORD], entry[_BYTES], entry[_IMAGE], entry[_BLOCK] = word, num_bytes, i, block
            entry[_SKIPPED], entry[_WANTED], entry[_ALL] = skipped, found[j, 4], found[j, 5]
            count += 1
            coded[num_bytes : num_bytes + 3] = 0
            for at in range(0, num_bytes, 4):
                high = np.uint32(coded[at]) << np.uint32(24) | np.uint32(coded[at + 1]) << np.uint32(16)
                words[word] = high | np.uint32(coded[at + 2]) << np.uint32(8) | np.uint32(coded[at + 3])
                word += 1


@numba.njit(nogil=True, cache=True)
def _sort(intervals: NDArray[np.int32], ordered: NDArray[np.int32]) -> None:
    """Counting sort by length, the longest first. Those of a length stay in order."""
    most = 4095
    starts = np.zeros(most + 2, np.int64)
    for i in range(len(intervals)):
        starts[most - min(intervals[i, _BYTES], most) + 1] += 1
    starts = np.cumsum(starts)
    for i in range(len(intervals)):
        key = most - min(intervals[i, _BYTES], most)
        ordered[starts[key]] = intervals[i]
        starts[key] += 1


# On the GPU


@cuda.jit
def decode_intervals(words: Any, intervals: Any, images: Any, tables: Any, coefficients: Any, flags: Any) -> None:
    """K1: decode an interval in each thread.

    Args:
        words, intervals, images: see :class:`Gathered`.
        tables: of :func:`lookup_tables`.
        coefficients: (blocks, 64) int16 in zigzag order, zero; filled, means as they are and not as differences.
        flags: (B,) int32, set to 1 where an interval of an image is damaged. Its other blocks are undefined.
    """
    lookup = cuda.shared.array(_ENTRIES, numba.uint16)
    for i in range(cuda.threadIdx.x, _ENTRIES, cuda.blockDim.x):
        lookup[i] = tables[i]
    cuda.syncthreads()
    number = cuda.grid(1)
    if number < intervals.shape[0]:
        entry = intervals[number]
        if not _decode_interval(words, entry, images[entry[_IMAGE]], lookup, coefficients):
            flags[entry[_IMAGE]] = 1


@cuda.jit(device=True)
def _load(words: Any, bits: int, available: int, at: int, stop: int) -> tuple[int, int, int]:
    """Have 32 bits at least, zeros behind the end. The ``available`` lowest bits of ``bits`` are still to be read."""
    if available < 32:
        word = np.int64(0)
        if at < stop:
            word = np.int64(words[at])
        bits = (bits & ((np.int64(1) << available) - 1)) << 32 | word
        available += 32
        at += 1
    return bits, available, at


@cuda.jit(device=True)
def _symbol(lookup: Any, table: int, bits: int, available: int) -> int:
    """The entry for the next code."""
    code = bits >> (available - 16) & 0xFFFF
    entry = np.int64(lookup[table + (code >> 16 - _SHORT_BITS)])
    if entry == 0:
        entry = np.int64(lookup[table + _SHORT + (code & 0xFF)])
    return entry


@cuda.jit(device=True)
def _value(bits: int, available: int, size: int) -> int:
    """The value of the next ``size`` bits, at least 1 (ITU-T T.81, F.2.2.1, EXTEND)."""
    value = bits >> (available - size) & ((np.int64(1) << size) - 1)
    if value >> (size - 1) == 0:
        value += 1 - (np.int64(1) << size)
    return value


@cuda.jit(device=True)
def _decode_interval(  # noqa: C901 - in one piece, as state lives in registers
    words: Any, entry: Any, image: Any, lookup: Any, coefficients: Any
) -> bool:
    """Decode an interval; False where it is damaged."""
    start, num_bits = np.int64(entry[_WORD]), 8 * np.int64(entry[_BYTES])
    luma = image[_WIDE] * image[_HIGH]
    parts = luma + image[_COMPONENTS] - 1
    at, stop = start, start + (num_bits + 31 >> 5)
    bits, available = np.int64(0), np.int64(0)
    mean0, mean1, mean2 = np.int64(0), np.int64(0), np.int64(0)
    for mcu in range(entry[_WANTED]):
        for part in range(parts):
            is_stored = mcu >= entry[_SKIPPED]
            block = np.int64(entry[_BLOCK]) + (mcu - entry[_SKIPPED]) * parts + part
            table = 0 if part < luma else 2 * _TABLE
            bits, available, at = _load(words, bits, available, at, stop)
            symbol = _symbol(lookup, table, bits, available)
            if symbol == _NO_CODE:
                return False
            available -= symbol >> 8
            size, difference = symbol & 0xFF, np.int64(0)
            if size > 0:
                difference = _value(bits, available, size)
                available -= size
            if part < luma:
                mean0 += difference
                mean = mean0
            elif part == luma:
                mean1 += difference
                mean = mean1
            else:
                mean2 += difference
                mean = mean2
            if not -32768 <= mean < 32768:
                return False
            if is_stored:
                coefficients[block, 0] = mean
            table += _TABLE
            place = 0
            while place < 63:
                bits, available, at = _load(words, bits, available, at, stop)
                symbol = _symbol(lookup, table, bits, available)
                if symbol == _NO_CODE:
                    return False
                available -= symbol >> 8
                if symbol & 0xFF == 0:  # nothing but zeros to the end
                    break
                place += (symbol >> 4 & 15) + 1
                if place > 63:
                    return False
                size = symbol & 15
                if size > 0:
                    value = _value(bits, available, size)
                    available -= size
                    if is_stored:
                        coefficients[block, place] = value
            if 32 * (at - start) - available > num_bits:
                return False
    # Nothing is left of a whole interval but the bits that fill up its last byte.
    return entry[_WANTED] < entry[_ALL] or num_bits - (32 * (at - start) - available) < 8


# Where the coefficient of a vertical and a horizontal frequency is in zigzag order.
_ZIGZAG = np.argsort(
    [8 * row + column for row, column in sorted(
        ((row, column) for row in range(8) for column in range(8)),
        key=lambda cell: (sum(cell), cell[0] if sum(cell) % 2 else cell[1]),
    )]
).astype(np.int32)  # fmt: skip
assert all(COLUMNS[_ZIGZAG] == np.tile(8 * np.arange(8), 8))


@cuda.jit
def transform_blocks(coefficients: Any, images: Any, quantizers: Any, samples: Any) -> None:
    """K2: the inverse discrete cosine transform of a block in every eight threads, first of its columns, then its rows.

    Args:
        coefficients: see :func:`decode_intervals`.
        images, quantizers: see :class:`Gathered`.
        samples: (64 x blocks,) uint8, filled: of each image luma, blue and red, each row by row.
    """
    basis, zigzag = cuda.const.array_like(BASIS), cuda.const.array_like(_ZIGZAG)
    columns = cuda.shared.array((_BLOCKS_PER_GROUP, 8, 9), numba.float32)  # nine, so that banks do not collide
    local, lane = cuda.threadIdx.x // 8, cuda.threadIdx.x % 8
    number = cuda.blockIdx.x * _BLOCKS_PER_GROUP + local
    image = images[cuda.blockIdx.y]
    inside = number < image[_COUNT]
    luma = image[_WIDE] * image[_HIGH]
    parts = luma + image[_COMPONENTS] - 1
    part = number % max(parts, 1)
    component = max(part - luma + 1, 0)
    if inside:
        for y in range(8):
            total = np.float32(0.0)
            for frequency in range(8):
                place = zigzag[8 * frequency + lane]
                coefficient = np.float32(coefficients[image[_FIRST] + number, place])
                factor = quantizers[cuda.blockIdx.y, 64 * component + place] * basis[8 * frequency + y]
                total += coefficient * factor
            columns[local, y, lane] = total
    cuda.syncthreads()
    if inside:
        mcu = number // parts
        row, column = mcu // image[_ACROSS], mcu % image[_ACROSS]
        width, plane = 8 * image[_ACROSS], image[_SAMPLE]
        if component == 0:
            width *= image[_WIDE]
            row, column = row * image[_HIGH] + part // image[_WIDE], column * image[_WIDE] + part % image[_WIDE]
        else:
            plane += (luma + component - 1) * 64 * (image[_COUNT] // parts)
        first = plane + (8 * row + lane) * width + 8 * column
        for x in range(8):
            total = np.float32(128.5)
            for frequency in range(8):
                total += columns[local, lane, frequency] * basis[8 * frequency + x]
            samples[first + x] = np.uint8(np.int32(min(max(total, np.float32(0.0)), np.float32(255.0))))


class Decoder:
    """A batch's place on the GPU.

    Args:
        batch: what is decoded, copied there.
    """

    def __init__(self, batch: Gathered) -> None:
        self.words, self.intervals, self.images, self.quantizers, self.flags = map(cuda.to_device, batch)
        self.tables = cuda.to_device(lookup_tables())
        self.coefficients = cuda.to_device(np.zeros((batch.num_blocks, 64), np.int16))
        self.samples = cuda.to_device(np.zeros(64 * batch.num_blocks, np.uint8))
        self._groups = -(-len(batch.intervals) // _INTERVALS_PER_GROUP)
        self._group_grid = -(-int(batch.images[:, _COUNT].max()) // _BLOCKS_PER_GROUP), len(batch.images)

    def entropy(self) -> None:
        """Start K1."""
        arguments = self.words, self.intervals, self.images, self.tables, self.coefficients, self.flags
        decode_intervals[self._groups, _INTERVALS_PER_GROUP](*arguments)

    def transform(self) -> None:
        """Start K2."""
        arguments = self.coefficients, self.images, self.quantizers, self.samples
        transform_blocks[self._group_grid, 8 * _BLOCKS_PER_GROUP](*arguments)


def planes_of(samples: NDArray[np.uint8], image: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """The planes of one image, as arrays of rows."""
    luma, components = int(image[_WIDE] * image[_HIGH]), int(image[_COMPONENTS])
    mcus = int(image[_COUNT]) // (luma + components - 1)
    start, planes = int(image[_SAMPLE]), list[NDArray[np.uint8]]()
    for component in range(components):
        size = 64 * mcus * (luma if component == 0 else 1)
        width = 8 * int(image[_ACROSS]) * (int(image[_WIDE]) if component == 0 else 1)
        planes.append(samples[start : start + size].reshape(-1, width))
        start += size
    return planes


# The microbenchmark


def crops_of(dataset: Any, size: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random-resized crops as a loader plans them: (B, 2) offset and size of what they are read from, (B, 4) covers."""
    stored, covers = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    schedule = respipe.schedules.Constant(size)
    loader = respipe.Loader(
        dataset, schedule, batch_size=min(number, len(dataset)), backend="tiles", with_spec=True, num_threads=1
    )
    while sum(map(len, stored)) < number:
        for _, _, plan in loader:
            job = route(dataset, plan)
            stored.append(np.stack([job.rows["offset"], job.rows["length"]], axis=1))
            covers.append(job.covers)
    return np.concatenate(stored)[:number], np.concatenate(covers)[:number]


def milliseconds(work: Callable[[], object], rounds: int) -> list[float]:
    """What the GPU takes for some work, once it has done it before."""
    work()
    times: list[float] = []
    for _ in range(rounds):
        start, end = cuda.event(), cuda.event()
        if torch.cuda.is_available():
            # Some milliseconds, in which Numba starts the rest. That takes it longer than the kernels may run.
            torch.cuda._sleep(10_000_000)  # noqa: SLF001 - there is no public one
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def measure(dataset: Any, size: int, *, batch_size: int, rounds: int) -> dict[str, Any]:
    """Times of one batch, medians of the rounds."""
    stored, covers = crops_of(dataset, size, batch_size)
    gathering: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        batch = gather(dataset.buffers[0], stored, covers)
        gathering.append(1e3 * (time.perf_counter() - start))
    decoder = Decoder(batch)
    words, stream = cuda.device_array_like(batch.words), cuda.stream()

    def copy() -> None:
        words.copy_to_device(batch.words, stream=stream)
        stream.synchronize()

    entropy, transform = milliseconds(decoder.entropy, rounds), milliseconds(decoder.transform, rounds)
    assert not decoder.flags.copy_to_host().any(), "no image is damaged"
    shuffled = Decoder(batch._replace(intervals=np.random.default_rng(0).permutation(batch.intervals)))
    total = statistics.median(entropy) + statistics.median(transform)
    return {
        "size": size,
        "crops": batch_size,
        "intervals": len(batch.intervals),
        "bytes_per_interval": float(batch.intervals[:, _BYTES].mean()),
        "bytes_per_crop": batch.words.nbytes / batch_size,
        "gather_ms_one_thread": min(gathering),
        "copy_ms": statistics.median(milliseconds(copy, rounds)),
        "k1_ms": statistics.median(entropy),
        "k1_unsorted_ms": statistics.median(milliseconds(shuffled.entropy, rounds)),
        "k2_ms": statistics.median(transform),
        "total_ms": total,
        "crops_per_second": 1e3 * batch_size / total,
    }


def main(texts: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help=".beton of `respipe convert`, or a folder with a subfolder per class")
    parser.add_argument("--sizes", type=int, nargs="+", default=(224, 128, 96), help="sides of the crops, in pixels")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args(texts)
    if not cuda.is_available():
        parser.error("needs a CUDA GPU, or NUMBA_ENABLE_CUDASIM=1 to try the kernels out on a CPU, very slowly")
    with TemporaryDirectory() as folder:
        path = arguments.data
        if path.is_dir():
            path = Path(folder, "tiles.beton")
            respipe.convert(arguments.data, path)
        with closing(respipe.open_dataset(path)) as dataset:
            results = [
                measure(dataset, size, batch_size=arguments.batch_size, rounds=arguments.rounds)
                for size in arguments.sizes
            ]
    report = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "simulator",
        "numba_cuda": version("numba-cuda"),
        "rule": f"decoding on the GPU is given up unless total_ms at 224 px is below {STOP_MILLISECONDS:g}",
        "go_on": next((0 < one["total_ms"] < STOP_MILLISECONDS for one in results if one["size"] == 224), None),
        "results": results,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
