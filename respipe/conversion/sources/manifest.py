"""Manifests: CSV, TSV and JSON Lines files with one image's path, label and other fields a line."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from respipe.conversion.sources.base import SourceOptions, SourceSpec
from respipe.conversion.sources.columns import (
    LABELS,
    PATHS,
    FieldKinds,
    fingerprint_of,
    json_row,
    label_column,
    logger,
    parsed,
    parsed_labels,
    recorded_classes,
)
from respipe.conversion.sources.paths import files_of
from respipe.errors import CorruptImageError, StorageError
from respipe.printable import printable
from respipe.storage.class_folder import counted, is_litter
from respipe.storage.fields import Column, Computed
from respipe.storage.masks import is_mask_name
from respipe.storage.regular_files import open_regular, read_regular
from respipe.storage.upright import EXTENSIONS

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson")

# What to do about a file that is read as if its columns had such characters in their names.
_HINTS = {
    "\0": " It is UTF-16: save it as UTF-8.",
    ";": " Its cells are separated by semicolons: separate them by commas.",
    "\t": " Its cells are separated by tabs: call it .tsv.",
    ",": " Its cells are separated by commas: call it .csv.",
}

# What the Hub's folders of images have in them.
_METADATA = ("metadata.jsonl", "metadata.csv")

# One line as the index keeps it: its file's number, its place and length in bytes, and its number.
_Record = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class _Table:
    """One file of a manifest.

    Args:
        path: the file.
        columns: names of a CSV's columns; none in JSON Lines.
        status: what the file system said of it when it was indexed.
    """

    path: Path
    columns: tuple[str, ...]
    status: tuple[int, int]

    @cached_property
    def folder(self) -> Path:
        """What paths are relative to."""
        return self.path.parent

    def row(self, data: bytes) -> dict[str, Any]:
        """One line's values by name; those of a CSV as text.

        Raises:
            ValueError: the line cannot be read.
        """
        text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        if self.columns:
            return self.named(next(csv.reader(io.StringIO(text, newline=""), _dialect(self.path)), list[str]()))
        return json_row(text)

    def named(self, cells: Sequence[str]) -> dict[str, Any]:
        """The cells of a line by their columns' names."""
        if len(cells) != len(self.columns):
            raise ValueError(f"it has {len(cells)} cells where there are {len(self.columns)} columns")
        return dict(zip(self.columns, cells, strict=True))


@dataclass
class _Index:
    """What a manifest's lines say, gathered as they are read."""

    records: array[int] = field(default_factory=lambda: array("q"))
    labels: list[Any] = field(default_factory=list[Any])
    paths: array[int] = field(default_factory=lambda: array("q"))  # a hash of each, to find those that come twice
    kinds: FieldKinds = field(default_factory=FieldKinds)
    texts: dict[str, str] = field(default_factory=dict[str, str])  # one object for equal labels


