from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from respipe.storage.beton.string_table import TextTable


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)))))
def test_strings_come_back(strings: list[str]) -> None:
    table = TextTable.of(strings)
    assert list(table) == strings
    assert len(table) == len(strings)


def test_file_names_that_are_no_utf8_come_back_and_can_be_printed() -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert TextTable.of([name])[0] == name


@pytest.mark.parametrize("index", [-1, 2])
def test_index_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=r"must be in 0\.\.1"):
        TextTable.of(["a", "b"])[index]


@pytest.mark.parametrize("offsets", [[], [0], [0, 2], [1, 3], [0, 4], [0, 2, 1, 3], [0, -1, 3]])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="`offsets` must"):
        TextTable(np.frombuffer(b"abc", np.uint8), np.array(offsets, np.int64))
