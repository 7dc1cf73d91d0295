"""Results of a benchmark as data, as a table and with what is needed to repeat them."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    *("torch", "torchvision", "ffcv", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "timm", "numba", "numpy", "pillow"),
)

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], str]]
"""The cells of a table by their headings."""


def number(field: str, form: str) -> Callable[[Row], str]:
    """The cell of a number; a dash where it was not measured."""
    return lambda row: "-" if row[field] is None else format(row[field], form)


RESULTS: Columns = {
    "loader": number("loader", ""),
    "px": number("size", ""),
    "images/s": number("images_per_second", ",.0f"),
    "range": lambda row: f"{row['low']:,.0f}-{row['high']:,.0f}",
    "x FFCV 500": number("ratio_to_ffcv", ".2f"),
    "time / 224": number("time_relative_to_224", ".2f"),
    "PSNR": lambda row: "exact" if row["exact"] else number("psnr", ".1f")(row),
    "KB read": lambda row: "-" if row["bytes_read"] is None else f"{row['bytes_read'] / 1000:.1f}",
    "KB stored": lambda row: f"{row['bytes_per_image'] / 1000:.0f}",
    "first batch": lambda row: f"{row['first_batch_seconds']:.1f} s",
}
SEVERAL_SIZES: Columns = {
    "loader": number("loader", ""),
    "sizes of each crop": lambda row: " ".join(map(str, row["sizes"])),
    "crops/s": number("crops_per_second", ",.0f"),
    "range": RESULTS["range"],
    "time / largest alone": number("time_relative_to_largest", ".2f"),
}


def make_results(
    timings: Mapping[tuple[str, Sizes], Timing],
    *,
    titles: Mapping[str, str],
    baseline: str,
    fidelity: Mapping[tuple[str, int], Fidelity],
    bytes_per_image: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Results of all single sizes, in the order of the timings.

    Args:
        timings: by loader and sizes.
        titles: names of the loaders to show.
        baseline: the loader that ratios refer to.
        fidelity: by loader and size, where measured.
        bytes_per_image: stored on disk, all resolutions together, by loader.

    Returns:
        for each the title of the ``loader`` and the ``size`` in pixels; ``images_per_second``, ``low`` and ``high``,
        median, least and most of the rounds; ``ratio_to_ffcv``, throughput over the baseline's at the same size, and
        ``time_relative_to_224``, time per image over that at 224 px, medians over the rounds of the ratio within a
        round, in which a busy machine slows both sides; ``psnr`` in dB, None where it is infinite, and whether the
        pixels are ``exact``ly the reference's; ``bytes_read``, encoded bytes that an image is decoded from on average;
        ``bytes_per_image``; and ``first_batch_seconds``. None stands for what was not measured.
    """
    results: list[dict[str, Any]] = []
    for (name, sizes), timing in timings.items():
        if len(sizes) != 1:
            continue
        at_224, reference = timings.get((name, (224,))), timings.get((baseline, sizes))
        crops = fidelity.get((name, sizes[0]))
        results.append(
            {
                "loader": titles[name],
                "size": sizes[0],
                "images_per_second": timing.median,
                "low": min(timing.rates),
                "high": max(timing.rates),
                "ratio_to_ffcv": _ratio(timing, reference) if reference else None,
                "time_relative_to_224": _ratio(at_224, timing) if at_224 else None,
                "psnr": crops.psnr if crops is not None and math.isfinite(crops.psnr) else None,
                "exact": None if crops is None else math.isinf(crops.psnr),
                "bytes_read": None if crops is None else crops.bytes_read,
                "bytes_per_image": bytes_per_image[name],
                "first_batch_seconds": timing.first_batch_seconds,
            }
        )
    return results


def make_several_sizes_results(
    timings: Mapping[tuple[str, Sizes], Timing], *, titles: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Results of loaders that yield each crop at several sizes, and their time over that of the largest size alone."""
    return [
        {
            "loader": titles[name],
            "sizes": sizes,
            "crops_per_second": timing.median,
            "low": min(timing.rates),
            "high": max(timing.rates),
            "time_relative_to_largest": _ratio(timings[name, (max(sizes),)], timing),
        }
        for (name, sizes), timing in timings.items()
        if len(sizes) > 1
    ]


def to_json(
    results: Sequence[Row],
    several_sizes: Sequence[Row],
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
        "results": [_rounded(result) for result in results],
        "several_sizes": [_rounded(result) for result in several_sizes],
    }


def cells(columns: Columns, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The cells of a table as text."""
    return [tuple(show(row) for show in columns.values()) for row in rows]


def to_table(columns: Columns, rows: Sequence[Row]) -> Table:
    """A table for the terminal, a rule between loaders."""
    table, lines = Table(), cells(columns, rows)
    for place, heading in enumerate(columns):
        table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        table.add_row(*line, end_section=following is None or following[0] != line[0])
    return table


def to_markdown(columns: Columns, rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [[*columns], ["---" if place == 0 else "---:" for place in range(len(columns))], *cells(columns, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show_table(console: Console, columns: Columns, rows: Sequence[Row], *, as_markdown: bool) -> None:
    """Print a table for the terminal, or one to copy from it."""
    if as_markdown:
        console.print(to_markdown(columns, rows), soft_wrap=True, highlight=False, markup=False)
    else:
        console.print(to_table(columns, rows))


def race(
    makers: Mapping[str, Iterator[object]], rounds: int, visit: Callable[[Iterator[object]], float]
) -> dict[str, list[float]]:
    """What visits to each of some streams of batches measured: in rounds of all in turn, once each has made a batch."""
    for batches in makers.values():
        next(batches)
    times: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, batches in makers.items():
            times[name].append(visit(batches))
    return times


def medians(times: Mapping[str, Sequence[float]], digits: int) -> dict[str, float]:
    """The median of each one's rounds."""
    return {name: round(statistics.median(found), digits) for name, found in times.items()}


def times_faster(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How many times longer than the first one each other takes: medians of the ratios within the rounds."""
    first, *others = times
    return {
        name: round(statistics.median(b / a for a, b in zip(times[first], times[name], strict=True)), 2)
        for name in others
    }


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


def _rounded(fields: Row) -> dict[str, Any]:
    """Four significant digits are more than any of this is good for."""
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in fields.items()}
