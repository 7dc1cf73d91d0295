"""Mutated images through every backend, through the cutter and through conversion."""

from __future__ import annotations

import dataclasses
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from respipe.backends.base import Backend
from respipe.backends.registry import make_backend
from respipe.backends.routing import route
from respipe.conversion.pyramid import build_pyramid, encode
from respipe.conversion.settings import ConversionSettings
from respipe.errors import CorruptImageError
from respipe.jpeg import cut as cutting
from respipe.jpeg.header import JpegError, read_header
from respipe.planning.batch import BatchPlan
from respipe.schedules.step import Step
from respipe.storage.dataset import Bytes, Level
from respipe.storage.fields import Column
from respipe.storage.upright import BrokenImageError, decode

from .guarded import GuardedMemory
from .mutations import mutated
from .oracles import crop_of_part, crop_of_whole, is_close, overflows

_ROOM = 1 << 18
_SIZE = 24
# Mean difference in grey levels that encoding anew at quality 90 may make, at most in damage of strong colours. That of
# two images is beyond 40.
_LOSS = 30


@dataclasses.dataclass(frozen=True)
class Sound:
    """An undamaged encoded image: its kind, bytes, height and width."""

    kind: str
    data: bytes
    shape: tuple[int, int]

    @property
    def tiled(self) -> bool:
        """Whether respipe's conversion wrote it."""
        return self.kind.startswith("tiled")


def picture(rng: np.random.Generator) -> Image.Image:
    """An image with structure at two scales, of some 50 to 110 pixels a side."""
    height, width = (int(side) for side in rng.integers(50, 111, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height), 3)
    fine = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((width, height), 3)
    return Image.blend(coarse, fine, 0.4)


def sound_images(kind: str, rng: np.random.Generator) -> Sound:
    """One image of a kind: tiled, JPEG of several codings, or another format."""
    image = picture(rng)
    shape = (image.height, image.width)
    if kind.startswith("tiled"):
        subsampling = {"tiled": "4:2:0", "tiled 4:4:4": "4:4:4", "tiled 4:2:2": "4:2:2"}[kind]
        return Sound(kind, encode(image, ConversionSettings(subsampling=subsampling, restart_interval=2))[0], shape)
    options = {
        "JPEG": {},
        "JPEG progressive": {"progressive": True},
        "JPEG gray": {},
        "JPEG restarts": {"restart_marker_blocks": 1},
    }.get(kind, {})
    buffer = io.BytesIO()
    image = image.convert("L") if kind == "JPEG gray" else image
    image.save(buffer, kind.split()[0], **options)
    return Sound(kind, buffer.getvalue(), shape)


TILED = ("tiled", "tiled 4:4:4", "tiled 4:2:2")
JPEGS = ("JPEG", "JPEG progressive", "JPEG gray", "JPEG restarts")
OTHERS = ("PNG", "WEBP", "TIFF", "BMP", "GIF")

KINDS = {
    "tiles": TILED,
    "ffcv": (*TILED, *JPEGS),
    "dali": (*TILED, *JPEGS),
    "reference": (*TILED, *JPEGS, *OTHERS),
    "cutting": (*TILED, *JPEGS),
    "conversion": (*TILED, *JPEGS, *OTHERS),
}


