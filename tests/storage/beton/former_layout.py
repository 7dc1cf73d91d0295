"""Files in the first layout: every level is an image field, and the first page of the file holds no image."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from respipe.storage.beton.appendix import MAGIC, encode_appendix
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.beton.format import ALLOCATION, FIELD, HEADER, VERSION, FieldType, align, metadata_dtype
from respipe.storage.beton.string_table import TextTable
from tests.small_pages import PAGE_SIZE


def write_former_layout(dataset: BetonDataset, path: Path) -> Path:
    """The same images, labels, names and classes in that layout."""
    levels = dataset.levels
    fields = {"image": FieldType.IMAGE, "label": FieldType.INT}
    fields |= {level.name: FieldType.IMAGE for level in levels[1:]}
    metadata = np.zeros(len(dataset), metadata_dtype(list(fields.values())))
    start = align(HEADER.itemsize + len(fields) * FIELD.itemsize + metadata.nbytes, PAGE_SIZE)
    data, table = bytearray(), []
    for number, level in zip((0, *range(2, len(fields))), levels, strict=True):
        column = metadata[f"f{number}"]
        column["width"], column["height"] = level.widths, level.heights
        for index in range(len(dataset)):
            column["data_ptr"][index] = start + len(data)
            table.append((index, start + len(data), level.sizes[index]))
            data += dataset.encoded(index, number and number - 1).tobytes()
    metadata["f1"] = dataset.labels
    names = TextTable.of(map(dataset.name, range(len(dataset))))
    appendix = encode_appendix(
        {
            "names": names.text,
            "name_offsets": names.offsets,
            "crc32": np.stack([level.checksums for level in levels if level.checksums is not None]),
        },
        {**dataset.attributes, "levels": [level.name for level in levels]},
        start=align(start + len(data), 8),
    )
    end = align(start + len(data), 8) + appendix.num_bytes
    entries = np.zeros(len(fields), FIELD)
    for entry, (name, kind) in zip(entries, fields.items(), strict=True):
        entry["type_id"], entry["name"] = kind, np.frombuffer(name.encode().ljust(16, b"\0"), np.uint8)
    entries[0]["arguments"][: len(MAGIC)] = np.frombuffer(MAGIC, np.uint8)
    header = np.array([(VERSION, len(fields), PAGE_SIZE, len(dataset), end)], HEADER)
    head = header.tobytes() + entries.tobytes() + metadata.tobytes()
    allocations = np.array(table, ALLOCATION).tobytes()
    body = (head.ljust(start, b"\0") + data).ljust(align(start + len(data), 8), b"\0")
    sealed = appendix.seal(head_crc32=zlib.crc32(head), alloc_table_crc32=zlib.crc32(allocations))
    path.write_bytes(body + sealed + allocations)
    return path
