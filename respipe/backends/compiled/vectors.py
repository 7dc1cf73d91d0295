"""The inner loop of resizing as vector instructions: LLVM's, so that they become what each processor has."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from respipe.backends.compiled.llvm import store
from respipe.jpeg.compilation import cgutils, intrinsic, types

ROWS = 8
"""Rows that are weighed together, to share the weights and the work of looping."""

PIXELS = 2
"""Pixels of three channels that are weighed in one step."""

LANES = 8
"""Elements of a vector: those of ``PIXELS`` pixels, and two more, whose weights are zero."""


def _weigh_pixels(_context: Any, rows: Any, _at: Any, weights: Any, _tap: Any, _steps: Any, sums: Any, _to: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector: Any = ir.VectorType(ir.FloatType(), LANES)
        integer: Any = ir.IntType(64)
        rows, at, weights, tap, steps, sums, to = arguments
        totals = [cgutils.alloca_once_value(builder, vector([0.0] * LANES)) for _ in range(ROWS)]

        def place(number: int, array: Any, row: Any, column: Any) -> Any:
            struct = context.make_array(signature.args[number])(context, builder, array)
            return cgutils.get_item_pointer(context, builder, signature.args[number], struct, [row, column])

        with cgutils.for_range(builder, steps) as step:
            column = builder.mul(step.index, integer(LANES))
            factors = builder.load(place(2, weights, tap, column), align=4, typ=vector)
            column = builder.add(at, builder.mul(step.index, integer(3 * PIXELS)))
            for row, total in enumerate(totals):
                pixels = builder.load(place(0, rows, integer(row), column), align=4, typ=vector)
                product = builder.fmul(pixels, factors, flags=("fast",))
                builder.store(builder.fadd(builder.load(total, typ=vector), product, flags=("fast",)), total)
        for row, total in enumerate(totals):
            pixel = _folded(builder, builder.load(total, typ=vector))
            store(builder, pixel, place(5, sums, integer(row), to), align=4)
        return context.get_dummy_value()

    return types.void(rows, types.int64, weights, types.int64, types.int64, sums, types.int64), generate


def _folded(builder: Any, total: Any) -> Any:
    """The sum of a vector's pixels, with a fourth element that counts for nothing."""
    lanes: Any = ir.VectorType(ir.IntType(32), 4)
    first, second = (builder.shuffle_vector(total, total, lanes(list(range(at, at + 4)))) for at in (0, 3))
    return builder.fadd(first, second, flags=("fast",))


weigh_pixels: Any = intrinsic(_weigh_pixels)
"""``weigh_pixels(rows, at, weights, tap, steps, sums, to)``: weighted sums of neighbouring pixels in ``ROWS`` rows.

``sums[r, to:to+3]`` becomes the sum over all steps j of ``weights[tap, 8j:8j+3] * rows[r, at+6j:at+6j+3]`` and of
``weights[tap, 8j+3:8j+6] * rows[r, at+6j+3:at+6j+6]``, and ``sums[r, to+3]`` some number. All arrays are float32 with
two axes. Elements of a row up to five beyond the last weighed pixel are read; they must be finite.
"""
