from __future__ import annotations

from respipe.storage.beton.format import ALLOCATION, FIELD, HEADER, IMAGE, FieldType, align, metadata_dtype


def test_tables_have_the_sizes_of_the_format() -> None:
    assert (HEADER.itemsize, FIELD.itemsize, IMAGE.itemsize, ALLOCATION.itemsize) == (24, 1041, 13, 24)


def test_metadata_rows_are_padded_as_a_c_compiler_would() -> None:
    dtype = metadata_dtype([FieldType.IMAGE, FieldType.INT, FieldType.IMAGE, FieldType.IMAGE])
    assert dtype.fields is not None
    assert [dtype.fields[name][1] for name in ("f0", "f1", "f2", "f3")] == [0, 16, 24, 37]
    assert dtype.itemsize == 56


def test_align_rounds_up() -> None:
    assert [align(position, 8) for position in (0, 1, 8, 9)] == [0, 8, 8, 16]