class OneImage:
    """A dataset of one stored image without a checksum, whose last byte is the last that can be read."""

    path = Path("one.beton")
    classes: tuple[str, ...] | None = None
    kind = fingerprint = "one"
    tiled = True

    def __init__(self) -> None:
        self.guarded = GuardedMemory(_ROOM)
        self.buffers: tuple[Bytes, ...] = (self.guarded.bytes,)
        self.labels = np.zeros(1, np.int64)
        self.fields = {"label": Column(kind="class", values=self.labels)}
        self.heights, self.widths = np.ones(1, np.int32), np.ones(1, np.int32)
        self.offsets, self.sizes = np.zeros(1, np.int64), np.ones(1, np.int64)
        self.levels = (
            Level(
                name="image",
                heights=self.heights,
                widths=self.widths,
                buffers=np.zeros(1, np.int32),
                offsets=self.offsets,
                sizes=self.sizes,
                raw=np.zeros(1, np.bool_),
            ),
        )

    def hold(self, data: bytes, shape: tuple[int, int], before: bytes) -> None:
        """Become a dataset of this image, which lies right behind another one."""
        self.offsets[0], self.sizes[0] = self.guarded.place(data, before), len(data)
        self.heights[0], self.widths[0] = shape

    def __len__(self) -> int:
        return 1

    def encoded(self, index: int, level: int = 0) -> Bytes:
        return self.buffers[0][self.offsets[0] :]

    fetched = None

    def check(self, index: int, level: int = 0) -> None:
        """There is no checksum."""

    def name(self, index: int) -> str:
        return "one"

    def revision(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is held open."""


class ImageCases:
    """Numbered cases, each the same in every run.

    Args:
        target: "tiles", "ffcv", "dali", "reference", "cutting" or "conversion".
        seed: of all cases.
    """

    def __init__(self, target: str, seed: int) -> None:
        self._target = target
        self._seed = seed
        self._dataset = OneImage()
        self._backend: Backend | None = None
        if target in ("tiles", "ffcv", "dali", "reference"):
            device = torch.device("cpu")
            self._backend = make_backend(target, self._dataset, device=device, num_threads=1)

    def run(self, number: int) -> str:
        """Carry out a case; returns what came of it, beginning with "BAD" where that must not be."""
        rng = np.random.default_rng([self._seed, number])
        kinds = KINDS[self._target]
        sound = sound_images(kinds[number % len(kinds)], rng)
        other = sound_images(kinds[number % len(kinds)], rng)
        data = mutated(rng, sound.data, other.data) or b"\0"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on what it makes of damage
            if self._target == "conversion":
                return _convert(data, ("nothing", "pixels", "bytes")[number // len(kinds) % 3])
            box = _box(rng, sound.shape)
            return self._cut(data, box) if self._target == "cutting" else self._decode(data, sound, other, box)

    def _decode(self, data: bytes, sound: Sound, other: Sound, box: NDArray[np.float64]) -> str:
        assert self._backend is not None
        self._dataset.hold(data, sound.shape, before=other.data)
        plan = BatchPlan(
            step=Step((_SIZE,), 1),
            epoch=0,
            number=0,
            indices=np.zeros(1, np.int64),
            boxes=box[None],
            flips=np.zeros(1, np.bool_),
        )
        self._backend.submit(route(self._dataset, plan))
        try:
            found = self._backend.collect()[0][0].numpy()
        except CorruptImageError:
            self._backend.reset()
            return "error"
        return self._judge(found, data, sound, other, box)

    def _judge(
        self, found: NDArray[np.uint8], data: bytes, sound: Sound, other: Sound, box: NDArray[np.float64]
    ) -> str:
        late = self._target == "tiles"
        whole = crop_of_whole(data, sound.shape, box, size=_SIZE, late=late)
        if whole is not None and is_close(self._target, found, whole):
            return "as Pillow decodes it"
        undamaged = crop_of_whole(sound.data, sound.shape, box, size=_SIZE, late=late)
        if undamaged is not None and is_close(self._target, found, undamaged):
            return "as before the damage"
        if data.startswith(b"\xff\xd8"):
            part = crop_of_part(data, box, size=_SIZE, late=late)
            if part is not None and is_close(self._target, found, part):
                return "as Pillow decodes the part"
            if part is not None and late and overflows(found, part):
                return "as Pillow decodes it, but for overflow"
        if self._target == "dali":
            early = crop_of_whole(data, sound.shape, box, size=_SIZE, late=late, tolerant=True)
            if early is not None and is_close(self._target, found, early):
                return "as libjpeg decodes it before an error"
        stranger = crop_of_whole(other.data, sound.shape, box, size=_SIZE, late=late)
        if stranger is not None and is_close(self._target, found, stranger):
            return "BAD: another image"
        return "BAD: other pixels"

    def _cut(self, data: bytes, box: NDArray[np.float64]) -> str:
        try:
            part, (_, _, height, width) = cutting.cut(data, tuple(box.astype(int).tolist()))
        except JpegError:
            return "error"
        header = read_header(part)
        if (header.height, header.width) != (height, width):
            return "BAD: another size than told"
        return "whole" if part is data else "cut"


def _box(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """A crop of whole pixels: any part of the image, or a part that reaches over its edge."""
    sides = np.ceil(rng.uniform(0.1, 1, 2) * shape)
    place = np.floor(rng.random(2) * (np.array(shape) - sides + 1))
    return np.concatenate([place + (rng.integers(-3, 4, 2) if rng.random() < 0.2 else 0), sides])


def _convert(data: bytes, keep: str) -> str:
    settings = ConversionSettings(levels=(96, 48), keep=keep)  # pyright: ignore[reportArgumentType]
    try:
        pyramid = build_pyramid(data, settings)
    except BrokenImageError:
        return "error"
    decoded = decode(data).image
    box = np.array([0, 0, decoded.height, decoded.width], np.float64)
    expected = crop_of_whole(data, (decoded.height, decoded.width), box, size=_SIZE, late=False)
    if expected is None:
        return "BAD: Pillow refuses what was converted"
    found = crop_of_whole(_as_bytes(decoded), (decoded.height, decoded.width), box, size=_SIZE, late=False)
    assert found is not None
    if not is_close("conversion", found, expected):
        return "BAD: other pixels"
    stored = pyramid.images[0]
    whole = np.array([0, 0, stored.height, stored.width], np.float64)
    again = crop_of_whole(stored.data, (stored.height, stored.width), whole, size=_SIZE, late=False)
    if again is None or np.abs(again.astype(int) - expected).mean() > _LOSS:
        return "BAD: stored pixels differ"
    return "converted, with a warning" if pyramid.warnings else "converted"


def _as_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PPM")
    return buffer.getvalue()
