"""What the benchmarks that race several loaders have in common: their command line, and the start of the loaders."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .contender import Settings
from .prepare import prepare_files
from .process import LoaderProcess, start_processes
from .registry import LOADERS


def parser_of(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser of the arguments that all of them take.

    Args:
        description: docstring of the command.
        defaults: of ``sizes``, ``loaders`` (None for all that are installed), ``device``, ``threads``, ``batch_size``,
            ``rounds`` and ``seconds``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one subfolder of JPEGs per class")
    parser.add_argument("--sizes", type=_integers, help="sides, with commas between")
    parser.add_argument("--loaders", type=lambda text: tuple(text.split(",")), help=f"of {', '.join(LOADERS)}")
    parser.add_argument("--device", help="where batches end up, cpu or cuda; DALI decodes there too")
    parser.add_argument("--threads", type=int, help="of each loader, or worker processes; and cores")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, help="times that each loader is visited at each size")
    parser.add_argument("--seconds", type=float, help="length of a visit that only loads")
    parser.add_argument("--json", type=Path, help="file for results, machine and versions")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir(), "respipe-bench"),
                        help="where converted files are kept for the next run (default: %(default)s)")  # fmt: skip
    parser.set_defaults(**defaults)
    return parser


def parsed(parser: argparse.ArgumentParser, texts: Sequence[str]) -> argparse.Namespace:
    """Read the command line, and refuse what all of them refuse."""
    arguments = parser.parse_args(texts)
    if not arguments.data.is_dir():
        parser.error(f"DATA must be a folder with one subfolder of JPEGs per class; got {arguments.data}")
    unknown = [name for name in arguments.loaders or () if name not in LOADERS]
    if unknown:
        parser.error(f"--loaders must be of {', '.join(LOADERS)}; got {', '.join(unknown)}")
    if min(arguments.threads, arguments.batch_size, arguments.rounds, *arguments.sizes) < 1:
        parser.error("--threads, --batch-size, --rounds and --sizes must be at least 1")
    return arguments


def log_progress(name: str) -> None:
    """Show how far a benchmark is, which calls itself so."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for logger in (name, "tools.benchmarks", "respipe.throughput"):
        logging.getLogger(logger).setLevel(logging.INFO)


def start_loaders(
    arguments: argparse.Namespace, stack: ExitStack, *, required: bool = False, **settings: Any
) -> dict[str, LoaderProcess]:
    """Convert what the loaders read, and start their processes, which end with the stack.

    Args:
        arguments: of :func:`parsed`.
        stack: owns the processes.
        required: raise for a loader that is not installed, instead of leaving it out.
        settings: further ones.
    """
    names = arguments.loaders or tuple(LOADERS)
    wanted = [file for name in names if (file := LOADERS[name].file)]
    files = prepare_files(arguments.data, wanted, arguments.workdir, num_workers=arguments.threads)
    common = Settings(
        data=arguments.data, files=files, batch_size=arguments.batch_size, num_threads=arguments.threads,
        device=arguments.device, **settings,
    )  # fmt: skip
    return start_processes(names, common, stack, required=required)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
