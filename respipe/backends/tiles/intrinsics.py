"""Operations on many numbers at once that compiled Python has no words for: those of LLVM, for any processor."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from respipe.backends.compiled.llvm import address, store
from respipe.jpeg.compilation import intrinsic, types

_LANES = 8

CHUNK = 32
"""Bytes that are copied at a time."""


def _all_lanes(builder: Any, vector: Any, value: Any) -> Any:
    filled = vector(ir.Undefined)
    for lane in range(vector.count):
        filled = builder.insert_element(filled, value, ir.IntType(32)(lane))
    return filled


def _load_word(_context: Any, data: Any, _position: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = address(context, builder, signature.args[0], *arguments)
        word = builder.load(place, align=1, typ=ir.IntType(64))
        return builder.bswap(word)

    return types.uint64(data, types.int64), generate


def _copy_chunk(_context: Any, data: Any, _start: Any, out: Any, _to: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector: Any = ir.VectorType(ir.IntType(8), CHUNK)
        mask: Any = ir.IntType(CHUNK)
        data, start, out, to = arguments
        source = address(context, builder, signature.args[0], data, start)
        target = address(context, builder, signature.args[2], out, to)
        values = builder.load(source, align=1, typ=vector)
        store(builder, values, target, align=1)
        found = builder.bitcast(builder.icmp_unsigned("==", values, vector([0xFF] * CHUNK)), mask)
        return builder.zext(builder.cttz(found, ir.IntType(1)(0)), ir.IntType(64))

    return types.int64(data, types.int64, out, types.int64), generate


def _add_scaled(_context: Any, target: Any, _to: Any, source: Any, _start: Any, _factor: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector: Any = ir.VectorType(ir.FloatType(), _LANES)
        target, to, source, start, factor = arguments
        into = address(context, builder, signature.args[0], target, to)
        row = address(context, builder, signature.args[2], source, start)
        factors = _all_lanes(builder, vector, factor)
        added = builder.fmul(factors, builder.load(row, align=4, typ=vector), flags=("fast",))
        total = builder.fadd(builder.load(into, align=4, typ=vector), added, flags=("fast",))
        store(builder, total, into, align=4)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.float32), generate


def _spread(_context: Any, target: Any, _value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector: Any = ir.VectorType(ir.FloatType(), _LANES)
        target, value = arguments
        start = address(context, builder, signature.args[0], target, ir.IntType(64)(0))
        store(builder, _all_lanes(builder, vector, value), start, align=4)
        return context.get_dummy_value()

    return types.void(target, types.float32), generate


def _store_pixels(_context: Any, block: Any, plane: Any, _at: Any, _stride: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        floats: Any = ir.VectorType(ir.FloatType(), _LANES)
        numbers: Any = ir.VectorType(ir.IntType(32), _LANES)
        integer: Any = ir.IntType(64)
        block, plane, at, stride = arguments
        least, most = floats([0.0] * _LANES), floats([255.0] * _LANES)
        for x in range(_LANES):
            place = address(context, builder, signature.args[0], block, integer(_LANES * x))
            value = builder.load(place, align=4, typ=floats)
            store(builder, least, place, align=4)
            # Before the conversion, which is undefined for numbers out of range, as damaged images have them.
            value = builder.select(builder.fcmp_ordered(">", value, least), value, least)
            value = builder.select(builder.fcmp_ordered("<", value, most), value, most)
            pixels = builder.trunc(builder.fptosi(value, numbers), ir.VectorType(ir.IntType(8), _LANES))
            into = builder.add(at, builder.mul(stride, integer(x)))
            place = address(context, builder, signature.args[1], plane, into)
            store(builder, pixels, place, align=1)
        return context.get_dummy_value()

    return types.void(block, plane, types.int64, types.int64), generate


def _store_flat(_context: Any, _value: Any, plane: Any, _at: Any, _stride: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, plane, at, stride = arguments
        pixels = _all_lanes(builder, ir.VectorType(ir.IntType(8), _LANES), value)
        for x in range(_LANES):
            into = builder.add(at, builder.mul(stride, ir.IntType(64)(x)))
            place = address(context, builder, signature.args[1], plane, into)
            store(builder, pixels, place, align=1)
        return context.get_dummy_value()

    return types.void(types.uint8, plane, types.int64, types.int64), generate


load_word: Any = intrinsic(_load_word)
"""``load_word(data, position)``: eight bytes of a uint8 array from any place, the first one highest, as uint64."""

copy_chunk: Any = intrinsic(_copy_chunk)
"""``copy_chunk(data, start, out, to)``: copy ``CHUNK`` bytes, and return how many come before the first 0xFF."""

add_scaled: Any = intrinsic(_add_scaled)
"""``add_scaled(target, to, source, start, factor)``: ``target[to:to+8] += factor * source[start:start+8]``, in float32.

The compiler cannot vectorise that loop, since for all it knows the two arrays overlap.
"""

spread: Any = intrinsic(_spread)
"""``spread(target, value)``: ``target[:8] = value``, in float32."""

store_pixels: Any = intrinsic(_store_pixels)
"""``store_pixels(block, plane, at, stride)``: eight columns of eight float32 become uint8.

Numbers below 0 and above 255 are clipped, others truncated. ``block`` is set to 0.
"""

store_flat: Any = intrinsic(_store_flat)
"""``store_flat(value, plane, at, stride)``: eight columns of eight uint8 become one value."""
