"""Weighted sums of samples, and their colour, as vector instructions: LLVM's, for any processor.

Samples are weighed as unsigned integers of 16 bits, which count in parts of 256 of a grey level. Where a processor has
shorter vectors than those here, LLVM makes several operations of each.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from respipe.backends.compiled.llvm import address, element, store
from respipe.jpeg.compilation import cgutils, intrinsic, types

BAND = 32
"""Rows of a plane whose samples in a column lie behind each other."""

BLOCK = 8
"""Columns of output that are weighed together."""

PIXELS = 32
"""Pixels of output that are weighed and converted together."""

_integer: Any = ir.IntType(64)
_byte: Any = ir.IntType(8)
_short: Any = ir.IntType(16)
_word: Any = ir.IntType(32)


def _vector(kind: Any, lanes: int) -> Any:
    return ir.VectorType(kind, lanes)


def _shuffled(builder: Any, one: Any, other: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(one, other, _vector(_word, len(order))(order))


def _everywhere(builder: Any, pair: Any, lanes: int) -> Any:
    """A vector of 16-bit integers from the two halves of one of 32 bits, which are equal."""
    vector = _vector(_word, lanes // 2)
    first = builder.insert_element(vector(ir.Undefined), pair, _word(0))
    return builder.bitcast(_shuffled(builder, first, first, [0] * (lanes // 2)), _vector(_short, lanes))


def _high_product(builder: Any, one: Any, other: Any, extend: str) -> Any:
    """The upper halves of the products of 16-bit integers."""
    wide = _vector(_word, one.type.count)
    product = builder.mul(*(getattr(builder, extend)(factor, wide) for factor in (one, other)))
    return builder.trunc(builder.lshr(product, wide([16] * wide.count)), one.type)


def _weigh_columns(
    _context: Any,
    plane: Any,
    _start: Any,
    first: Any,
    weights: Any,
    constants: Any,
    _x: Any,
    _count: Any,
    rows: Any,
    _to: Any,
    _stride: Any,
) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        plane, start, first, weights, constants, x, count, rows, to, stride = arguments
        kinds = signature.args
        samples, words = _vector(_byte, BAND), _vector(_short, BAND)
        columns: list[Any] = []
        for i in range(BLOCK):
            number = builder.add(x, _integer(i))
            origin = builder.load(address(context, builder, kinds[2], first, number), typ=_integer)
            origin = builder.add(start, builder.mul(origin, _integer(BAND)))
            column = address(context, builder, kinds[0], plane, origin)
            tap = address(context, builder, kinds[3], weights, builder.mul(number, count))
            constant = builder.load(address(context, builder, kinds[4], constants, number), typ=_word)
            total = cgutils.alloca_once_value(builder, _everywhere(builder, constant, BAND))
            columns.append((column, tap, total))
        with cgutils.for_range(builder, count) as loop:
            for column, tap, total in columns:
                values = builder.load(element(builder, column, samples, loop.index), align=1, typ=samples)
                values = builder.shl(builder.zext(values, words), words([8] * BAND))
                weight = builder.load(element(builder, tap, _word, loop.index), typ=_word)
                product = _high_product(builder, values, _everywhere(builder, weight, BAND), "zext")
                builder.store(builder.add(builder.load(total, typ=words), product), total)
        lines = _transposed(builder, [builder.load(total, typ=words) for _, _, total in columns])
        for i, line in enumerate(lines):
            for start in range(0, BAND, BLOCK):
                part = _shuffled(builder, line, line, list(range(start, start + BLOCK)))
                at = builder.add(to, builder.mul(stride, _integer(start + i)))
                into = address(context, builder, kinds[7], rows, at)
                store(builder, part, into, align=2)
        return context.get_dummy_value()

    number = types.int64
    return types.void(plane, number, first, weights, constants, number, number, rows, number, number), generate


def _transposed(builder: Any, lines: list[Any]) -> list[Any]:
    """Eight vectors of groups of eight, each group transposed with those of the other vectors at the same place."""
    # Three times a perfect shuffle: each exchanges one bit of the vector's number with one of the place in the group.
    half = BLOCK // 2
    for _ in range(3):
        pairs = [(lines[i], lines[i + half]) for i in range(half)]
        lines = [
            _shuffled(
                builder,
                *pair,
                [
                    lane + source
                    for group in range(0, BAND, BLOCK)
                    for lane in range(group + start, group + start + half)
                    for source in (0, BAND)
                ],
            )
            for pair in pairs
            for start in (0, half)
        ]
    return lines


def _weigh_rows(lanes: int) -> Any:
    vector = _vector(_short, lanes)

    def declare(
        _context: Any,
        rows: Any,
        _start: Any,
        _stride: Any,
        weights: Any,
        _tap: Any,
        _count: Any,
        _constant: Any,
        sums: Any,
        _to: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows, start, stride, weights, tap, count, constant, sums, to = arguments
            total = cgutils.alloca_once_value(builder, _everywhere(builder, constant, lanes))
            with cgutils.for_range(builder, count) as loop:
                at = builder.add(start, builder.mul(loop.index, stride))
                row = address(context, builder, signature.args[0], rows, at)
                place = address(context, builder, signature.args[3], weights, builder.add(tap, loop.index))
                weight = _everywhere(builder, builder.load(place, typ=_word), lanes)
                product = _high_product(builder, builder.load(row, align=2, typ=vector), weight, "zext")
                builder.store(builder.add(builder.load(total, typ=vector), product), total)
            into = address(context, builder, signature.args[7], sums, to)
            store(builder, builder.load(total, typ=vector), into, align=2)
            return context.get_dummy_value()

        number = types.int64
        return types.void(rows, number, number, weights, number, number, types.uint32, sums, number), generate

    return declare


def _convert(_context: Any, sums: Any, pixels: Any, _to: Any) -> Any:
    vector = _vector(_short, PIXELS)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, pixels, to = arguments

        def constant(value: int) -> Any:
            return vector([value] * PIXELS)

        def sample(plane: int) -> Any:
            """In parts of 64, which leaves bits for the sign and for 1.772 times as much."""
            at = address(context, builder, signature.args[0], sums, _integer(PIXELS * plane))
            value = builder.load(at, align=2, typ=vector)
            return builder.lshr(value, constant(2))

        def scaled(value: Any, factor: float) -> Any:
            return _high_product(builder, value, constant(round(65536 * factor)), "sext")

        def channel(*summands: Any) -> Any:
            total = constant(33)  # a half, and what the summands have lost on average
            for summand in summands:
                total = builder.add(total, summand)
            total = builder.ashr(total, constant(6))
            total = builder.select(builder.icmp_signed(">", total, constant(0)), total, constant(0))
            return builder.select(builder.icmp_signed("<", total, constant(255)), total, constant(255))

        luma = sample(0)
        blueness, redness = (builder.sub(sample(plane), constant(128 << 6)) for plane in (1, 2))
        # No factor may be 1/2 or more: the rest of it is added or subtracted whole.
        red = channel(luma, redness, scaled(redness, 0.402))
        blue = channel(luma, blueness, blueness, scaled(blueness, -0.228))
        less_red = builder.sub(scaled(redness, 1 - 0.714136), redness)
        green = channel(luma, less_red, scaled(blueness, -0.344136))
        red_green = builder.or_(red, builder.shl(green, constant(8)))
        half, numbers = PIXELS // 2, _vector(_word, PIXELS // 2)
        for start in (0, half):
            part = list(range(start, start + half))
            first, last = (
                builder.zext(_shuffled(builder, values, values, part), numbers) for values in (red_green, blue)
            )
            pixel = builder.or_(first, builder.shl(last, numbers([16] * half)))
            # Of the four bytes of each number three are a pixel.
            found = builder.bitcast(pixel, _vector(_byte, 4 * half))
            found = _shuffled(builder, found, found, [4 * number + byte for number in range(half) for byte in range(3)])
            into = address(context, builder, signature.args[1], pixels, builder.add(to, _integer(3 * start)))
            store(builder, found, into, align=1)
        return context.get_dummy_value()

    return types.void(sums, pixels, types.int64), generate


weigh_columns: Any = intrinsic(_weigh_columns)
"""``weigh_columns(plane, start, first, weights, constants, x, count, rows, to, stride)``: eight columns of output.

