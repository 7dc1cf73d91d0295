"""Truncated, foreign and hostile files: they are refused on opening, or every byte they lead to is inside the file."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from respipe.errors import CorruptImageError, StorageError
from respipe.storage.beton.appendix import MAGIC
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.beton.format import FIELD, HEADER, PAGE_SIZE
from respipe.storage.beton.structure import read_hidden_levels, read_structure
from tests.memory_dataset import jpeg_bytes, smooth_image
from tests.slow.faults.mutations import seal
from tests.small_pages import PAGE_SIZE as SMALL_PAGE_SIZE
from tests.small_pages import convert_small
from tests.storage.plain_beton import START, write_plain_beton

METADATA = HEADER.itemsize + 2 * FIELD.itemsize
"""Where the first row of metadata begins: mode, width, height, pointer, padding, label."""

HUGE = (1 << 64) - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def plain(folder: Path) -> bytes:
    images = [(0, 40, 24, jpeg_bytes(smooth_image(24, 40, seed=seed)).tobytes()) for seed in range(3)]
    return write_plain_beton(folder / "plain.beton", [*images, (1, 3, 2, bytes(range(18)))], range(4)).read_bytes()


@pytest.fixture(scope="module")
def pyramid(folder: Path, jpeg_folder: Path) -> bytes:
    convert_small(jpeg_folder, folder / "pyramid.beton")
    return (folder / "pyramid.beton").read_bytes()


def patched(data: bytes, place: int, layout: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, place, *values)
    return bytes(changed)


def write_anew(path: Path, data: bytes) -> None:
    """Write a file that is not the one which an open dataset may still have mapped."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def open_and_walk(path: Path, data: bytes) -> None:
    """Open a file and touch every image; anything but the two errors meant for it is a failure."""
    write_anew(path, data)
    try:
        dataset = BetonDataset(path)
    except StorageError:
        return
    for number, level in enumerate(dataset.levels):
        assert (level.offsets >= HEADER.itemsize).all()
        assert (level.offsets + level.sizes <= len(data)).all()
        assert min(level.sizes.min(), level.heights.min(), level.widths.min()) >= 1
        for index in range(len(dataset)):
            with contextlib.suppress(CorruptImageError):
                dataset.check(index, number)
            assert dataset.encoded(index, number).size == level.sizes[index]
    assert dataset.fingerprint
    assert dataset.name(0)


@pytest.mark.parametrize(
    ("place", "layout", "value", "what"),
    [
        (0, "<H", 3, "format version is 3 where 2"),
        (2, "<H", 0, "0 fields"),
        (2, "<H", 60_000, "60000 fields do not fit"),
        (8, "<Q", 0, "0 samples"),
        (8, "<Q", 1 << 20, "metadata of 1048576 samples does not fit"),
        (8, "<Q", HUGE, "does not fit"),
        (16, "<Q", 0, "allocation table is said to begin at byte 0"),
        (16, "<Q", HUGE, "allocation table"),
        (24, "<B", 255, "field `image` has type 255"),
        (25, "<B", 0, "empty, taken or not ASCII"),
        (25, "<B", 200, "empty, taken or not ASCII"),
        (METADATA, "<B", 2, "sample 0, field `image`: mode must be"),
        (METADATA + 1, "<H", 0, "height and width must be at least 1"),
        (METADATA + 24 + 3, "<H", 0, "sample 1, field `image`: height and width must be at least 1"),
        (METADATA + 5, "<Q", START + 1, "pointer must be in the allocation table"),
        (METADATA + 5, "<Q", HUGE, "pointer must be in the allocation table"),
        (METADATA + 3 * 24 + 1, "<H", 4, "sample 3, field `image`: length must be height x width x 3; got 18"),
    ],
)
def test_hostile_numbers_are_refused(
    folder: Path, plain: bytes, place: int, layout: str, value: int, what: str
) -> None:
    path = folder / "hostile.beton"
    write_anew(path, patched(plain, place, layout, value))
    with pytest.raises(StorageError, match=what) as caught:
        BetonDataset(path)
    assert "hostile.beton" in str(caught.value)
    assert "convert it again" in str(caught.value)


