"""Memory of batches is used again, but never while anything refers to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from respipe.backends.pool.buffers import OutputBuffers

SHAPES = [(2, 8, 8, 3), (2, 4, 4, 3)]


def address(array: NDArray[np.uint8]) -> int:
    return array.ctypes.data


def test_arrays_have_the_shapes_asked_for_and_do_not_overlap() -> None:
    first, second = OutputBuffers().allocate(SHAPES)
    assert (first.shape, second.shape) == (SHAPES[0], SHAPES[1])
    assert first.flags.c_contiguous
    assert second.flags.c_contiguous
    assert not np.shares_memory(first, second)
    first[:], second[:] = 1, 2
    assert (first == 1).all()


def test_memory_comes_back_when_nobody_refers_to_it() -> None:
    buffers = OutputBuffers()
    arrays = buffers.allocate(SHAPES)
    place = address(arrays[0])
    del arrays
    assert address(buffers.allocate(SHAPES)[0]) == place


HOLDERS: dict[str, Callable[[tuple[NDArray[np.uint8], ...]], Any]] = {
    "one of the arrays": lambda arrays: arrays[1],
    "a view": lambda arrays: arrays[0][1:, ::2],
    "a view of a view": lambda arrays: arrays[0][1:][0][2:5],
    "a tensor": lambda arrays: torch.from_numpy(arrays[0]),
    "a view of a tensor": lambda arrays: torch.from_numpy(arrays[1]).permute(0, 3, 1, 2)[:1],
    "an array of a tensor": lambda arrays: torch.from_numpy(arrays[1])[0].numpy(),
    "a memory view": lambda arrays: memoryview(arrays[0]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_is_not_used_again_while_something_shares_it(holder: str) -> None:
    buffers = OutputBuffers()
    arrays = buffers.allocate(SHAPES)
    for array in arrays:
        array[:] = 7
    held = HOLDERS[holder](arrays)
    del arrays, array
    for _ in range(3):
        others = buffers.allocate(SHAPES)
        for other in others:
            other[:] = 9
    assert (np.asarray(held) == 7).all()


def test_smaller_batches_use_the_memory_of_larger_ones() -> None:
    buffers = OutputBuffers()
    place = address(buffers.allocate([(4, 8, 8, 3)])[0])
    assert address(buffers.allocate([(1, 8, 8, 3)])[0]) == place
    assert address(buffers.allocate([(4, 8, 8, 3)])[0]) == place


def test_memory_of_smaller_batches_is_given_up_for_that_of_a_larger_one() -> None:
    buffers = OutputBuffers()
    buffers.allocate([(1, 8, 8, 3)])
    (large,) = buffers.allocate([(64, 8, 8, 3)])
    large[:] = 1
    assert large.nbytes == 64 * 8 * 8 * 3


def test_a_batch_may_be_empty() -> None:
    buffers = OutputBuffers()
    assert [array.shape for array in buffers.allocate([(0, 8, 8, 3), (0, 4, 4, 3)])] == [(0, 8, 8, 3), (0, 4, 4, 3)]
    assert buffers.allocate([(1, 8, 8, 3)])[0].shape == (1, 8, 8, 3)
