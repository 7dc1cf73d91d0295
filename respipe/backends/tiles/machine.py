"""Two operations on memory that compiled Python has no words for: LLVM instructions, the same on every processor."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
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


load_word: Any = intrinsic(_load_word)
"""``load_word(data, position)``: eight bytes of a uint8 array from any place, the first one highest, as uint64."""

add_scaled: Any = intrinsic(_add_scaled)
"""``add_scaled(target, to, source, start, factor)``: ``target[to:to+8] += factor * source[start:start+8]``, in float32.

The compiler cannot vectorise that loop, since for all it knows the two arrays overlap.
"""

spread: Any = intrinsic(_spread)
"""``spread(target, value)``: ``target[:8] = value``, in float32."""
