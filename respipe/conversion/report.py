"""What a conversion did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from respipe.conversion.settings import ConversionSettings
from respipe.conversion.sources.base import Source
from respipe.errors import ConversionError
from respipe.storage.beton.pages import SIZE, PageRecord, is_shared


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleNote:
    """Something to know about one source sample.

    Args:
        index: its number in the source.
        name: its path relative to the source folder.
        reason: what is wrong with it.
    """

    index: int
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelReport:
    """One stored resolution.

    Args:
        name: field name.
        longest_side: limit in pixels.
        num_images: images with bytes of their own on this level; the others share those of the level before.
        num_bytes: of those images together.
    """

    name: str
    longest_side: int
    num_images: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionReport:
    """What a conversion did, over all its interrupted runs.

    Args:
        target: the file.
        num_samples: in the source.
        num_images: samples stored.
        num_kept: of these, samples whose largest level has the source's own pixels or bytes; see ``keep``.
        num_reencoded: of these, the others.
        traits: how many stored samples had each property that conversion takes care of ("CMYK", "PNG",
            "larger than 512 px", ...). A sample may have several; a kept one can only be grayscale.
        quarantined: samples that cannot be decoded and were left out.
        warned: samples that were decoded although their decoder complained: worth a look.
        levels: stored resolutions.
        num_resumed: samples that an earlier, interrupted run had finished.
        seconds: of this run.
    """

    target: str
    num_samples: int
    num_images: int
    num_kept: int
    num_reencoded: int
    traits: dict[str, int]
    quarantined: tuple[SampleNote, ...]
    warned: tuple[SampleNote, ...]
    levels: tuple[LevelReport, ...]
    num_resumed: int
    seconds: float

    @property
    def num_corrupt(self) -> int:
        """Samples left out."""
        return len(self.quarantined)

    @property
    def num_bytes(self) -> int:
        """Bytes of all stored images together."""
        return sum(level.num_bytes for level in self.levels)

    @property
    def images_per_second(self) -> float:
        """Source samples per second of this run."""
        return (self.num_samples - self.num_resumed) / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        computed = ("num_corrupt", "num_bytes", "images_per_second")
        return {**asdict(self), **{name: getattr(self, name) for name in computed}}

    def lasting(self) -> dict[str, Any]:
        """As JSON values, what of it belongs to the file and not to the run that made it."""
        return {name: value for name, value in asdict(self).items() if name not in _OF_A_RUN}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConversionReport:
        """The report of a file that an earlier run has finished, from :meth:`lasting` and the target."""
        made: dict[str, Any] = {
            **values,
            "quarantined": tuple(SampleNote(**note) for note in values["quarantined"]),
            "warned": tuple(SampleNote(**note) for note in values["warned"]),
            "levels": tuple(LevelReport(**level) for level in values["levels"]),
            "num_resumed": values["num_samples"],
            "seconds": 0.0,
        }
        return cls(**made)


_OF_A_RUN = {"target", "num_resumed", "seconds"}


class TooManyCorruptError(ConversionError):
    """More images cannot be decoded than allowed.

    Args:
        message: what to do.
        report: the conversion so far, with the list of them.
    """

    def __init__(self, message: str, report: ConversionReport) -> None:
        super().__init__(message, report)
        self.report = report

    def __str__(self) -> str:
        return str(self.args[0])


def make_report(
    records: Sequence[PageRecord],
    source: Source,
    settings: ConversionSettings,
    target: Path,
    num_resumed: int,
    seconds: float,
) -> ConversionReport:
    """Sum up the pages of a conversion."""
    images = np.concatenate([np.zeros((0, len(settings.levels), 4), np.int64), *(record.images for record in records)])
    own = ~is_shared(images)
    traits = sum((Counter(record.traits) for record in records), Counter[str]())
    num_kept = sum(record.num_kept for record in records)

    def notes(found: list[tuple[int, str]]) -> tuple[SampleNote, ...]:
        return tuple(SampleNote(index=index, name=source.name(index), reason=reason) for index, reason in found)

    return ConversionReport(
        target=str(target),
        num_samples=len(source),
        num_images=len(images),
        num_kept=num_kept,
        num_reencoded=len(images) - num_kept,
        traits=dict(sorted(traits.items())),
        quarantined=notes([note for record in records for note in record.quarantined]),
        warned=notes([note for record in records for note in record.warned]),
        levels=tuple(
            LevelReport(
                name=settings.names[level],
                longest_side=side,
                num_images=int(own[:, level].sum()),
                num_bytes=int(images[own[:, level], level, SIZE].sum()),
            )
            for level, side in enumerate(settings.levels)
        ),
        num_resumed=num_resumed,
        seconds=seconds,
    )
