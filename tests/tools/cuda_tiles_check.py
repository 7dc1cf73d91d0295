"""Decodes crops with the kernels of ``tools.benchmarks.cuda_tiles``, and compares them with the tiles backend.

A script, since Numba must be told of its simulator of GPUs before it is imported::

    NUMBA_ENABLE_CUDASIM=1 python -m tests.tools.cuda_tiles_check FILE.beton NUMBER SIDE

takes so many crops of at most so many pixels a side, in turn from all levels of the file, then damages some of them.
Without the variable it runs on a GPU. Exits with 0 where all holds.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from respipe.backends.tiles.decode import Region, _covered_intervals, covering_region
from respipe.backends.tiles.entropy import standard_lookup
from respipe.jpeg.compiled_header import Layout, read_layout
from respipe.storage.open import open_dataset
from tests.backends.tiles.test_decode import decode
from tools.benchmarks.cuda_tiles import Decoder, Gathered, gather, planes_of

LOOKUP = standard_lookup().tolist()
_TABLE = len(LOOKUP) // 4


def coefficients_of(data: NDArray[np.uint8], layout: Layout, region: Region) -> NDArray[np.int64]:
    """(blocks, 64): what the entries of the tile decoder's own table say, one symbol at a time."""
    luma = (layout.mcu_height >> 3) * (layout.mcu_width >> 3)
    parts = luma + layout.components - 1
    across = region.right - region.left
    found = np.zeros(((region.bottom - region.top) * across * parts, 64), np.int64)
    for start, end, row, column, wanted, _ in _covered_intervals(data, layout, region).tolist():
        coded = data[start:end].tobytes().replace(b"\xff\x00", b"\xff") + bytes(8)
        stream, at, means = int.from_bytes(coded, "big"), 8 * len(coded), [0, 0, 0]
        for mcu in range(wanted):
            for part in range(parts):
                component = max(part - luma + 1, 0)
                block, place = np.zeros(64, np.int64), -1
                while place < 63:
                    table = (2 if component else 0) + (1 if place >= 0 else 0)
                    code = stream >> at - 16 & 0xFFFF
                    entry = LOOKUP[table * _TABLE + (code >> 5)] or LOOKUP[table * _TABLE + 2048 + (code & 0xFF)]
                    value = (entry >> 24 & 0xFFFF ^ 0x8000) - 0x8000
                    if entry & 0x80:
                        at -= entry & 0x3F
                        size = value
                        value = stream >> at - size & (1 << size) - 1
                        value = value if value >> size - 1 else value - (1 << size) + 1
                        at -= size
                    else:
                        at -= entry >> 52
                    place += entry >> 8 & 0xFF
                    if place < 64:
                        block[place] = value
                means[component] += int(block[0])
                block[0] = means[component]
                if column + mcu >= 0:
                    found[(row * across + column + mcu) * parts + part] = block
    return found


class Crop:
    """A part of a stored image.

    Args:
        memory: the file.
        place: offset and size of the image.
        cover: top, left, height and width.
    """

    def __init__(self, memory: NDArray[np.uint8], place: tuple[int, int], cover: NDArray[np.int64]) -> None:
        self.place, self.cover = place, cover
        self.data = memory[place[0] : sum(place)]
        self.layout = read_layout(self.data)
        top, left, height, width = cover.tolist()
        self.region = covering_region(self.layout, top, left, top + height, left + width)


def crops_of(path: str, number: int, side: int) -> tuple[NDArray[np.uint8], list[Crop]]:
    """A file, and crops of its images from all levels in turn."""
    dataset, rng, crops = open_dataset(path), np.random.default_rng(0), list[Crop]()
    (memory,) = dataset.buffers
    for i in range(number):
        sample, level = int(rng.integers(len(dataset))), dataset.levels[i % len(dataset.levels)]
        shape = np.array([level.heights[sample], level.widths[sample]], np.int64)
        size = np.minimum(rng.integers(1, side + 1, 2), shape)
        cover = np.concatenate([rng.integers(0, shape - size + 1), size])
        crops.append(Crop(memory, (int(level.offsets[sample]), int(level.sizes[sample])), cover))
    return memory, crops


def gathered(memory: NDArray[np.uint8], crops: list[Crop]) -> Gathered:
    return gather(memory, np.array([crop.place for crop in crops]), np.array([crop.cover for crop in crops]))


def check_sound(memory: NDArray[np.uint8], crops: list[Crop]) -> None:
    """Coefficients are those of tiles to the last bit, and samples within a level."""
    batch = gathered(memory, crops)
    assert (np.diff(batch.intervals[:, 1]) <= 0).all(), "the longest first"
    decoder = Decoder(batch)
    decoder.entropy()
    decoder.transform()
    assert not decoder.flags.copy_to_host().any()
    coefficients, samples = decoder.coefficients.copy_to_host(), decoder.samples.copy_to_host()
    for crop, image in zip(crops, batch.images, strict=True):
        found = coefficients[image[0] : image[0] + image[1]]
        assert found.any()
        assert np.array_equal(found, coefficients_of(crop.data, crop.layout, crop.region))
        expected = decode(crop.data, crop.region)
        assert expected is not None
        for plane, wanted in zip(planes_of(samples, image), expected, strict=True):
            assert plane.shape == wanted.shape
            assert np.abs(plane.astype(int) - wanted).max() <= 1


def check_damaged(memory: NDArray[np.uint8], crops: list[Crop], *, seed: int) -> int:
    """An image that tiles finds damaged is flagged, no other one is, and nothing but its part is written; how many."""
    rng, damaged = np.random.default_rng(seed), memory.copy()
    for crop in crops[::2]:
        start, end = _covered_intervals(crop.data, crop.layout, crop.region)[0, :2]
        for _ in range(2):
            # No byte becomes a marker.
            damaged[crop.place[0] + rng.integers(start, max(end, start + 1))] ^= 1 << rng.integers(0, 6)
    before, after = (Decoder(gathered(one, crops)) for one in (memory, damaged))
    before.entropy()
    after.entropy()
    flags = after.flags.copy_to_host()
    sound, found = (decoder.coefficients.copy_to_host() for decoder in (before, after))
    for crop, image, flag in zip(crops, gathered(memory, crops).images, flags, strict=True):
        data = damaged[crop.place[0] : sum(crop.place)]
        assert bool(flag) == (decode(data, crop.region) is None)
        part = slice(image[0], image[0] + image[1])
        if np.array_equal(data, crop.data):
            assert np.array_equal(sound[part], found[part])
        elif not flag:
            assert np.array_equal(found[part], coefficients_of(data, crop.layout, crop.region))
    return int(flags.sum())


def main() -> None:
    path, number, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    memory, crops = crops_of(path, number, side)
    check_sound(memory, crops)
    distinct = list({crop.place: crop for crop in crops}.values())  # damage to one must not be another's
    assert sum(check_damaged(memory, distinct, seed=seed) for seed in range(3)) > 0, "some of the damage shows"


if __name__ == "__main__":
    main()
