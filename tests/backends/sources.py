"""The kinds of stored data that backends are tested on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from respipe.storage.dataset import Level
from tests.backends.tiles.jpegs import SUBSAMPLINGS, encode
from tests.memory_dataset import MemoryDataset, jpeg_bytes, smooth_image

SHAPES = [(96, 128), (128, 96), (64, 64), (150, 90), (40, 56), (80, 200), (33, 47)]
"""Height and width of the images of every source but the folder."""


def pyramid() -> MemoryDataset:
    """JPEGs at three sizes."""
    return MemoryDataset(SHAPES, fractions=(0.5, 0.25))


def tiled() -> MemoryDataset:
    """The same with restart markers and their index, as respipe converts them."""
    return MemoryDataset(SHAPES, fractions=(0.5, 0.25), tiled=True)


def tiled_kinds() -> MemoryDataset:
    """Tiled JPEGs of every subsampling and several restart intervals, as ``respipe convert --keep pixels`` has them."""
    return _of_encoded(
        [
            encode(smooth_image(*shape, seed=i), subsampling=SUBSAMPLINGS[i % len(SUBSAMPLINGS)], interval=1 + i // 4)
            for i, shape in enumerate(SHAPES)
        ],
        tiled=True,
    )


def split(whole: MemoryDataset) -> MemoryDataset:
    """The same samples in two files of one dataset: those of odd numbers lie in the second."""
    level_buffers = np.arange(len(whole), dtype=np.int32) % 2
    files: list[list[NDArray[np.uint8]]] = [[], []]
    levels = list[Level]()
    for number, level in enumerate(whole.levels):
        offsets = np.empty_like(level.offsets)
        for index, file in enumerate(level_buffers.tolist()):
            offsets[index] = sum(map(len, files[file]))
            files[file].append(whole.encoded(index, number))
        levels.append(dataclasses.replace(level, buffers=level_buffers, offsets=offsets))
    parts = MemoryDataset(SHAPES, tiled=whole.tiled)
    parts.levels, parts.buffers = tuple(levels), tuple(np.concatenate(file) for file in files)
    return parts


def grayscale() -> MemoryDataset:
    """JPEGs of one channel."""
    return _of_encoded([jpeg_bytes(smooth_image(*shape, seed=i).convert("L")) for i, shape in enumerate(SHAPES)])


def _of_encoded(encoded: list[NDArray[np.uint8]], *, tiled: bool = False) -> MemoryDataset:
    dataset = MemoryDataset(SHAPES, tiled=tiled)
    sizes = np.array([len(data) for data in encoded], np.int64)
    dataset.levels = (dataclasses.replace(dataset.levels[0], offsets=np.cumsum(sizes) - sizes, sizes=sizes),)
    dataset.buffers = (np.concatenate(encoded),)
    return dataset


class _Images:
    """What FFCV's writer asks of a dataset."""

    def __len__(self) -> int:
        return len(SHAPES)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.asarray(smooth_image(*SHAPES[index], seed=index)), index % 3


def write_ffcv(path: Path, *, mode: str) -> Path:
    """A ``.beton`` by FFCV's own writer, ``mode`` "jpg" or "raw"."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode=mode), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(_Images())
    return path
