"""Speed and size of conversion beside FFCV's own writer, both with the same number of workers.

The ways to convert run interleaved, round after round, each time in a process of its own that has imported everything
before the clock starts.

    python tools/bench_conversion.py path/to/imagenet/train --json benchmarks/conversion.json
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.conversion_report import HEADINGS, Result, make_results, rows
from bench.converters import CONVERTERS, Job, Measured, measure_conversion, turn
from bench.report import machine, show_table, versions, write_json
from rich.console import Console

logger = logging.getLogger("bench_conversion")


def main() -> None:
    """Measure, and write what was asked for."""
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    rounds: dict[str, list[Measured]] = {name: [] for name in arguments.conversions}
    with tempfile.TemporaryDirectory(dir=arguments.workdir) as folder:
        job = Job(
            data=arguments.data,
            num_images=arguments.images,
            target=Path(folder, "images.beton"),
            num_workers=arguments.workers,
        )
        for number in range(arguments.rounds):
            for name in turn(arguments.conversions, number):
                rounds[name].append(measure_conversion(name, job))
                logger.info("round %d: %s in %.1f s", number + 1, name, rounds[name][-1].seconds)
    results = make_results(rounds, num_images=arguments.images)
    show_table(Console(width=120), HEADINGS, rows(results), as_markdown=arguments.markdown)
    if arguments.json:
        write_json(arguments.json, report(results, arguments))


def parse_arguments(texts: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one subfolder of JPEGs per class")
    parser.add_argument(
        "--conversions",
        type=lambda text: tuple(text.split(",")),
        default=tuple(CONVERTERS),
        help=f"names, with commas between; all unless given. Known: {', '.join(CONVERTERS)}",
    )
    parser.add_argument("--images", type=int, default=2000, help="to convert, DATA's again and again")
    parser.add_argument("--workers", type=int, default=2, help="processes of each conversion, and cores")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for results, machine and versions")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument(
        "--workdir", type=Path, help="where files are written for a while (default: the system's place)"
    )
    arguments = parser.parse_args(texts)
    if not arguments.data.is_dir():
        parser.error(f"DATA must be a folder with one subfolder of JPEGs per class; got {arguments.data}")
    unknown = [name for name in arguments.conversions if name not in CONVERTERS]
    if unknown:
        parser.error(f"--conversions must be of {', '.join(CONVERTERS)}; got {', '.join(unknown)}")
    if min(arguments.images, arguments.workers, arguments.rounds) < 1:
        parser.error("--images, --workers and --rounds must be at least 1")
    return arguments


def report(results: Sequence[Result], arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything worth keeping of a run. Names neither the machine nor its paths."""
    shown = ("images", "workers", "rounds")
    return {
        "machine": machine(),
        "versions": versions(),
        "command": "python tools/bench_conversion.py DATA "
        + " ".join(f"--{name} {getattr(arguments, name)}" for name in shown),
        "settings": {"data": arguments.data.name, **{name: getattr(arguments, name) for name in shown}},
        "results": [asdict(result) for result in results],
    }


if __name__ == "__main__":
    main()
