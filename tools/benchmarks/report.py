"""Results of a benchmark as data, as a table and with what is needed to repeat them."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import respipe
from respipe.processes import num_cores
from respipe.throughput import Sizes, Timing

from .contender import Fidelity

_PACKAGES = (
    "torch",
    "torchvision",
    "ffcv",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "timm",
    "numba",
    "numpy",
    "pillow",
)
_HEADINGS = (
    "loader",
    "px",
    "images/s",
    "range",
    "x FFCV 500",
    "time / 224",
    "PSNR",
    "KB read",
    "KB stored",
    "first batch",
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One loader at one size.

    Args:
        loader: its name.
        size: side of the images in pixels.
        images_per_second, low, high: median, least and most of the rounds.
        ratio_to_ffcv: throughput over that of stock FFCV, 500 px, at the same size; None where that was not measured.
        time_relative_to_224: time per image over the same loader's time per image at 224 px; None without 224 px. Both
            ratios are medians over the rounds of the ratio within a round, in which a busy machine slows both sides.
        psnr: in dB; None where it was not measured, and where it is infinite.
        exact: whether the pixels are those of the reference, None where that was not measured.
        bytes_read: encoded bytes that an image is decoded from, on average; None where that was not measured.
        bytes_per_image: stored on disk, all resolutions together.
        first_batch_seconds: from constructing the loader to its first batch.
    """

    loader: str
    size: int
    images_per_second: float
    low: float
    high: float
    ratio_to_ffcv: float | None
    time_relative_to_224: float | None
    psnr: float | None
    exact: bool | None
    bytes_read: float | None
    bytes_per_image: float
    first_batch_seconds: float


@dataclass(frozen=True, kw_only=True)
class SeveralSizesResult:
    """One loader that yields each crop at several sizes.

    Args:
        loader: its name.
        sizes: sides in pixels.
        crops_per_second, low, high: median, least and most of the rounds.
        time_relative_to_largest: time per crop over the same loader's time per crop at the largest size alone.
    """

    loader: str
    sizes: Sizes
    crops_per_second: float
    low: float
    high: float
    time_relative_to_largest: float


def make_results(
    timings: Mapping[tuple[str, Sizes], Timing],
    *,
    titles: Mapping[str, str],
    baseline: str,
    fidelity: Mapping[tuple[str, int], Fidelity],
    bytes_per_image: Mapping[str, float],
) -> list[Result]:
    """Results of all single sizes, in the order of the timings.

    Args:
        timings: by loader and sizes.
        titles: names of the loaders to show.
        baseline: the loader that ratios refer to.
        fidelity: by loader and size, where measured.
        bytes_per_image: by loader.
    """
    results: list[Result] = []
    for (name, sizes), timing in timings.items():
        if len(sizes) != 1:
            continue
        at_224, reference = timings.get((name, (224,))), timings.get((baseline, sizes))
        crops = fidelity.get((name, sizes[0]))
        results.append(
            Result(
                loader=titles[name],
                size=sizes[0],
                images_per_second=timing.median,
                low=min(timing.rates),
                high=max(timing.rates),
                ratio_to_ffcv=_ratio(timing, reference) if reference else None,
                time_relative_to_224=_ratio(at_224, timing) if at_224 else None,
                psnr=crops.psnr if crops is not None and math.isfinite(crops.psnr) else None,
                exact=None if crops is None else math.isinf(crops.psnr),
                bytes_read=None if crops is None else crops.bytes_read,
                bytes_per_image=bytes_per_image[name],
                first_batch_seconds=timing.first_batch_seconds,
            )
        )
    return results


def make_several_sizes_results(
    timings: Mapping[tuple[str, Sizes], Timing], *, titles: Mapping[str, str]
) -> list[SeveralSizesResult]:
    """Results of loaders that yield each crop at several sizes, against their largest size alone."""
    return [
        SeveralSizesResult(
            loader=titles[name],
            sizes=sizes,
            crops_per_second=timing.median,
            low=min(timing.rates),
            high=max(timing.rates),
            time_relative_to_largest=_ratio(timings[name, (max(sizes),)], timing),
        )
        for (name, sizes), timing in timings.items()
        if len(sizes) > 1
    ]


def to_json(
    results: Sequence[Result],
    several_sizes: Sequence[SeveralSizesResult],
    *,
    command: str,
    settings: Mapping[str, Any],
    definitions: Mapping[str, str],
) -> dict[str, Any]:
    """Everything worth keeping of a run. Names neither the machine nor its paths."""
    return {
        "machine": machine(),
        "versions": versions(),
        "command": command,
        "settings": dict(settings),
        "definitions": dict(definitions),
        "results": [_rounded(asdict(result)) for result in results],
        "several_sizes": [_rounded(asdict(result)) for result in several_sizes],
    }


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The cells of the table of results, as text, under :data:`_HEADINGS`."""
    return [
        (
            result.loader,
            str(result.size),
            f"{result.images_per_second:,.0f}",
            f"{result.low:,.0f}-{result.high:,.0f}",
            _number(result.ratio_to_ffcv, ".2f"),
            _number(result.time_relative_to_224, ".2f"),
            "exact" if result.exact else _number(result.psnr, ".1f"),
            "-" if result.bytes_read is None else f"{result.bytes_read / 1000:.1f}",
            f"{result.bytes_per_image / 1000:.0f}",
            f"{result.first_batch_seconds:.1f} s",
        )
        for result in results
    ]


def several_sizes_rows(results: Sequence[SeveralSizesResult]) -> list[tuple[str, ...]]:
    """The cells of the table of several sizes, as text."""
    return [
        (
            result.loader,
            " ".join(map(str, result.sizes)),
            f"{result.crops_per_second:,.0f}",
            f"{result.low:,.0f}-{result.high:,.0f}",
            f"{result.time_relative_to_largest:.2f}",
        )
        for result in results
    ]


RESULT_HEADINGS = _HEADINGS
SEVERAL_SIZES_HEADINGS = ("loader", "sizes of each crop", "crops/s", "range", "time / largest alone")


def to_table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal, a rule between loaders."""
    table = Table()
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
    for row, following in zip(cells, [*cells[1:], None], strict=True):
        table.add_row(*row, end_section=following is None or following[0] != row[0])
    return table


def to_markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---" if place == 0 else "---:" for place in range(len(headings))], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show_table(console: Console, headings: Sequence[str], cells: Sequence[Sequence[str]], *, as_markdown: bool) -> None:
    """Print a table for the terminal, or one to copy from it."""
    if as_markdown:
        console.print(to_markdown(headings, cells), soft_wrap=True, highlight=False, markup=False)
    else:
        console.print(to_table(headings, cells))


def write_json(file: Path, report: Mapping[str, Any]) -> None:
    """Write a report, and make the folder where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")


def command_words(tool: str, arguments: argparse.Namespace, options: Sequence[str]) -> list[str]:
    """The command that repeats a run, with these of its options and without the paths of this machine."""
    words = ["python", "-m", f"tools.benchmarks.{tool}", "DATA"]
    for option in options:
        value = getattr(arguments, option)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [f"--{option.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else text]
    return words


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system and, where there is one, the GPU of this machine (Linux)."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": num_cores(),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.system(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter here, where installed."""
    found = {"python": platform.python_version(), "respipe": respipe.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _ratio(timing: Timing, reference: Timing) -> float:
    """How many times faster one is than the other: the median over the rounds."""
    return statistics.median(ours / theirs for ours, theirs in zip(timing.rates, reference.rates, strict=True))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    """Four significant digits are more than any of this is good for."""
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in fields.items()}
