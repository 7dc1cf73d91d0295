"""Results of the benchmark of conversions, as data and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .converters import BASELINE, CONVERTERS, Measured

HEADINGS = ("conversion", "images/s", "range", "x FFCV", "KB/image", "GB for ImageNet")
_IMAGENET_IMAGES = 1_281_167


@dataclass(frozen=True, kw_only=True)
class Result:
    """One way to convert.

    Args:
        conversion: its name.
        images_per_second, low, high: median, least and most of the rounds.
        ratio_to_ffcv: throughput over that of FFCV's writer, the median over the rounds of the ratio within a round;
            None where that was not measured.
        bytes_per_image: of all stored resolutions together.
    """

    conversion: str
    images_per_second: float
    low: float
    high: float
    ratio_to_ffcv: float | None
    bytes_per_image: float


def make_results(rounds: Mapping[str, Sequence[Measured]], *, num_images: int) -> list[Result]:
    """Sum up the rounds of each conversion."""
    reference = rounds.get(BASELINE)
    results: list[Result] = []
    for name, measured in rounds.items():
        rates = [num_images / one.seconds for one in measured]
        ratios = [
            theirs.seconds / one.seconds for one, theirs in zip(measured, reference or (), strict=bool(reference))
        ]
        results.append(
            Result(
                conversion=CONVERTERS[name].title,
                images_per_second=statistics.median(rates),
                low=min(rates),
                high=max(rates),
                ratio_to_ffcv=statistics.median(ratios) if ratios else None,
                bytes_per_image=measured[0].bytes_per_image,
            )
        )
    return results


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The cells of the table, as text, under :data:`HEADINGS`."""
    return [
        (
            result.conversion,
            f"{result.images_per_second:,.0f}",
            f"{result.low:,.0f}-{result.high:,.0f}",
            "-" if result.ratio_to_ffcv is None else f"{result.ratio_to_ffcv:.2f}",
            f"{result.bytes_per_image / 1000:.1f}",
            f"{result.bytes_per_image * _IMAGENET_IMAGES / 1e9:.0f}",
        )
        for result in results
    ]