class ManifestSource:
    """Images listed in CSV, TSV or JSON Lines files, with labels and other fields.

    Paths are relative to the file that lists them. In a CSV a column is one of numbers where most of its cells are.

    Args:
        files: the manifests, of one kind.
        label_field: column of the label; by default ``label`` or another of the usual names; "" for no labels.

    Raises:
        StorageError: a file cannot be read, or lacks a column.
        ConversionError: half of the labels are of another kind than the other half.
    """

    def __init__(self, files: Sequence[Path], *, label_field: str | None = None) -> None:
        self._cells = files[0].suffix.lower() in _DELIMITERS
        self.kind = f"{files[0].suffix[1:].upper() if self._cells else 'JSON Lines'} manifest"
        self._tables: list[_Table] = []
        self._faults: dict[int, str] = {}
        self._path, self._label = "", label_field
        index = _Index()
        digest = hashlib.sha256()
        for file in files:
            try:
                with open_regular(file) as stream:
                    self._read_index(file, stream, index, digest.update)
            except OSError as error:
                raise StorageError(f"{file} cannot be read: {error}. Check the path and its permissions.") from error
        self._records = np.frombuffer(index.records, np.int64).reshape(-1, 4)
        if not len(self._records):
            raise StorageError(f"{files[0]} must list at least one image; it lists none.")
        unread = next((label for label in index.labels if isinstance(label, CorruptImageError)), None)
        if unread is not None and not index.kinds.names:
            raise StorageError(f"{files[0]}: no line of it can be read; {unread}.")
        self._require(files[0], index.kinds.names)
        self._faults = dict(self._repeated(index))
        for row, fault in self._faults.items():
            index.labels[row] = CorruptImageError(fault, index=row)
        labels = parsed_labels(index.labels) if self._cells else index.labels
        label = label_column(labels, recorded_classes(files[0].parent), self.name)
        if label is None and label_field is None:
            logger.warning("%s: no column of labels; its columns are %s", files[0], ", ".join(index.kinds.names))
        self._texts = {name for name in index.kinds.names if index.kinds.kind(name) == ("text", 0)}
        self.fields: Mapping[str, Column] = {} if label is None else {"label": label}
        for name in index.kinds.names:
            if name not in (self._path, self._label, "label", "image"):
                column = index.kinds.column(name, Computed(partial(self.value, name=name), len(self)))
                if column is not None and column.kind == "text" and is_mask_name(name):
                    column = Column(kind="mask", values=Computed(partial(self.file, name=name), len(self)))
                self.fields |= {} if column is None else {name: column}
        self.fingerprint = fingerprint_of(label, digest.digest())

    def _read_index(self, file: Path, stream: BinaryIO, index: _Index, digest: Callable[[bytes], None]) -> None:
        status = os.fstat(stream.fileno())
        lines = counted(_cells(stream, file, digest) if self._cells else _lines(stream, digest), file, "lines")
        columns: tuple[str, ...] | None = None
        for line, start, length, row in lines:
            if columns is None:
                columns, is_header = ((), False) if isinstance(row, bytes) else _header(row)
                changed = status.st_size, status.st_mtime_ns
                self._tables.append(_Table(path=file, columns=columns, status=changed))
                twice = next((name for name in columns if name and columns.count(name) > 1), None)
                if twice is not None:
                    raise StorageError(f"{file} must name each column once; `{printable(twice)}` comes twice.")
                if columns:
                    self._choose(columns)
                    self._require(file, columns)
                if is_header:
                    continue
            index.records.extend((len(self._tables) - 1, start, length, line))
            self._note(self._tables[-1], row, line, index)

    def _note(self, table: _Table, row: bytes | list[str], line: int, index: _Index) -> None:
        """Take in one line; what is wrong with it comes up again when its image is read."""
        values: dict[str, Any] = {}
        fault = None
        try:
            values = table.row(row) if isinstance(row, bytes) else table.named(row)
        except ValueError as error:
            fault = CorruptImageError(_unreadable(line, error), index=len(index.labels))
        self._choose(values)
        label = fault or (values.get(self._label) if self._label else None)
        path = values.get(self._path)
        index.labels.append(index.texts.setdefault(label, label) if isinstance(label, str) else label)
        known = isinstance(path, str) and path
        index.paths.append(hash((table.folder, path)) if known else -1 - len(index.paths))
        index.kinds.add({name: parsed(cell) for name, cell in values.items()} if self._cells else values)

    def _choose(self, columns: Collection[str]) -> None:
        """Take the columns of path and label from those of a line, where they are not known yet."""
        self._path = self._path or next((name for name in PATHS if name in columns and name != self._label), "")
        if self._label is None:
            self._label = next((name for name in LABELS if name in columns), None)

    def _require(self, file: Path, columns: Sequence[str]) -> None:
        wanted = {self._path or "path": "images", **({self._label: "labels"} if self._label else {})}
        for name, what in wanted.items():
            if name not in columns:
                listed = ", ".join(map(printable, columns)) or "none"
                hint = next((hint for sign, hint in _HINTS.items() if any(sign in column for column in columns)), "")
                raise StorageError(
                    f"{file} must have a column `{name}` for the {what}; its columns are {listed}.{hint}"
                )

    def _repeated(self, index: _Index) -> Iterator[tuple[int, str]]:
        """Lines whose image an earlier line lists already, and what to say of them."""
        hashes = np.frombuffer(index.paths, np.int64)
        order = np.argsort(hashes, kind="stable")
        for place in np.flatnonzero(np.diff(hashes[order]) == 0).tolist():
            first, second = map(int, order[place : place + 2])
            if (name := self.name(first)) == self.name(second):
                line, other = self._record(second)[3], self._record(first)[3]
                yield second, f"line {line} lists {name}, as line {other} does"

    def __len__(self) -> int:
        return len(self._records)

    def _row(self, index: int) -> dict[str, Any]:
        """One line's values by name."""
        number, start, length, line = self._record(index)
        table = self._tables[number]
        with open_regular(table.path) as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != table.status:
                raise OSError(errno.ESTALE, "it was changed while it was being converted", str(table.path))
            file.seek(start)
            data = file.read(length)
        try:
            return table.row(data)
        except ValueError as error:
            raise CorruptImageError(_unreadable(line, error), index=index) from error

    def _record(self, index: int) -> _Record:
        return cast("_Record", tuple(self._records[index].tolist()))

    def _file(self, index: int) -> tuple[Path, str]:
        """The folder that a line's path is relative to, and that path."""
        if index in self._faults:
            raise CorruptImageError(self._faults[index], index=index)
        path = self._row(index).get(self._path)
        if not path or not isinstance(path, str):
            raise CorruptImageError(f"line {self._record(index)[3]} has no path of an image", index=index)
        return self._tables[self._record(index)[0]].folder, path

    def read(self, index: int) -> bytes:
        """The bytes of one file; see :meth:`respipe.conversion.Source.read`."""
        return self._read(index, *self._file(index))

    def file(self, index: int, name: str) -> bytes:
        """The bytes of another file that a line names."""
        path = self._row(index).get(name)
        if not path or not isinstance(path, str):
            raise CorruptImageError(f"line {self._record(index)[3]} has no path of a `{name}`", index=index)
        return self._read(index, self._tables[self._record(index)[0]].path.parent, path)

    @staticmethod
    def _read(index: int, folder: Path, path: str) -> bytes:
        try:
            return read_regular(folder / path)
        except ValueError as error:  # a name with a zero byte in it
            raise CorruptImageError(f"its path: {error}", index=index) from error
        except OSError as error:
            # Where the whole folder is gone, as with a lost mount, no single file is to blame.
            folder.stat()
            raise CorruptImageError(error.strerror or str(error), index=index) from error

    def name(self, index: int) -> str:
        """Its path as it is listed, or the line where there is none."""
        try:
            return printable(self._file(index)[1])
        except CorruptImageError:
            number, _, _, line = self._record(index)
            return f"{printable(self._tables[number].path.name)}:{line}"

    def value(self, index: int, name: str) -> Any:
        """One field of a line."""
        value = self._row(index).get(name)
        return value if not self._cells or name in self._texts or value is None else parsed(value)


