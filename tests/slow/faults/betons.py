"""Mutated ``.beton`` files, opened and loaded from memory with unreadable pages around it."""

from __future__ import annotations

import os
import struct
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from respipe.conversion import convert
from respipe.conversion.pyramid import build_pyramid
from respipe.conversion.settings import ConversionSettings
from respipe.conversion.sources.beton import BetonSource
from respipe.conversion.verification import find_stray_bytes
from respipe.errors import CorruptImageError, MissingBackendError, RespipeError, StorageError
from respipe.loading.loader import Loader
from respipe.schedules import Constant
from respipe.storage.beton import dataset as beton
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.beton.format import HEADER
from respipe.storage.dataset import Bytes
from respipe.storage.upright import BrokenImageError

from .guarded import GuardedMemory
from .images import picture, sound_images
from .mutations import mutated_beton
from .oracles import crop_of_part, crop_of_whole, is_close, overflows

_ROOM = 1 << 20
_SIZE = 24
_NUM_IMAGES = 5
_PAGE_SIZE = 1 << 15

KINDS = ("converted", "plain")
"""By respipe, with checksums; and as FFCV's writer lays files out, some of it raw pixels."""


def converted_beton(rng: np.random.Generator, folder: Path) -> bytes:
    """A converted file of a few small images on small pages."""
    for number in range(_NUM_IMAGES):
        path = folder / "source" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(rng).save(path)
    with mock.patch.object(ConversionSettings, "page_size", _PAGE_SIZE):
        convert(folder / "source", folder / "x.beton", levels=(96, 48), num_workers=0, overwrite=True)
    return (folder / "x.beton").read_bytes()


def plain_beton(rng: np.random.Generator) -> bytes:
    """A file without checksums: JPEGs, and one image as raw pixels."""
    images = [(0, sound_images("JPEG", rng)) for _ in range(_NUM_IMAGES - 1)]
    start, rows, table, data = 4096, b"", b"", b""
    stored = [(mode, *sound.shape, sound.data) for mode, sound in images]
    stored.append((1, 9, 7, rng.bytes(3 * 9 * 7)))
    for number, (mode, height, width, content) in enumerate(stored):
        rows += struct.pack("<BHHQ3xq", mode, width, height, start + len(data), number % 3)
        table += struct.pack("<QQQ", number, start + len(data), len(content))
        data += content
    fields = b"".join(struct.pack("<B16s1024x", kind, name) for kind, name in ((2, b"image"), (1, b"label")))
    head = struct.pack("<HHIQQ", 2, 2, 1 << 23, len(stored), start + len(data)) + fields + rows
    return head.ljust(start, b"\0") + data + table


