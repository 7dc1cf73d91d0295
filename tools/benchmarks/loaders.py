"""Throughput and fidelity of respipe's backends beside those of other loaders, by image size.

All loaders do the same work: random resized crops of area 0.08 to 1, mirrored half of the time, as uint8 batches in
host memory or on a GPU (channels first or last as each has it), with the same number of threads or worker processes, on
as many processor cores. They run interleaved, each in a process of its own. The times are those of the steady state;
the start of a loader is told separately.

    python -m tools.benchmarks.loaders path/to/imagenet/val --json results.json --picture results.png
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from respipe.plots import plot_throughput
from respipe.throughput import Plan, measure
from tools.benchmarks.command import log_progress, parsed, parser_of, start_loaders
from tools.benchmarks.contender import EPOCH_IMAGES, Fidelity, folder_samples
from tools.benchmarks.fidelity import DEFINITION, choose_samples, draw_uniforms
from tools.benchmarks.process import LoaderProcess
from tools.benchmarks.registry import BASELINE, LOADERS
from tools.benchmarks.report import (
    RESULTS,
    SEVERAL_SIZES,
    command_words,
    make_results,
    make_several_sizes_results,
    show_table,
    to_json,
    write_json,
)

RSNET_SIZES = (224, 192, 160, 128, 96)
SEED = 0


def main() -> None:
    """Measure, and write what was asked for."""
    arguments = parse_arguments(sys.argv[1:])
    log_progress(__name__)
    console = Console(width=120)
    with ExitStack() as stack:
        loaders = start_loaders(
            arguments, stack, required=arguments.loaders is not None, level_margin=arguments.level_margin
        )
        fidelity = measure_fidelity(arguments, loaders)
        bytes_per_image = {name: loader.bytes_per_image() for name, loader in loaders.items()}
        plan = Plan(
            visits={name: visited_sizes(name, arguments) for name in loaders},
            batch_size=arguments.batch_size,
            num_threads=arguments.threads,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
        )
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("measuring", total=plan.num_visits)
            timings = measure(loaders, plan, progress=lambda done, _: bar.update(task, completed=done))
    titles = {name: LOADERS[name].title for name in loaders}
    results = make_results(
        timings, titles=titles, baseline=BASELINE, fidelity=fidelity, bytes_per_image=bytes_per_image
    )
    several_sizes = make_several_sizes_results(timings, titles=titles)
    for columns, rows in ((RESULTS, results), (SEVERAL_SIZES, several_sizes)):
        if rows:
            show_table(console, columns, rows, as_markdown=arguments.markdown)
    report = to_json(
        results,
        several_sizes,
        command=command_line(arguments),
        settings=shown_settings(arguments, list(loaders)),
        definitions={"psnr": DEFINITION, "ratios": "median over the rounds of the ratio within each round"},
    )
    if arguments.json:
        write_json(arguments.json, report)
    if arguments.picture:
        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        plot_throughput(report, arguments.picture)


def parse_arguments(texts: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(
        __doc__, sizes=(224, 160, 128, 112, 96, 56), device="cpu", threads=2, batch_size=64, rounds=5, seconds=2.0
    )
    parser.add_argument("--level-margin", type=float, default=1.0, help="of respipe's loaders")
    parser.add_argument("--crops", type=int, default=200, help="crops that PSNR is measured on; 0 leaves it out")
    sizes = ",".join(map(str, RSNET_SIZES))
    parser.add_argument("--rsnet", action="store_true", help=f"measure {sizes} px from one crop too, respipe only")
    parser.add_argument("--picture", type=Path, help="file for a picture of throughput by size")
    return parsed(parser, texts)


def measure_fidelity(
    arguments: argparse.Namespace, loaders: dict[str, LoaderProcess]
) -> dict[tuple[str, int], Fidelity]:
    """Fidelity of every loader at every size."""
    if not arguments.crops:
        return {}
    paths, _ = folder_samples(arguments.data)
    samples = choose_samples(arguments.data, paths, arguments.crops, seed=SEED)
    uniforms = draw_uniforms(len(samples), seed=SEED)
    return {
        (name, size): loader.fidelity(samples, uniforms, size)
        for name, loader in loaders.items()
        for size in arguments.sizes
    }


def visited_sizes(name: str, arguments: argparse.Namespace) -> list[tuple[int, ...]]:
    """What one loader is measured at. Several sizes of a crop also need their largest alone."""
    visited = [(size,) for size in arguments.sizes]
    if arguments.rsnet and not LOADERS[name].peer:
        visited += [sizes for sizes in ((max(RSNET_SIZES),), RSNET_SIZES) if sizes not in visited]
    # What is compared runs soon after each other: several sizes after their largest alone.
    return sorted(visited, key=max, reverse=True)


def command_line(arguments: argparse.Namespace) -> str:
    """The command that repeats a run, without the paths of this machine."""
    options = ["sizes", *(["loaders"] if arguments.loaders else [])]
    options += ["threads", "batch_size", "level_margin", "rounds", "seconds", "crops"]
    options += ["device"] if arguments.device != "cpu" else []
    return shlex.join([*command_words("loaders", arguments, options), *(["--rsnet"] if arguments.rsnet else [])])


def shown_settings(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """What a reader must know to judge the figures."""
    return {
        "data": arguments.data.name,
        "images": len(folder_samples(arguments.data)[0]),
        "loaders": list(names),
        "sizes": list(arguments.sizes),
        "threads": arguments.threads,
        "batch_size": arguments.batch_size,
        "level_margin": arguments.level_margin,
        "rounds": arguments.rounds,
        "seconds_per_visit": arguments.seconds,
        "crops_for_psnr": arguments.crops,
        "epoch_images": EPOCH_IMAGES,
        "device": arguments.device,
        "output": "uint8 (B, 3, S, S) on the device, random resized crop (area 0.08 to 1), mirrored half of the time",
    }


if __name__ == "__main__":
    main()
