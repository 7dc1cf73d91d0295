"""Writing ``.beton`` files page by page, under another name until the last byte is in place."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from respipe.storage.beton.appendix import MAGIC, encode_appendix
from respipe.storage.beton.format import ALLOCATION, FIELD, HEADER, VERSION, FieldType, ImageMode, align, metadata_dtype
from respipe.storage.beton.pages import CHECKSUM, HEIGHT, SIZE, WIDTH, PageRecord, is_shared, offsets_in_page
from respipe.storage.beton.string_table import TextTable
from respipe.storage.fields import Column

_CHUNK = 1 << 20


class BetonWriter:
    """A ``.beton`` in the making.

    Room for the metadata of every sample is set aside at the start, so that a page's place does not depend on how many
    samples turn out to be broken.

    Args:
        path: the partial file; made where it is missing.
        num_samples: how many samples there may be.
        levels: names of the stored resolutions, largest first.
        page_size: bytes of a page, a power of two.
    """

    def __init__(self, path: Path, *, num_samples: int, levels: Sequence[str], page_size: int) -> None:
        self._levels = tuple(levels)
        self._page_size = page_size
        # As FFCV has it: the image, the label, then fields that other readers may not care about.
        self._fields = {self._levels[0]: FieldType.IMAGE, "label": FieldType.INT}
        self._fields |= dict.fromkeys(self._levels[1:], FieldType.IMAGE)
        self._metadata_dtype = metadata_dtype(list(self._fields.values()))
        self._metadata_start = HEADER.itemsize + len(self._fields) * FIELD.itemsize
        reserved = num_samples * self._metadata_dtype.itemsize
        self._data_start = align(self._metadata_start + reserved, page_size)
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

    def write_page(self, number: int, data: bytes) -> None:
        """Write a page. On return it is on disk."""
        assert len(data) <= self._page_size
        self._write(self._data_start + number * self._page_size, data)
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
            fields: their labels, as column ``label``.
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
            },
            {
                **attributes,
                "levels": list(self._levels),
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

    def _data_end(self, records: Sequence[PageRecord]) -> int:
        """Where the last page's images end."""
        for number in range(len(records) - 1, -1, -1):
            lengths = np.where(is_shared(records[number].images), 0, records[number].images[:, :, SIZE])
            if lengths.size:
                return self._data_start + number * self._page_size + int(lengths.sum())
        return self._data_start

    def _pointers(self, records: Sequence[PageRecord]) -> NDArray[np.int64]:
        """(N, levels) place of each image in the file."""
        pages = [
            self._data_start + number * self._page_size + offsets_in_page(record.images)
            for number, record in enumerate(records)
        ]
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
        level = 0
        for number, (name, kind) in enumerate(self._fields.items()):
            fields[number]["type_id"] = kind
            fields[number]["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
            column = metadata[f"f{number}"]
            if kind is FieldType.INT:
                column[:] = columns[name].values
                continue
            column["mode"] = ImageMode.JPEG
            column["height"], column["width"] = images[:, level, HEIGHT], images[:, level, WIDTH]
            column["data_ptr"] = pointers[:, level]
            level += 1
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def _allocation_table(images: NDArray[np.int64], pointers: NDArray[np.int64]) -> bytes:
    """One entry per image with bytes of its own, in the order of the file."""
    rows, levels = np.nonzero(~is_shared(images))
    table = np.zeros(len(rows), ALLOCATION)
    table["sample_id"] = rows
    table["ptr"] = pointers[rows, levels]
    table["size"] = images[rows, levels, SIZE]
    return table[np.argsort(table["ptr"])].tobytes()