class BetonCases:
    """Numbered cases, each the same in every run.

    Args:
        target: the backend that loads what can be opened, or "conversion".
        seed: of all cases.
    """

    def __init__(self, target: str, seed: int) -> None:
        self._target = target
        self._seed = seed
        self._guarded = GuardedMemory(_ROOM)
        self._folder = Path(tempfile.mkdtemp(prefix="respipe-faults-"))
        rng = np.random.default_rng([seed, 1 << 40])
        self._sound = {"converted": converted_beton(rng, self._folder), "plain": plain_beton(rng)}
        self._other = {"converted": converted_beton(rng, self._folder), "plain": plain_beton(rng)}

    def run(self, number: int) -> str:
        """Carry out a case; returns what came of it, beginning with "BAD" where that must not be."""
        rng = np.random.default_rng([self._seed, number])
        kind = KINDS[number % 2]
        data = mutated_beton(rng, self._sound[kind], self._other[kind])
        path = self._folder / f"{kind}.beton"
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        with mock.patch.object(beton, "map_file", self._map), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on what it makes of damage
            try:
                dataset = BetonDataset(path)
            except StorageError:
                return "refused"
            outside = _outside(dataset, len(data))
            if outside:
                return f"BAD: {outside}"
            if kind == "converted" and data != self._sound[kind] and _unseen(dataset, self._sound[kind]):
                return "BAD: a changed byte goes unseen"
            return self._convert(path) if self._target == "conversion" else self._load(dataset)

    def _map(self, path: Path) -> tuple[os.stat_result, Bytes]:
        """Stand-in for mapping a file: its bytes, right before a page that cannot be read."""
        data = path.read_bytes()
        if len(data) < HEADER.itemsize:
            raise StorageError(f"{path} is too short")
        start = self._guarded.place(data)
        memory = self._guarded.bytes[start:]
        memory.flags.writeable = False
        return path.stat(), memory

    def _load(self, dataset: BetonDataset) -> str:
        raw = any(bool(level.raw.any()) for level in dataset.levels)
        if (self._target == "dali" and raw) or (self._target == "tiles" and not dataset.tiled):
            return "opened, not for this backend"
        found: dict[int, NDArray[np.uint8]] = {}
        try:
            with Loader(
                dataset,
                Constant(_SIZE),
                batch_size=len(dataset),
                training=False,
                backend=self._target,
                dtype=torch.uint8,
                normalize=None,
                num_threads=1,
                on_corrupt="quarantine",
                corrupt_budget=len(dataset),
                with_spec=True,
                stall_timeout=60,
            ) as loader:
                for images, labels, plan in loader:
                    for row, index in enumerate(plan.indices.tolist()):
                        if labels[row] != dataset.labels[index]:
                            return "BAD: another label"
                        pixels = np.ascontiguousarray(images[row].permute(1, 2, 0).numpy())
                        if not self._right(dataset, plan, row, pixels):
                            return "BAD: other pixels"
                        found[index] = pixels
        except MissingBackendError:
            raise
        except (RespipeError, ValueError):
            return "error while loading"
        return "loaded" if len(found) == len(dataset) else "loaded in part, the rest quarantined"

    def _right(self, dataset: BetonDataset, plan: object, row: int, found: NDArray[np.uint8]) -> bool:
        from respipe.backends.routing import route

        routed = route(dataset, plan)  # pyright: ignore[reportArgumentType]
        index = int(plan.indices[row])  # pyright: ignore[reportAttributeAccessIssue]
        number, box, late = int(routed.levels[row]), routed.boxes[row, 0], self._target == "tiles"
        level = dataset.levels[number]
        shape = int(level.heights[index]), int(level.widths[index])
        data = dataset.encoded(index, number).tobytes()
        if level.raw[index]:
            data = b"P6 %d %d 255\n%b" % (shape[1], shape[0], data)
        expected = [
            crop_of_whole(data, shape, box, size=_SIZE, late=late),
            crop_of_whole(data, shape, box, size=_SIZE, late=late, tolerant=True),
            crop_of_part(data, box, size=_SIZE, late=late) if data.startswith(b"\xff\xd8") else None,
        ]
        return any(
            is_close(self._target, found, one) or (late and overflows(found, one))
            for one in expected
            if one is not None
        )

    def _convert(self, path: Path) -> str:
        try:
            source = BetonSource(path)
        except StorageError:
            return "refused"
        outcomes: set[str] = set()
        for index in range(min(len(source), _NUM_IMAGES)):
            try:
                build_pyramid(source.read(index), ConversionSettings(levels=(96, 48)))
            except (CorruptImageError, BrokenImageError):
                outcomes.add("quarantined")
            else:
                outcomes.add("converted")
        return " and ".join(sorted(outcomes))


def _outside(dataset: BetonDataset, length: int) -> str | None:
    """What in an open file leads outside of it."""
    for level in dataset.levels:
        if (level.offsets < 0).any() or (level.sizes < 1).any() or (level.offsets + level.sizes > length).any():
            return f"{level.name} leads outside the file"
    return None


def _unseen(dataset: BetonDataset, sound: bytes) -> bool:
    """Whether an opened, changed file passes for the sound one in everything that ``verify`` looks at."""
    problems = [
        dataset.problem(index, number) for number in range(len(dataset.levels)) for index in range(len(dataset))
    ]
    if any(problems) or find_stray_bytes(dataset, most=1):
        return False
    header = np.frombuffer(sound[: HEADER.itemsize], HEADER)[0]
    table = int(header["alloc_table_ptr"])
    (memory,) = dataset.buffers
    # Whoever changes the checksums too, which lie in the appendix, makes another sound file.
    return memory[table - 64 : table].tobytes() == sound[table - 64 : table]
