"""Operations on eight numbers at once that compiled Python has no words for: those of LLVM, for any processor."""

from __future__ import annotations

from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_LANES = 8


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _all_lanes(builder: Any, vector: Any, value: Any) -> Any:
    filled = vector(ir.Undefined)
    for lane in range(_LANES):
        filled = builder.insert_element(filled, value, ir.IntType(32)(lane))
    return filled


def _load_word(_context: Any, data: Any, _position: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], *arguments)
        word = builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)
        return builder.bswap(word)

    return types.uint64(data, types.int64), generate


def _add_scaled(_context: Any, target: Any, _to: Any, source: Any, _start: Any, _factor: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector: Any = ir.VectorType(ir.FloatType(), _LANES)
        target, to, source, start, factor = arguments
        into = builder.bitcast(_address(context, builder, signature.args[0], target, to), vector.as_pointer())
        row = builder.bitcast(_address(context, builder, signature.args[2], source, start), vector.as_pointer())
        added = builder.fmul(_all_lanes(builder, vector, factor), builder.load(row, align=4), flags=("fast",))
        total = builder.fadd(builder.load(into, align=4), added, flags=("fast",))
        builder.store(total, into, align=4)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.float32), generate


def _spread(_context: Any, target: Any, _value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector: Any = ir.VectorType(ir.FloatType(), _LANES)
        target, value = arguments
        start = _address(context, builder, signature.args[0], target, ir.IntType(64)(0))
        builder.store(_all_lanes(builder, vector, value), builder.bitcast(start, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(target, types.float32), generate


def _weigh_columns(
    _context: Any, columns: Any, _first: Any, weights: Any, _tap: Any, _count: Any, sums: Any, _to: Any
) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector: Any = ir.VectorType(ir.FloatType(), _LANES)
        integer: Any = ir.IntType(64)
        columns, first, weights, tap, count, sums, to = arguments
        total = cast(Any, cgutils.alloca_once_value(builder, vector([0.0] * _LANES)))
        with cgutils.for_range(builder, count) as loop:
            weight = builder.load(_address(context, builder, signature.args[2], weights, builder.add(tap, loop.index)))
            at = builder.mul(builder.add(first, loop.index), integer(_LANES))
            column = builder.bitcast(_address(context, builder, signature.args[0], columns, at), vector.as_pointer())
            product = builder.fmul(_all_lanes(builder, vector, weight), builder.load(column, align=4), flags=("fast",))
            builder.store(builder.fadd(builder.load(total), product, flags=("fast",)), total)
        into = builder.bitcast(_address(context, builder, signature.args[5], sums, to), vector.as_pointer())
        builder.store(builder.load(total), into, align=4)
        return context.get_dummy_value()

    return types.void(columns, types.int64, weights, types.int64, types.int64, sums, types.int64), generate


def _transpose(_context: Any, columns: Any, rows: Any, _to: Any, _stride: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector: Any = ir.VectorType(ir.FloatType(), _LANES)
        integer: Any = ir.IntType(64)
        columns, rows, to, stride = arguments
        lines = [
            builder.load(
                builder.bitcast(
                    _address(context, builder, signature.args[0], columns, integer(_LANES * i)), vector.as_pointer()
                ),
                align=4,
            )
            for i in range(_LANES)
        ]
        # Three times a perfect shuffle: each exchanges one bit of the column's number with one of the row's.
        for _ in range(3):
            halves = [(lines[i], lines[i + _LANES // 2]) for i in range(_LANES // 2)]
            lines = [_interleaved(builder, *half, start) for half in halves for start in (0, _LANES // 2)]
        for i, line in enumerate(lines):
            at = builder.add(to, builder.mul(stride, integer(i)))
            into = builder.bitcast(_address(context, builder, signature.args[1], rows, at), vector.as_pointer())
            builder.store(line, into, align=4)
        return context.get_dummy_value()

    return types.void(columns, rows, types.int64, types.int64), generate


def _interleaved(builder: Any, one: Any, other: Any, start: int) -> Any:
    """Half of the lanes of two vectors in turn."""
    lanes: Any = ir.VectorType(ir.IntType(32), _LANES)
    order = [lane for i in range(start, start + _LANES // 2) for lane in (i, _LANES + i)]
    return builder.shuffle_vector(one, other, lanes(order))


load_word: Any = intrinsic(_load_word)
"""``load_word(data, position)``: eight bytes of a uint8 array from any place, the first one highest, as uint64."""

add_scaled: Any = intrinsic(_add_scaled)
"""``add_scaled(target, to, source, start, factor)``: ``target[to:to+8] += factor * source[start:start+8]``, in float32.

The compiler cannot vectorise that loop, since for all it knows the two arrays overlap.
"""

spread: Any = intrinsic(_spread)
"""``spread(target, value)``: ``target[:8] = value``, in float32."""

weigh_columns: Any = intrinsic(_weigh_columns)
"""``weigh_columns(columns, first, weights, tap, count, sums, to)``: a weighted sum of columns of eight, in float32.

``sums[to:to+8]`` becomes the sum over k < ``count`` of ``weights[tap + k] * columns[8 * (first + k):][:8]``.
"""

transpose: Any = intrinsic(_transpose)
"""``transpose(columns, rows, to, stride)``: eight columns of eight become parts of eight rows, in float32.

``rows[to + i * stride + j] = columns[8 * j + i]`` for all i, j < 8.
"""
