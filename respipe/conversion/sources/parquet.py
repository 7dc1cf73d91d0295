"""Parquet files of images, as the Hugging Face Hub has them and others write them."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from respipe.conversion.sources.base import SourceOptions, SourceSpec
from respipe.conversion.sources.columns import LABELS, PATHS, fingerprint_of, label_column, logger
from respipe.conversion.sources.paths import files_of
from respipe.errors import CorruptImageError, MissingBackendError, StorageError
from respipe.printable import printable
from respipe.storage.beton.string_table import TextTable
from respipe.storage.beton.structure import format_of
from respipe.storage.fields import Column, Computed, Kind
from respipe.storage.regular_files import read_regular

_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")

# Rows that are decoded at once: enough that it costs little, few enough for large images to fit into memory.
_BATCH = 32
_BUFFER = 1 << 20

# Rows that are looked at to tell how long a column's vectors are.
_MOST_EMPTY = 1000


def import_pyarrow() -> Any:
    """Pyarrow with its module ``parquet``.

    Raises:
        MissingBackendError: it is not installed.
    """
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        raise MissingBackendError(
            "Parquet needs pyarrow, which is not installed. Run: pip install 'respipe[parquet]'"
        ) from error


class ParquetSource:
    """Rows of Parquet files: an image each, a label, and other columns as fields.

    The image is a column of bytes, or of structs of ``bytes`` and ``path``, or of paths relative to the file. Labels
    and paths are read at once; images and fields row group by row group, of which a worker holds a page at a time.

    Args:
        files: the files, all of one schema.
        label_field: column of the label; by default ``label`` or another of the usual names; "" for no labels.

    Raises:
        MissingBackendError: pyarrow is not installed.
        StorageError: a file is damaged, or lacks a column.
        ConversionError: half of the labels are missing or make no sense.
    """

    def __init__(self, files: Sequence[Path], *, label_field: str | None = None) -> None:
        self.kind = "Parquet"
        self._files = tuple(files)
        self._cursors: dict[str, _Cursor] = {}
        with _opened(files[0]) as first:
            schema = first.schema_arrow
        features = _features(schema)
        self._image = _image_column(files[0], schema, features)
        label = label_field
        if label is None:
            label = next((name for name in LABELS if name in schema.names and name != self._image), "")
        if label and label not in schema.names:
            listed = ", ".join(map(printable, schema.names))
            raise StorageError(f"{files[0]} must have a column `{label}` for the labels; its columns are {listed}.")
        leaf = f"{self._image}.path" if "path" in _children(schema.field(self._image).type) else self._image
        self._has_path = leaf != self._image or _kind(schema.field(leaf).type) == "text"
        groups: list[tuple[int, int, int, int]] = []
        labels: list[Any] = []
        names: list[str] = []
        for number, path in enumerate(files):
            with _opened(path) as file:
                if not file.schema_arrow.equals(schema):
                    raise StorageError(f"{path} must have the columns of {files[0]}, {schema.names}; it has others.")
                groups += [(number, group, *_size(file, group)) for group in range(file.num_row_groups)]
                labels += _values(file, label) if label else []
                paths = _values(file, leaf) if self._has_path else itertools.repeat(None, file.metadata.num_rows)
                names += (_path(one) or f"{path.name}:{row}" for row, one in enumerate(paths))
        self._groups = np.array(groups, np.int64).reshape(-1, 4)
        self._starts = np.concatenate(([0], np.cumsum(self._groups[:, 2])))
        self._names = TextTable.of(names)
        column = label_column(labels, _class_names(features.get(label)), self.name)
        if column is None and label_field is None:
            logger.warning("%s: no column of labels; its columns are %s", files[0], ", ".join(schema.names))
        self.fields: Mapping[str, Column] = {} if column is None else {"label": column}
        for field in schema:
            if field.name not in (self._image, label, "label", "image"):
                found = self._field(field, features.get(field.name))
                self.fields |= {} if found is None else {field.name: found}
        tables = (self._groups, self._names.text, self._names.offsets)
        self.fingerprint = fingerprint_of(column, *(table.tobytes() for table in tables))

    def _field(self, field: Any, feature: Any) -> Column | None:
        if (kind := _kind(field.type)) is None:
            return None
        values = Computed(partial(self.value, name=field.name), len(self))
        length = field.type.list_size if kind == "vector" and hasattr(field.type, "list_size") else None
        if kind == "vector" and length is None:
            known = (self.value(index, field.name) for index in range(min(len(self), _MOST_EMPTY)))
            if (length := next((len(value) for value in known if value), None)) is None:
                return None
        names = _class_names(feature)
        return Column(kind=kind if names is None else "class", values=values, classes=names, length=length)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _row_group(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def value(self, index: int, name: str) -> Any:
        """One cell, as Python has it; of a struct its bytes."""
        row_group = self._row_group(index)
        number, group, *_ = map(int, self._groups[row_group])
        path, row = self._files[number], index - int(self._starts[row_group])
        cursor = self._cursors.pop(name, None)  # one that fails is not used again
        try:
            if cursor is None or cursor.place != (path, group) or row < cursor.start:
                cursor = _Cursor(path, group, name)
            value = cursor.at(row)
        except (import_pyarrow().ArrowException, OSError, StopIteration) as error:
            path.stat()  # or the file is out of reach, and no single row to blame
            what = f"{path.name} is damaged in row group {group}: {error or 'it is too short'}"
            raise CorruptImageError(what, index=index) from error
        self._cursors[name] = cursor
        return cast("dict[str, Any]", value)["bytes"] if isinstance(value, dict) else value

    def read(self, index: int) -> bytes:
        """One image; see :meth:`respipe.conversion.Source.read`."""
        data: bytes | str | None = self.value(index, self._image)
        if isinstance(data, bytes):
            return data
        if data is None and not self._has_path:
            raise CorruptImageError("it has no image: its bytes are null", index=index)
        folder = self._files[int(self._groups[self._row_group(index), 0])].parent
        try:
            return read_regular(folder / (data or self._names[index]))
        except (OSError, ValueError) as error:
            folder.stat()  # or the whole source is out of reach
            reason = error.strerror if isinstance(error, OSError) else error
            raise CorruptImageError(f"it has no bytes, and of the file at its path: {reason}", index=index) from error

    def name(self, index: int) -> str:
        """The path stored with its image, or its row."""
        return printable(self._names[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cursors": {}}


class _Cursor:
    """Goes through one column of one row group, a few rows at a time.

    Attributes:
        place: the file and the number of the row group.
        start: number in the row group of the first row at hand.
    """

    def __init__(self, path: Path, group: int, column: str) -> None:
        self.place, self.start = (path, group), 0
        # So a column is read page by page, where it would be read as a whole.
        self._file = import_pyarrow().parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
        leaf = f"{column}.bytes" if "bytes" in _children(self._file.schema_arrow.field(column).type) else column
        # Threads of its own would only compete with the other workers.
        self._batches: Iterator[Any] = self._file.iter_batches(_BATCH, [group], [leaf], use_threads=False)
        self._rows: Any = ()

    def at(self, row: int) -> Any:
        """The value of a row that is not before the rows at hand."""
        while row >= self.start + len(self._rows):
            self.start += len(self._rows)
            self._rows = next(self._batches).column(0)
        return self._rows[row - self.start].as_py()


def _opened(path: Path) -> Any:
    pyarrow = import_pyarrow()
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise StorageError(f"{path} cannot be read as Parquet: {error}. Is it whole? Copy it again.") from error


def _values(file: Any, column: str) -> list[Any]:
    """A whole column as Python's values."""
    return file.read([column], use_threads=False).column(0).to_pylist()