def _unreadable(line: int, error: ValueError) -> str:
    return f"line {line} cannot be read: {error}"


def _header(first: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Column names: those of the first line, or path and label where that is an image's already; and which it is."""
    columns = tuple(name.strip() for name in first)
    if not {*PATHS} & {*columns} and columns[0].lower().endswith(EXTENSIONS):
        others = (f"column {number}" for number in range(3, len(columns) + 1))
        return ("path", "label", *others)[: len(columns)], False
    return columns, True


def _lines(stream: BinaryIO, digest: Callable[[bytes], None]) -> Iterator[tuple[int, int, int, bytes]]:
    """Number, place, length and bytes of each line that is not empty."""
    position = 0
    for number, line in enumerate(stream, start=1):
        digest(line)
        mark = 3 * (number == 1 and line.startswith(b"\xef\xbb\xbf"))
        if line[mark:].strip():
            yield number, position + mark, len(line) - mark, line[mark:]
        position += len(line)


def _cells(stream: BinaryIO, path: Path, digest: Callable[[bytes], None]) -> Iterator[tuple[int, int, int, list[str]]]:
    """Number of the first line, place, length and cells of each row that is not empty; a row may have several lines."""
    position = 0

    def lines() -> Iterator[str]:
        nonlocal position
        for line in stream:
            digest(line)
            mark = 3 * (not position and line.startswith(b"\xef\xbb\xbf"))
            position += len(line)
            yield line[mark:].decode("utf-8", "surrogateescape")

    reader = csv.reader(lines(), _dialect(path))
    start, line = 0, 1
    try:
        for row in reader:
            if row:
                yield line, start, position - start, row
            start, line = position, reader.line_num + 1
    except csv.Error as error:
        raise StorageError(f"{path} cannot be read: line {reader.line_num}: {printable(str(error))}.") from error


def _dialect(path: Path) -> type[csv.Dialect]:
    class Strict(csv.excel):
        delimiter = _DELIMITERS[path.suffix.lower()]
        strict = True

    return Strict


def _manifests(given: Any) -> list[Path]:
    """The manifests that are meant; none where it is something else."""
    if not isinstance(given, str):
        return []
    if Path(given).is_dir():
        return [file for name in _METADATA if _tells_labels(file := Path(given, name))][:1]
    files = files_of(given)
    kinds = {file.suffix.lower() for file in files}
    return files if len(kinds) == 1 and kinds <= {*_DELIMITERS, *_LINES} and all(map(Path.is_file, files)) else []


def _tells_labels(file: Path) -> bool:
    """Whether it is the metadata of a folder of images, and tells more of them than the folder's own subfolders do."""
    if not file.is_file():
        return False
    with open_regular(file) as stream:
        first = stream.readline()
    columns = _dialect(file) if file.suffix in _DELIMITERS else None
    try:
        names = next(csv.reader([first.decode()], columns), list[str]()) if columns else [*json.loads(first)]
    except (ValueError, TypeError, csv.Error):
        return False
    flat = not any(entry.is_dir() for entry in file.parent.iterdir() if not is_litter(entry.name))
    return any(name in names for name in PATHS) and (flat or any(name in names for name in LABELS))


def _open(given: Any, options: SourceOptions) -> ManifestSource:
    files = _manifests(given)
    if not files:
        raise StorageError(f"{given} must be manifests: files that end in {', '.join([*_DELIMITERS, *_LINES])}.")
    return ManifestSource(files, label_field=options.label_field)


SPEC = SourceSpec(
    format="manifest",
    title="a CSV, TSV or JSON Lines file of paths and labels",
    recognise=lambda given: bool(_manifests(given)),
    open=_open,
    options=frozenset({"label_field"}),
)