@pytest.mark.parametrize("pointer", [0, METADATA, HUGE, 1 << 63, "table"])
@pytest.mark.parametrize("size", [1, HUGE])
def test_images_outside_the_data_region_are_refused(folder: Path, plain: bytes, pointer: int | str, size: int) -> None:
    table = len(plain) - 4 * 24
    place = table if pointer == "table" else int(pointer)
    data = patched(plain, METADATA + 5, "<Q", place)
    data = patched(data, table + 3 * 24, "<QQQ", 0, place, size)
    path = folder / "outside.beton"
    write_anew(path, data)
    with pytest.raises(StorageError, match="sample 0, field `image`: pointer must be in"):
        BetonDataset(path)


@pytest.mark.parametrize("size", [0, 1 << 20, HUGE, HUGE - START])
def test_lengths_that_cannot_be_are_refused(folder: Path, plain: bytes, size: int) -> None:
    path = folder / "length.beton"
    write_anew(path, patched(plain, len(plain) - 24 + 16, "<Q", size))
    with pytest.raises(StorageError, match="sample 0, field `image`: length must be at least 1 and end before"):
        BetonDataset(path)


def test_an_image_that_claims_gigabytes_is_refused(folder: Path, plain: bytes) -> None:
    path = folder / "bomb.beton"
    write_anew(path, patched(plain, METADATA + 1, "<HH", 65_535, 65_535))
    with pytest.raises(StorageError, match="`image`: encoded images must have at most 178956970 pixels"):
        BetonDataset(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"dtype": "<i8", "name": "name_offsets"', b'"dtype": "<f8", "name": "name_offsets"'),
        (b'"writer": "respipe 0.1.0"', b'"writer": [["respipe01"]]'),
        (b'"classes": ["ant", "bee", "cat"]', b'"classes": 7'),
    ],
)
def test_forged_attributes_of_the_wrong_types_are_refused(folder: Path, pyramid: bytes, old: bytes, new: bytes) -> None:
    assert pyramid.count(old) == 1
    data = bytearray(pyramid)
    place = data.index(old)
    data[place : place + len(old)] = new.ljust(len(old))
    seal(data)
    path = folder / "forged.beton"
    write_anew(path, bytes(data))
    with pytest.raises(StorageError, match="its appendix is inconsistent"):
        BetonDataset(path)


def test_two_fields_of_one_name_are_refused(folder: Path, plain: bytes) -> None:
    data = bytearray(plain)
    name = HEADER.itemsize + FIELD.itemsize + 1
    data[name : name + 16] = b"image".ljust(16, b"\0")
    path = folder / "twice.beton"
    write_anew(path, data)
    with pytest.raises(StorageError, match="field 1 has the name b'image'"):
        BetonDataset(path)


def test_a_name_that_fills_its_place_needs_no_terminator(folder: Path, plain: bytes) -> None:
    data = bytearray(plain)
    data[HEADER.itemsize + 1 : HEADER.itemsize + 17] = b"a_name_of_16_let"
    path = folder / "long.beton"
    write_anew(path, data)
    assert BetonDataset(path).levels[0].name == "a_name_of_16_let"


def test_file_without_images_is_refused(folder: Path, plain: bytes) -> None:
    data = bytearray(plain)
    data[HEADER.itemsize] = 3
    path = folder / "bytes.beton"
    write_anew(path, data)
    with pytest.raises(StorageError, match="must have an image field; its fields are `image`, `label`"):
        BetonDataset(path)


