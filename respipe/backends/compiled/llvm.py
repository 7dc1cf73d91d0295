"""Addresses and stores for intrinsics, with types told where they are used: LLVM's pointers have none."""

from __future__ import annotations

from typing import Any


def address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Address of an element of an array along its only axis."""
    data = context.make_array(kind)(context, builder, array).data
    return element(builder, data, context.get_data_type(kind.dtype), index)


def element(builder: Any, start: Any, kind: Any, index: Any) -> Any:
    """Address of an element of a type, counted from a pointer."""
    return builder.gep(start, [index], source_etype=kind)


def store(builder: Any, value: Any, place: Any, *, align: int) -> None:
    """Store a value of any type at an address."""
    if not place.type.is_opaque:  # llvmlite may still give pointers the type that they were made with
        place = builder.bitcast(place, value.type.as_pointer())
    builder.store(value, place, align=align)
