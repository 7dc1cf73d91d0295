"""Writing ``.beton`` files page by page, under another name until the last byte is in place."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from respipe.storage.beton.appendix import MAGIC, encode_appendix
from respipe.storage.beton.format import ALLOCATION, FIELD, HEADER, VERSION, FieldType, ImageMode, align, metadata_dtype
from respipe.storage.beton.pages import CHECKSUM, HEIGHT, SIZE, WIDTH, PageRecord, is_shared, offsets_in_page
from respipe.storage.beton.string_table import TextTable
from respipe.storage.fields import Column, Kind

_CHUNK = 1 << 20

_LABELS: dict[Kind | None, FieldType] = {
    "class": FieldType.INT,
    "integer": FieldType.INT,
    "float": FieldType.FLOAT,
}


class BetonWriter:
    """A ``.beton`` in the making.

    Room for the metadata of every sample is set aside at the start, so that a page's place does not depend on how many
    samples turn out to be broken.

    Args:
        path: the partial file; made where it is missing.
        num_samples: how many samples there may be.
        levels: names of the stored resolutions, largest first.
        label: kind of the field ``label``, if there is one.
        page_size: bytes of a page, a power of two.
    """

    def __init__(
        self, path: Path, *, num_samples: int, levels: Sequence[str], label: Kind | None, page_size: int
    ) -> None:
        self._levels = tuple(levels)
        self._page_size = page_size
        # All that FFCV is to see: a loader of its makes tensors of every field that its user names no pipeline for.
        self._fields = {self._levels[0]: FieldType.IMAGE}
        if label in _LABELS:
            self._fields["label"] = _LABELS[label]
        self._metadata_dtype = metadata_dtype(list(self._fields.values()))
        self._metadata_start = HEADER.itemsize + len(self._fields) * FIELD.itemsize
        reserved = num_samples * self._metadata_dtype.itemsize
        # The first page begins behind the metadata, as FFCV only asks that no image crosses the end of a page.
        self._data_start = align(self._metadata_start + reserved, 8)
        self._page_end = (self._data_start // page_size + 1) * page_size
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def holds(self, records: Sequence[PageRecord]) -> bool:
        """Whether the partial file is long enough to hold these pages."""
        return not records or os.fstat(self._descriptor).st_size >= self._data_end(records)

    def truncate(self, records: Sequence[PageRecord]) -> None:
        """Drop everything after these pages, and what a finish that was cut short may have left before them."""
        os.ftruncate(self._descriptor, self._data_end(records) if records else 0)
        for start in range(0, min(self._data_start, os.fstat(self._descriptor).st_size), _CHUNK):
            written = os.pread(self._descriptor, min(_CHUNK, self._data_start - start), start)
            if any(written):  # most of it is a hole in the file, and better stays one
                self._write(start, bytes(len(written)))

    def page_bounds(self, number: int) -> tuple[int, int]:
        """Where a page begins in the file, and the length that its images may have together."""
        if number == 0:
            return self._data_start, self._page_end - self._data_start
        return self._page_end + (number - 1) * self._page_size, self._page_size

    def write_page(self, number: int, data: bytes) -> None:
        """Write a page. On return it is on disk."""
        start, room = self.page_bounds(number)
        assert len(data) <= room
        self._write(start, data)
        os.fsync(self._descriptor)

    def finish(
        self,
        records: Sequence[PageRecord],
        *,
        names: Iterable[str],
        fields: Mapping[str, Column],
        attributes: Mapping[str, Any],
    ) -> None:
        """Write everything but the pages. On return the file is on disk and whole.

        Args:
            records: all pages, which hold N samples together.
            names: N texts, where each sample came from.
            fields: their other fields by name, N values each. FFCV sees classes, integers and floats called ``label``.
            attributes: JSON values to keep with them, such as the class names as ``classes``.
        """
        images = np.concatenate([record.images for record in records])
        pointers = self._pointers(records)
        start = align(self._data_end(records), 8)
        table = TextTable.of(names)
        appendix = encode_appendix(
            {
                "names": table.text,
                "name_offsets": table.offsets,
                "crc32": np.ascontiguousarray(images[:, :, CHECKSUM].T).astype(np.uint32),
                "level_heights": images[:, 1:, HEIGHT].T.astype(np.int32),
                "level_widths": images[:, 1:, WIDTH].T.astype(np.int32),
                "level_offsets": pointers[:, 1:].T,
                "level_sizes": images[:, 1:, SIZE].T,
                **self._hidden(fields),
            },
            {
                **attributes,
                "levels": list(self._levels),
                "fields": [{"name": name, "kind": column.kind} for name, column in fields.items()],
                "tiled": sum(record.num_tiled for record in records) == len(images),
            },
            start=start,
        )
        table_start = start + appendix.num_bytes
        head = self._head(fields, images, pointers, table_start)
        table = _allocation_table(images, pointers)
        self._write(start, appendix.seal(head_crc32=zlib.crc32(head), alloc_table_crc32=zlib.crc32(table)))
        self._write(table_start, table)
        os.ftruncate(self._descriptor, table_start + len(table))
        os.fsync(self._descriptor)
        # The version number in the header makes the file readable: it comes after all that it stands for.
        self._write(0, head)
        os.fsync(self._descriptor)

    def _hidden(self, fields: Mapping[str, Column]) -> dict[str, NDArray[Any]]:
        """The arrays of those fields that FFCV does not see."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, column in fields.items():
            if name in self._fields:
                continue
            if isinstance(column.values, np.ndarray):
                arrays[f"field:{name}"] = column.values
                continue
            values = [column[index] for index in range(len(column))]
            table = TextTable.of(values) if column.kind == "text" else TextTable.of_bytes(values)
            arrays[f"field:{name}"], arrays[f"field:{name}:offsets"] = table.text, table.offsets
        return arrays

    def _data_end(self, records: Sequence[PageRecord]) -> int:
        """Where the last page's images end."""
        for number in range(len(records) - 1, -1, -1):
            lengths = np.where(is_shared(records[number].images), 0, records[number].images[:, :, SIZE])
            if lengths.size:
                return self.page_bounds(number)[0] + int(lengths.sum())
        return self._data_start

    def _pointers(self, records: Sequence[PageRecord]) -> NDArray[np.int64]:
        """(N, levels) place of each image in the file."""
        pages = [self.page_bounds(number)[0] + offsets_in_page(record.images) for number, record in enumerate(records)]
        return np.concatenate(pages)

    def _head(
        self, columns: Mapping[str, Column], images: NDArray[np.int64], pointers: NDArray[np.int64], table_start: int
    ) -> bytes:
        """Header, field table and metadata."""
        header = np.zeros(1, HEADER)
        header["version"] = VERSION
        header["num_fields"] = len(self._fields)
        header["page_size"] = self._page_size
        header["num_samples"] = len(images)
        header["alloc_table_ptr"] = table_start
        fields = np.zeros(len(self._fields), FIELD)
        metadata = np.zeros(len(images), self._metadata_dtype)
        for number, (name, kind) in enumerate(self._fields.items()):
            fields[number]["type_id"] = kind
            fields[number]["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
            column = metadata[f"f{number}"]
            if kind is not FieldType.IMAGE:
                column[:] = columns[name].values
                continue
            column["mode"] = ImageMode.JPEG
            column["height"], column["width"] = images[:, 0, HEIGHT], images[:, 0, WIDTH]
            column["data_ptr"] = pointers[:, 0]
        # Image fields have no arguments and FFCV looks at none; respipe's reader knows from this of the appendix.
        fields[0]["arguments"][: len(MAGIC)] = np.frombuffer(MAGIC, np.uint8)
        return header.tobytes() + fields.tobytes() + metadata.tobytes()

    def _write(self, position: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, position)
            view, position = view[written:], position + written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _allocation_table(images: NDArray[np.int64], pointers: NDArray[np.int64]) -> bytes:
    """One entry per image of the first level, in the order of the file."""
    table = np.zeros(len(images), ALLOCATION)
    table["sample_id"] = np.arange(len(images))
    table["ptr"] = pointers[:, 0]
    table["size"] = images[:, 0, SIZE]
    return table[np.argsort(table["ptr"])].tobytes()