def _path(cell: Any) -> str | None:
    return cast("dict[str, str | None]", cell)["path"] if isinstance(cell, dict) else cell


def _size(file: Any, group: int) -> tuple[int, int]:
    found = file.metadata.row_group(group)
    return found.num_rows, found.total_byte_size


def _features(schema: Any) -> Mapping[str, Any]:
    """What the Hub's libraries note about columns in a schema: ``{"label": {"_type": "ClassLabel", ...}}``."""
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    try:
        found: object = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    names: object = cast("dict[str, Any]", feature).get("names") if isinstance(feature, dict) else None
    return tuple(map(str, cast("list[Any]", names))) if isinstance(names, list) and names else None


def _children(kind: Any) -> tuple[str, ...]:
    """Names of what a struct holds."""
    return tuple(kind.field(i).name for i in range(kind.num_fields)) if import_pyarrow().types.is_struct(kind) else ()


def _is_bytes(kind: Any) -> bool:
    types = import_pyarrow().types
    if "bytes" in _children(kind):
        return _is_bytes(kind.field("bytes").type)
    views = str(kind) == "binary_view"
    return bool(views or types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _image_column(path: Path, schema: Any, features: Mapping[str, Any]) -> str:
    """Name of the column of images: what its schema says is one, or is called so, or is the only one of bytes."""
    binary = [field.name for field in schema if _is_bytes(field.type)]
    noted = [name for name in binary if '"_type": "Image"' in json.dumps(features.get(name))]
    named = [name for name in _IMAGES if name in binary]
    for names in (noted, named, binary):
        if usual := [name for name in names if name in _IMAGES] or (names if len(names) == 1 else []):
            return usual[0]
    texts = [field.name for field in schema if _kind(field.type) == "text"]
    if (path_column := next((name for name in PATHS if name in texts), None)) is not None:
        return path_column
    listed = ", ".join(f"{printable(field.name)} ({field.type})" for field in schema)
    raise StorageError(
        f"{path} must have one column of images, of bytes or of structs with `bytes`, or a column `path`; its columns "
        f"are {listed}. Name it `image`."
    )


def _kind(kind: Any) -> Kind | None:
    """The kind of field that a column of this type is; None for dates, nested lists and the like."""
    types = import_pyarrow().types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "vector" if _kind(kind.value_type) in ("integer", "float") else None
    if types.is_dictionary(kind):
        return _kind(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view":
        return "text"
    if types.is_boolean(kind) or types.is_integer(kind):
        return "integer"
    return "float" if types.is_floating(kind) else "bytes" if _is_bytes(kind) else None


def _parquets(given: Any) -> list[Path]:
    """The files that are meant; none where it is something else."""
    files = files_of(given, (".parquet",)) if isinstance(given, str) else []
    named = all(file.suffix == ".parquet" or format_of(file) == "a Parquet file" for file in files)
    return files if named and all(map(Path.is_file, files)) else []


def _open(given: Any, options: SourceOptions) -> ParquetSource:
    files = _parquets(given)
    if not files:
        raise StorageError(f"{given} must be Parquet files, or a folder of them; there are none.")
    return ParquetSource(files, label_field=options.label_field)


SPEC = SourceSpec(
    format="parquet",
    title="Parquet files with a column of images",
    recognise=lambda given: bool(_parquets(given)),
    open=_open,
    options=frozenset({"label_field"}),
    priority=1,
)
