"""Writing ``.beton`` files page by page, under another name until the last byte is in place."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import respipe
from respipe.conversion.pages import CHECKSUM, HEIGHT, SIZE, WIDTH, PageRecord, is_shared, offsets_in_page
from respipe.conversion.settings import ConversionSettings
from respipe.conversion.sources.base import Source
from respipe.printable import printable
from respipe.storage.beton.appendix import MAGIC, encode_appendix
from respipe.storage.beton.format import ALLOCATION, FIELD, HEADER, VERSION, FieldType, ImageMode, align, metadata_dtype
from respipe.storage.beton.string_table import TextTable

_CHUNK = 1 << 20


class BetonWriter:
    """A ``.beton`` in the making.

    Room for the metadata of every sample of the source is set aside at the start, so that a page's place does not
    depend on how many samples turn out to be broken.

    Args:
        path: the partial file; made where it is missing.
        source: where labels, names and classes come from.
        settings: levels and page size.
    """

    def __init__(self, path: Path, *, source: Source, settings: ConversionSettings) -> None:
        self._path = path
        self._source = source
        self._settings = settings
        # As FFCV has it: the image, the label, then fields that other readers may not care about.
        self._fields = {settings.names[0]: FieldType.IMAGE, "label": FieldType.INT}
        self._fields |= dict.fromkeys(settings.names[1:], FieldType.IMAGE)
        self._metadata_dtype = metadata_dtype(list(self._fields.values()))
        self._metadata_start = HEADER.itemsize + len(self._fields) * FIELD.itemsize
        reserved = len(source) * self._metadata_dtype.itemsize
        self._data_start = align(self._metadata_start + reserved, settings.page_size)
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
        assert len(data) <= self._settings.page_size
        self._write(self._data_start + number * self._settings.page_size, data)
        os.fsync(self._descriptor)

    def finish(self, records: Sequence[PageRecord]) -> None:
        """Write everything but the pages. On return the file is on disk and whole."""
        indices = np.concatenate([record.indices for record in records])
        images = np.concatenate([record.images for record in records])
        pointers = self._pointers(records)
        start = align(self._data_end(records), 8)
        names = TextTable.of(self._source.name(index) for index in indices.tolist())
        appendix = encode_appendix(
            {
                "names": names.text,
                "name_offsets": names.offsets,
                "crc32": np.ascontiguousarray(images[:, :, CHECKSUM].T).astype(np.uint32),
            },
            self._attributes(tiled=sum(record.num_tiled for record in records) == len(indices)),
            start=start,
        )
        table_start = start + appendix.num_bytes
        head = self._head(indices, images, pointers, table_start)
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
                return self._data_start + number * self._settings.page_size + int(lengths.sum())
        return self._data_start

    def _pointers(self, records: Sequence[PageRecord]) -> NDArray[np.int64]:
        """(N, levels) place of each image in the file."""
        pages = [
            self._data_start + number * self._settings.page_size + offsets_in_page(record.images)
            for number, record in enumerate(records)
        ]
        return np.concatenate(pages)

    def _attributes(self, *, tiled: bool) -> dict[str, Any]:
        classes = self._source.classes
        return {
            "writer": f"respipe {respipe.__version__}",
            "levels": list(self._settings.names),
            "classes": None if classes is None else [printable(name) for name in classes],
            "settings": self._settings.to_dict(),
            "tiled": tiled,
            "source": {
                "kind": self._source.kind,
                "num_samples": len(self._source),
                "fingerprint": self._source.fingerprint,
            },
        }

    def _head(
        self, indices: NDArray[np.int64], images: NDArray[np.int64], pointers: NDArray[np.int64], table_start: int
    ) -> bytes:
        """Header, field table and metadata."""
        header = np.zeros(1, HEADER)
        header["version"] = VERSION
        header["num_fields"] = len(self._fields)
        header["page_size"] = self._settings.page_size
        header["num_samples"] = len(indices)
        header["alloc_table_ptr"] = table_start
        fields = np.zeros(len(self._fields), FIELD)
        metadata = np.zeros(len(indices), self._metadata_dtype)
        level = 0
        for number, (name, kind) in enumerate(self._fields.items()):
            fields[number]["type_id"] = kind
            fields[number]["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
            column = metadata[f"f{number}"]
            if kind is FieldType.INT:
                column[:] = [self._source.label(index) for index in indices.tolist()]
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
