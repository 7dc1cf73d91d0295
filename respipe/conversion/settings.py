"""What a conversion is asked to make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, cast, get_args

from respipe.checks import check_int
from respipe.storage.beton.format import MAX_PAGE_SIZE, PAGE_SIZE

Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]
Keep = Literal["nothing", "pixels", "bytes"]

_CHANNELS = 3

# At 224 px and below crops of larger levels than this are mostly reduced, and errors of high frequencies with them.
_REDUCED = 384
_QUALITY_REDUCED, _QUALITY = 80, 89


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionSettings:
    """How images are stored.

    Args:
        levels: longest side in pixels of each stored resolution, largest first.
        quality: of re-encoded JPEGs, 1 to 100 as libjpeg counts it, but with the tables of
            :mod:`respipe.jpeg.quantization`; or one for each level, of which the last holds for all levels
            beyond, and which an image has that fits the level. Default: 80 for levels above 384 px, whose crops are
            mostly reduced when they are loaded, and 89 for smaller ones.
        subsampling: of the colour in re-encoded JPEGs.
        restart_interval: MCUs per restart interval in re-encoded JPEGs, at most; 0 for JPEGs without restart markers,
            whose crops cannot be cut out of the compressed bytes.
        keep: what of a source JPEG stays in the first level where it fits: "nothing", it is re-encoded; its "pixels",
            as its coefficients are coded anew with restart markers; or its "bytes".

    Raises:
        ValueError: a field is out of range.
    """

    levels: tuple[int, ...] = (512, 344, 224, 144, 96)
    quality: int | tuple[int, ...] | None = None
    subsampling: Subsampling = "4:2:0"
    restart_interval: int = 2
    keep: Keep = "nothing"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(check_int("levels", level, least=1) for level in _each(self.levels)))
        if not self.levels or any(a <= b for a, b in pairwise(self.levels)):
            raise ValueError(
                f"`levels` must be one or more sides in pixels, falling; got {self.levels}. Try (512, 256, 128)."
            )
        if self.page_size > MAX_PAGE_SIZE:
            raise ValueError(f"`levels` must fit into a page of {MAX_PAGE_SIZE} bytes; got {self.levels}. Use smaller.")
        qualities = self._qualities()
        object.__setattr__(self, "quality", qualities if len(set(qualities)) != 1 else qualities[0])
        if not qualities:
            raise ValueError("`quality` must be a number, for all or for each level; got none. 90 is a good start.")
        if self.subsampling not in get_args(Subsampling):
            raise ValueError(f"`subsampling` must be one of {get_args(Subsampling)}; got {self.subsampling!r}.")
        check_int("restart_interval", self.restart_interval, least=0)
        if self.keep not in get_args(Keep):
            raise ValueError(f"`keep` must be one of {get_args(Keep)}; got {self.keep!r}.")
        if self.keep == "pixels" and not self.restart_interval:
            raise ValueError(
                '`keep` must be "nothing" or "bytes" where `restart_interval` is 0; got "pixels". Try an interval of 2.'
            )

    def _qualities(self) -> tuple[int, ...]:
        if self.quality is None:
            return tuple(_QUALITY_REDUCED if level > _REDUCED else _QUALITY for level in self.levels)
        return tuple(check_int("quality", quality, least=1, most=100) for quality in _each(self.quality))

    @property
    def names(self) -> tuple[str, ...]:
        """Field names of the levels: ``image``, ``image_344``, and so on."""
        return ("image", *(f"image_{level}" for level in self.levels[1:]))

    @property
    def page_size(self) -> int:
        """Bytes of a page: FFCV's default, or more where one sample with all its levels might not fit in there."""
        most = 2 * sum(_CHANNELS * level * level for level in self.levels)  # JPEG stays below twice the raw size
        return max(PAGE_SIZE, 1 << (most - 1).bit_length())

    def quality_of(self, longest_side: int) -> int:
        """Quality of an image so large, in pixels: that of the smallest level which it fits."""
        qualities = self._qualities()
        fitting = sum(longest_side <= level for level in self.levels)
        return qualities[min(max(fitting, 1), len(qualities)) - 1]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        qualities = self._qualities()
        quality = qualities[0] if len(qualities) == 1 else list(qualities)
        return {**asdict(self), "levels": list(self.levels), "quality": quality}


def _each(value: Any) -> Iterable[Any]:
    """Several values, or one alone."""
    return cast("Iterable[Any]", value) if isinstance(value, Iterable) else (value,)