def test_huge_counts_allocate_nothing(folder: Path, plain: bytes) -> None:
    path = folder / "huge.beton"
    tracemalloc.start()
    try:
        for place, layout, value in ((8, "<Q", 1 << 50), (16, "<Q", 1 << 50), (2, "<H", 65_535)):
            write_anew(path, patched(plain, place, layout, value))
            with pytest.raises(StorageError):
                BetonDataset(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04" * 2000, bytes(5000)])
def test_foreign_files_are_refused(folder: Path, data: bytes) -> None:
    path = folder / "foreign.beton"
    write_anew(path, data)
    with pytest.raises(
        StorageError, match=r"foreign.beton (cannot be read as|is a (PNG image|zip archive), not) a .beton"
    ):
        BetonDataset(path)


def test_missing_file_and_folder_are_refused(folder: Path) -> None:
    for path in (folder / "nowhere.beton", folder):
        with pytest.raises(StorageError, match="cannot be opened"):
            BetonDataset(path)


def test_every_truncation_is_noticed(folder: Path, plain: bytes, pyramid: bytes) -> None:
    path = folder / "truncated.beton"
    for data in (plain, pyramid):
        lengths = {*np.linspace(0, len(data) - 1, 60).astype(int).tolist(), *range(len(data) - 100, len(data))}
        for length in lengths:
            write_anew(path, data[:length])
            with pytest.raises(StorageError):
                BetonDataset(path)


@given(
    st.lists(
        st.tuples(st.integers(0, METADATA + 4 * 24 - 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    ),
    st.lists(st.tuples(st.integers(1, 4 * 24), st.binary(min_size=1, max_size=8)), max_size=3),
)
def test_changed_tables_never_lead_outside_the_file(
    folder: Path, plain: bytes, head: list[tuple[int, bytes]], table: list[tuple[int, bytes]]
) -> None:
    data = bytearray(plain)
    for place, values in [*head, *((len(plain) - back, values) for back, values in table)]:
        data[place : place + len(values)] = values
    open_and_walk(folder / "changed.beton", bytes(data))


@given(place=st.integers(METADATA, METADATA + 4 * 24 - 1), value=st.integers(0, 255), cut=st.integers(0, 200))
def test_changed_rows_and_cut_ends_never_lead_outside_the_file(
    folder: Path, plain: bytes, place: int, value: int, cut: int
) -> None:
    data = bytearray(plain)
    data[place] = value
    open_and_walk(folder / "row.beton", bytes(data[: len(data) - cut]))


@given(number=st.integers(0, 1 << 40), bit=st.integers(0, 7))
def test_any_changed_byte_of_a_pyramid_is_found(folder: Path, pyramid: bytes, number: int, bit: int) -> None:
    path = folder / "flipped.beton"
    place = number % len(pyramid)
    flipped = bytearray(pyramid)
    flipped[place] ^= 1 << bit
    write_anew(path, bytes(flipped))
    sound = BetonDataset(folder / "pyramid.beton")
    hit = {
        (index, number)
        for number, level in enumerate(sound.levels)
        for index in np.flatnonzero((level.offsets <= place) & (place < level.offsets + level.sizes)).tolist()
    }
    try:
        dataset = BetonDataset(path)
    except StorageError:
        assert not hit
        return
    found = {
        (index, number)
        for number in range(len(dataset.levels))
        for index in range(len(dataset))
        if dataset.problem(index, number) is not None
    }
    assert found == hit
    if not hit:  # nothing but unused bytes is left unguarded, or the limit below which images must end
        assert np.array_equal(dataset.labels, sound.labels)
        assert dataset.fingerprint == sound.fingerprint


def test_neither_mark_of_the_appendix_can_be_lost_alone(folder: Path, pyramid: bytes) -> None:
    path = folder / "mark.beton"
    for mark in (pyramid.find(MAGIC), pyramid.rfind(MAGIC)):
        write_anew(path, patched(pyramid, mark, "<B", 0))
        with pytest.raises(StorageError, match=r"checksum|is missing"):
            BetonDataset(path)


def test_pages_are_those_of_ffcv_unless_a_test_makes_them_small(pyramid: bytes) -> None:
    assert PAGE_SIZE == 8 << 20
    assert struct.unpack_from("<I", pyramid, 4) == (SMALL_PAGE_SIZE,)


@pytest.mark.parametrize(
    ("table", "value", "rule"),
    [
        ("heights", 0, r"height and width must be at least 1; got 0"),
        ("offsets", 3, r"pointer must be in \d+\.\.\d+; got 3"),
        ("sizes", 2**62, r"length must be at least 1 and end before byte \d+; got 4611686018427387904"),
    ],
)
def test_a_fault_of_a_smaller_level_names_the_level_and_the_sample(
    jpeg_folder: Path, tmp_path: Path, table: str, value: int, rule: str
) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    structure = read_structure(tmp_path / "x.beton", np.fromfile(tmp_path / "x.beton", np.uint8))
    appendix = structure.appendix
    assert appendix is not None
    arrays = {name: appendix.array(f"level_{name}").copy() for name in ("heights", "widths", "offsets", "sizes")}
    arrays[table][1, 7] = value
    faulty: Any = SimpleNamespace(array=lambda name: arrays[name.removeprefix("level_")])
    with pytest.raises(StorageError, match=f"sample 7, field `image_32`: {rule}"):
        read_hidden_levels(structure, faulty, ["image_64", "image_32"])
