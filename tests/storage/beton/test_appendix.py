from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from respipe.storage.beton.appendix import FOOTER, AppendixError, encode_appendix, read_appendix

HEAD = b"h" * 61
TABLE = b"t" * 48
START = 64


def build(arrays: dict[str, NDArray[Any]], attributes: dict[str, Any]) -> tuple[bytearray, int]:
    """A file of head, appendix and allocation table, and where the table begins."""
    unsealed = encode_appendix(arrays, attributes, start=START)
    body = unsealed.seal(head_crc32=zlib.crc32(HEAD), alloc_table_crc32=zlib.crc32(TABLE))
    assert len(body) == unsealed.num_bytes
    return bytearray(HEAD.ljust(START, b"\0") + body + TABLE), START + len(body)


def read(file: bytearray, table_start: int) -> Any:
    memory = np.frombuffer(bytes(file), np.uint8)
    return read_appendix(memory, head_size=len(HEAD), alloc_table_ptr=table_start)


def reforge(file: bytearray, table_start: int, directory: bytes) -> tuple[bytearray, int]:
    """Replace the directory, with checksums that fit."""
    footer = np.frombuffer(bytes(file[table_start - FOOTER.itemsize : table_start]), FOOTER).copy()
    pointer = int(footer["directory_ptr"][0])
    footer["directory_crc32"] = zlib.crc32(directory)
    footer["directory_size"] = len(directory)
    forged = file[:pointer] + directory + footer.tobytes()
    return forged + TABLE, len(forged)


def test_arrays_and_attributes_come_back() -> None:
    arrays = {
        "odd": np.arange(5, dtype=np.uint8),
        "table": np.arange(6, dtype=np.uint32).reshape(2, 3),
        "big_endian": np.arange(4, dtype=">i8"),
        "empty": np.zeros((0, 3), np.float64),
    }
    appendix = read(*build(arrays, {"classes": ["é", None], "n": 1}))
    assert appendix.attributes == {"classes": ["é", None], "n": 1}
    assert appendix.start == START
    for name, array in arrays.items():
        stored = appendix.array(name)
        np.testing.assert_array_equal(stored, array)
        assert stored.shape == array.shape
        assert not stored.flags.writeable
    assert "odd" in appendix
    assert "other" not in appendix
    with pytest.raises(AppendixError, match="no array 'other'"):
        appendix.array("other")


def test_every_flipped_bit_outside_padding_is_found() -> None:
    file, table_start = build({"a": np.arange(4, dtype=np.int64)}, {"k": "v"})
    for position in [*range(len(HEAD)), *range(START, len(file))]:
        damaged = bytearray(file)
        damaged[position] ^= 16
        with pytest.raises(AppendixError):
            read(damaged, table_start).array("a")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "|O", "shape": [1], "offset": START},
        {"dtype": "|u1", "shape": [1 << 62, 1 << 62], "offset": START},
        {"dtype": "|u1", "shape": [-1], "offset": START},
        {"dtype": "|u1", "shape": [1.5], "offset": START},
        {"dtype": "|u1", "shape": 7, "offset": START},
        {"dtype": "|u1", "shape": [1], "offset": 0},
        {"dtype": "|u1", "shape": [1], "offset": 1e400},
        {"dtype": "|u1", "shape": [1], "offset": 1 << 70},
        {"dtype": ["|u1"], "shape": [1], "offset": START},
        {"shape": [1], "offset": START},
        [],
        None,
    ],
)
def test_hostile_entries_are_refused(entry: Any) -> None:
    file, table_start = build({"a": np.arange(4, dtype=np.int64)}, {})
    if isinstance(entry, dict):
        entry = {"name": "a", "crc32": 0, **entry}
    with pytest.raises(AppendixError, match="appendix"):
        read(*reforge(file, table_start, json.dumps({"attributes": {}, "arrays": [entry]}).encode()))


@pytest.mark.parametrize("directory", [b"", b"[]", b"{}", b'{"attributes": 3, "arrays": []}', b"[" * 100_000, b"\xff"])
def test_hostile_directories_are_refused(directory: bytes) -> None:
    file, table_start = build({"a": np.arange(4, dtype=np.int64)}, {})
    with pytest.raises(AppendixError, match="makes no sense"):
        read(*reforge(file, table_start, directory))


@pytest.mark.parametrize("field", ["start", "directory_ptr", "directory_size"])
@pytest.mark.parametrize("value", [0, 1 << 40, (1 << 64) - 1])
def test_places_outside_the_appendix_are_refused(field: str, value: int) -> None:
    file, table_start = build({"a": np.arange(4, dtype=np.int64)}, {})
    place = slice(table_start - FOOTER.itemsize, table_start)
    footer = np.frombuffer(bytes(file[place]), FOOTER).copy()
    footer[field] = value
    file[place] = footer.tobytes()
    with pytest.raises(AppendixError, match="is said to lie at"):
        read(file, table_start)


def test_another_version_is_refused() -> None:
    file, table_start = build({}, {})
    file[table_start - FOOTER.itemsize + 8] = 9
    with pytest.raises(AppendixError, match="has version 9, this respipe reads version 1"):
        read(file, table_start)


def test_a_missing_appendix_is_noticed() -> None:
    memory = np.zeros(400, np.uint8)
    with pytest.raises(AppendixError, match="is missing"):
        read_appendix(memory, head_size=10, alloc_table_ptr=300)
    with pytest.raises(AppendixError, match="no room"):
        read_appendix(memory, head_size=290, alloc_table_ptr=300)