For all i < BAND and x <= j < x + BLOCK, ``rows[to + i * stride + j - x]`` becomes ``constants[j]`` and the sum over
k < ``count`` of ``weights[j * count + k] * plane[start + BAND * (first[j] + k) + i] / 256``. ``plane`` is uint8,
``rows`` uint16, and the rest are parts of a :class:`respipe.backends.tiles.taps.Taps`.
"""

weigh_row: Any = intrinsic(_weigh_rows(PIXELS))
"""``weigh_row(rows, start, stride, weights, tap, count, constant, sums, to)``: a part of a row of output.

For all i < PIXELS, ``sums[to + i]`` becomes ``constant`` and the sum over k < ``count`` of ``weights[tap + k] *
rows[start + k * stride + i] / 65536``. ``rows`` and ``sums`` are uint16, the rest as above.
"""

weigh_two_rows: Any = intrinsic(_weigh_rows(2 * PIXELS))
"""The same for twice as many elements, with those of two planes behind each other."""

convert: Any = intrinsic(_convert)
"""``convert(sums, pixels, to)``: vectors of Y, Cb and Cr behind each other, in parts of 256, become RGB (ITU-T T.871).

``pixels[to:]`` is filled with three bytes for each of ``PIXELS`` pixels, rounded.
"""
