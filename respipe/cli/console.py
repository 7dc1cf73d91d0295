"""What the commands write: reports and JSON to stdout; progress, logs and errors to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from respipe.printable import printable

ProgressCallback = Callable[[int, int], None]

_SECONDS_BETWEEN_LINES = 30.0


def write_json(report: Mapping[str, Any]) -> None:
    """Write a report to stdout as JSON, in ASCII so that any terminal or pipe takes it."""
    sys.stdout.write(json.dumps(report, indent=2, allow_nan=False) + "\n")


def _in_one_line(message: str) -> str:
    """The lines of a message one after the other, those of a list with semicolons between."""
    lines = [" ".join(line.split()) for line in message.splitlines() if line.strip()]
    return "".join(line + (" " if line.endswith((":", ".", ",")) else "; ") for line in lines)[:-1].removesuffix(";")


def write_line(text: str = "", *, style: str = "") -> None:
    """Write a line to stdout, with every unprintable character escaped."""
    _stdout().print(Text(printable(text), style=style), soft_wrap=True)


def write_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[str] = ()) -> None:
    """Write a table to stdout: the columns named in ``left`` aligned to the left, the others, numbers, to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    _stdout().print(table)


def show_error(message: str) -> None:
    """Write an error to stderr as one line."""
    text = Text.assemble(("Error: ", "bold red"), printable(_in_one_line(message)))
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


@contextlib.contextmanager
def progress(title: str) -> Generator[ProgressCallback]:
    """A callback ``(done, total)`` that draws a bar on stderr, or now and then a line where that is no terminal."""
    with progress_of_parts() as on_progress:
        yield lambda done, total: on_progress(title, done, total)


@contextlib.contextmanager
def progress_of_parts() -> Generator[Callable[[str, int, int], None]]:
    """The same for work of several parts: ``(what, done, total)``."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _occasional_lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda what, done, total: bars.update(task, completed=done, total=total, description=what)


def _occasional_lines() -> Callable[[str, int, int], None]:
    last = start = time.monotonic()
    first: int | None = None

    def report(what: str, done: int, total: int) -> None:
        nonlocal first, last, start
        now = time.monotonic()
        if first is None or done < first:
            first, start = done, now
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            seconds = (now - start) / (done - first) * (total - done) if done > first else None
            left = "" if seconds is None else f", about {timedelta(seconds=round(seconds))} left"
            sys.stderr.write(f"{what}: {done:,} of {total:,}{left}\n")

    return report


class _PrintableFormatter(logging.Formatter):
    """Messages without unprintable characters, which file names in them may hold; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        return printable(super().formatMessage(record))


class _CurrentStderr(logging.Handler):
    """Writes to what stderr is at the moment, which while a bar is drawn is a way around it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


@contextlib.contextmanager
def logs_on_stderr(level: int) -> Generator[None]:
    """Show respipe's log messages on stderr."""
    logger = logging.getLogger("respipe")
    handler = _CurrentStderr()
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    previous = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(previous)


def count(number: int) -> str:
    """A count with thousands separated."""
    return f"{number:,}"


def bytes_on_disk(path: Path) -> int:
    """Length of a file, or of all files directly in a folder."""
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else (path,)))


def num_bytes(number: float) -> str:
    """An amount of bytes in a unit that leaves at most four digits before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} TB"


def _stdout() -> Console:
    return Console(highlight=False)
