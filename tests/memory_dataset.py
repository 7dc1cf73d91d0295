"""A dataset in memory, for tests that need no file format."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from respipe.conversion.pyramid import encode
from respipe.conversion.settings import ConversionSettings
from respipe.errors import CorruptImageError
from respipe.storage.dataset import Level
from respipe.storage.fields import Column


def smooth_image(height: int, width: int, *, seed: int) -> Image.Image:
    """An image with structure at several scales, as photographs have and JPEG keeps well."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height), 3)
    fine = Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).resize((width, height), 3)
    return Image.blend(coarse, fine, 0.3)


def jpeg_bytes(image: Image.Image, *, quality: int = 90, tiled: bool = False) -> NDArray[np.uint8]:
    """The image as JPEG, as Pillow writes it or as respipe's conversion does."""
    if tiled:
        return np.frombuffer(encode(image, ConversionSettings(quality=quality))[0], np.uint8)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return np.frombuffer(buffer.getvalue(), np.uint8)


class MemoryDataset:
    """JPEGs in one array, at full size and each of ``fractions`` of it, as a pyramid ``.beton`` has them.

    With ``tiled`` crops can be cut out of their bytes, as in files that respipe converts.

    ``damage(index, level)`` overwrites part of a stored image; ``check`` then fails where ``checksums`` is set, and
    otherwise only decoding does.
    """

    path = Path("memory.beton")
    classes: tuple[str, ...] | None = None
    kind = fingerprint = "memory"

    def __init__(
        self,
        shapes: list[tuple[int, int]],
        *,
        fractions: tuple[float, ...] = (),
        checksums: bool = True,
        tiled: bool = False,
    ) -> None:
        self.tiled = tiled
        self.labels = np.arange(len(shapes), dtype=np.int64) % 3
        self.fields = {"label": Column(kind="class", values=self.labels)}
        self._checksums = checksums
        self._damaged: set[tuple[int, int]] = set()
        encoded: list[NDArray[np.uint8]] = []
        levels: list[Level] = []
        for fraction in (1.0, *fractions):
            sides = [(max(1, round(h * fraction)), max(1, round(w * fraction))) for h, w in shapes]
            images = [
                jpeg_bytes(
                    smooth_image(*shapes[i], seed=i).resize((width, height), Image.Resampling.LANCZOS), tiled=tiled
                )
                for i, (height, width) in enumerate(sides)
            ]
            start = sum(map(len, encoded))
            lengths = np.array([len(image) for image in images], np.int64)
            levels.append(
                Level(
                    name=f"image_{fraction}",
                    heights=np.array([height for height, _ in sides], np.int32),
                    widths=np.array([width for _, width in sides], np.int32),
                    buffers=np.zeros(len(shapes), np.int32),
                    offsets=start + np.cumsum(lengths) - lengths,
                    sizes=lengths,
                    raw=np.zeros(len(shapes), np.bool_),
                )
            )
            encoded.extend(images)
        self.levels = tuple(levels)
        self.buffers: tuple[NDArray[np.uint8], ...] = (np.concatenate(encoded),)
        self.fetched = None
        self.closed = False

    def __len__(self) -> int:
        return len(self.labels)

    def encoded(self, index: int, level: int = 0) -> NDArray[np.uint8]:
        """See :class:`respipe.storage.dataset.Dataset`."""
        stored = self.levels[level]
        assert stored.buffers is not None
        offset = stored.offsets[index]
        return self.buffers[stored.buffers[index]][offset : offset + stored.sizes[index]]

    def damage(self, index: int, level: int = 0) -> None:
        """Make a stored image undecodable."""
        self.encoded(index, level)[: self.encoded(index, level).size // 2] = 0
        self._damaged.add((index, level))

    def check(self, index: int, level: int = 0) -> None:
        """See :class:`respipe.storage.dataset.Dataset`."""
        if self._checksums and (index, level) in self._damaged:
            raise CorruptImageError(f"{self.path}: sample {index} ({self.name(index)}) differs", index=index)

    def name(self, index: int) -> str:
        """See :class:`respipe.storage.dataset.Dataset`."""
        return f"folder/{index}.jpg"

    def revision(self) -> int:
        """See :class:`respipe.storage.dataset.Dataset`."""
        return 0

    def close(self) -> None:
        """See :class:`respipe.storage.dataset.Dataset`."""
        self.closed = True
