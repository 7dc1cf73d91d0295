"""Operations on many numbers at once that compiled Python has no words for: those of LLVM, for any processor."""

from __future__ import annotations

from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_LANES = 8

PIXELS = 16
"""Pixels of output in a vector. Where a processor has shorter ones, LLVM makes several operations of each."""


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _all_lanes(builder: Any, vector: Any, value: Any) -> Any:
    filled = vector(ir.Undefined)
    for lane in range(vector.count):
        filled = builder.insert_element(filled, value, ir.IntType(32)(lane))
    return filled


def _load_word(_context: Any, data: Any, _position: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], *arguments)
        word = builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)
        return builder.bswap(word)

    return types.uint64(data, types.int64), generate


def _store_word(_context: Any, data: Any, _position: Any, _word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, position, word = arguments
        address = _address(context, builder, signature.args[0], data, position)
        builder.store(builder.bswap(word), builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.uint64), generate


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


def _weigh(lanes: int) -> Any:
    """A weighted sum of vectors of so many float32."""
    vector: Any = ir.VectorType(ir.FloatType(), lanes)

    def declare(
        _context: Any, source: Any, _start: Any, _stride: Any, weights: Any, _tap: Any, _count: Any, sums: Any, _to: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source, start, stride, weights, tap, count, sums, to = arguments
            total = cast(Any, cgutils.alloca_once_value(builder, vector([0.0] * lanes)))
            with cgutils.for_range(builder, count) as loop:
                place = builder.add(tap, loop.index)
                weight = builder.load(_address(context, builder, signature.args[3], weights, place))
                at = builder.add(start, builder.mul(loop.index, stride))
                address = _address(context, builder, signature.args[0], source, at)
                summand = builder.load(builder.bitcast(address, vector.as_pointer()), align=4)
                product = builder.fmul(_all_lanes(builder, vector, weight), summand, flags=("fast",))
                builder.store(builder.fadd(builder.load(total), product, flags=("fast",)), total)
            into = builder.bitcast(_address(context, builder, signature.args[6], sums, to), vector.as_pointer())
            builder.store(builder.load(total), into, align=4)
            return context.get_dummy_value()

        number = types.int64
        return types.void(source, number, number, weights, number, number, sums, number), generate

    return declare


def _convert(_context: Any, sums: Any, pixels: Any, _to: Any) -> Any:
    vector: Any = ir.VectorType(ir.FloatType(), PIXELS)
    numbers: Any = ir.VectorType(ir.IntType(32), PIXELS)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, pixels, to = arguments
        luma, blueness, redness = (
            builder.load(
                builder.bitcast(
                    _address(context, builder, signature.args[0], sums, ir.IntType(64)(PIXELS * plane)),
                    vector.as_pointer(),
                ),
                align=4,
            )
            for plane in range(3)
        )

        def channel(blue: float, red: float) -> Any:
            total = builder.fadd(luma, vector([0.5] * PIXELS), flags=("fast",))
            for factor, plane in ((blue, blueness), (red, redness)):
                if factor:
                    product = builder.fmul(vector([factor] * PIXELS), plane, flags=("fast",))
                    total = builder.fadd(total, product, flags=("fast",))
            value, least, most = builder.fptosi(total, numbers), numbers([0] * PIXELS), numbers([255] * PIXELS)
            value = builder.select(builder.icmp_signed(">", value, least), value, least)
            return builder.select(builder.icmp_signed("<", value, most), value, most)

        red, green, blue = channel(0, 1.402), channel(-0.344136, -0.714136), channel(1.772, 0)
        pixel = builder.or_(red, builder.shl(green, numbers([8] * PIXELS)))
        pixel = builder.or_(pixel, builder.shl(blue, numbers([16] * PIXELS)))
        # Of the four bytes of each number three are a pixel.
        found = builder.bitcast(pixel, ir.VectorType(ir.IntType(8), 4 * PIXELS))
        order = [4 * number + byte for number in range(PIXELS) for byte in range(3)]
        found = builder.shuffle_vector(found, found, ir.VectorType(ir.IntType(32), len(order))(order))
        into = _address(context, builder, signature.args[1], pixels, to)
        builder.store(found, builder.bitcast(into, found.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(sums, pixels, types.int64), generate


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

store_word: Any = intrinsic(_store_word)
"""``store_word(data, position, word)``: the reverse."""

add_scaled: Any = intrinsic(_add_scaled)
"""``add_scaled(target, to, source, start, factor)``: ``target[to:to+8] += factor * source[start:start+8]``, in float32.

The compiler cannot vectorise that loop, since for all it knows the two arrays overlap.
"""

spread: Any = intrinsic(_spread)
"""``spread(target, value)``: ``target[:8] = value``, in float32."""

weigh_eight: Any = intrinsic(_weigh(_LANES))
"""``weigh_eight(source, start, stride, weights, tap, count, sums, to)``: a weighted sum of vectors of eight float32.

``sums[to:to+8]`` becomes the sum over k < ``count`` of ``weights[tap + k] * source[start + k * stride:][:8]``.
"""

weigh_pixels: Any = intrinsic(_weigh(PIXELS))
"""The same for vectors of ``PIXELS``."""

convert: Any = intrinsic(_convert)
"""``convert(sums, pixels, to)``: vectors of Y, Cb - 128 and Cr - 128 behind each other become RGB (ITU-T T.871).

``pixels[to:]`` is filled with three bytes for each of ``PIXELS`` pixels, rounded.
"""

transpose: Any = intrinsic(_transpose)
"""``transpose(columns, rows, to, stride)``: eight columns of eight become parts of eight rows, in float32.

``rows[to + i * stride + j] = columns[8 * j + i]`` for all i, j < 8.
"""
