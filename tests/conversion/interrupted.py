"""A conversion that kills itself.

``python -m tests.conversion.interrupted SOURCE TARGET MOMENT [WORKERS [SHARDS PART [FIELDS]]]``.

The moment is none, or one of

* ``samples:N``: N samples are done;
* ``half-page:N``, ``page:N``, ``torn:N``: page N is half written; written but not noted; its note is half written;
* ``finish``: everything but the header is written;
* ``replace``, ``remove``: the file is about to get its name; has it, but the journal is still there.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from respipe.conversion.journal import Journal
from respipe.storage.beton.writer import BetonWriter
from tests.small_pages import convert_small


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Death:
    """Ways to die while a given page or step is being worked on, each in the place of a method."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.write_page, self.write, self.append = BetonWriter.write_page, BetonWriter._write, Journal._append

    def in_write_page(self, writer: BetonWriter, page: int, data: bytes) -> None:
        half = page == self.number and self.name == "half-page"
        self.write_page(writer, page, data[: len(data) // 2] if half else data)
        if page == self.number:
            die()

    def in_write(self, writer: BetonWriter, position: int, data: bytes) -> None:
        dying = position == 0 and any(data)
        self.write(writer, position, data[:100] if dying else data)
        if dying:
            die()

    def in_append(self, journal: Journal, value: dict[str, Any]) -> None:
        if "stop" in value and len(journal.records) == self.number:
            os.write(journal._descriptor, b'0123abcd {"stop":')
            die()
        self.append(journal, value)

    def arrange(self) -> None:
        patches: dict[str, tuple[type, str, Any]] = {
            "page": (BetonWriter, "write_page", self.in_write_page),
            "half-page": (BetonWriter, "write_page", self.in_write_page),
            "finish": (BetonWriter, "_write", self.in_write),
            "torn": (Journal, "_append", self.in_append),
            "replace": (Path, "replace", die),
            "remove": (Journal, "remove", die),
        }
        if self.name in patches:
            owner, method, replacement = patches[self.name]

            def dying_method(*arguments: Any) -> None:
                replacement(*arguments)

            setattr(owner, method, dying_method)


def main() -> None:
    source, target, moment, *more = sys.argv[1:]
    workers, shards, part, fields = (*more, *("0", "", "0/1", "")[len(more) :])
    options: dict[str, Any] = {"fields": fields.split(",") if fields else ()}
    if shards:
        number, _, of = part.partition("/")
        options |= {"shards": int(shards), "part": (int(number), int(of))}
    name, _, text = moment.partition(":")
    number = int(text or 0)
    Death(name, number).arrange()

    def progress(done: int, _: int) -> None:
        if name == "samples" and done == number:
            die()

    convert_small(source, Path(target), num_workers=int(workers), progress=progress, **options)


if __name__ == "__main__":
    main()
