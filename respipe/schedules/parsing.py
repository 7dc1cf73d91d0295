"""Schedules from text: from the ``schedule:`` mapping of a recipe, or from an expression on a command line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from respipe.schedules.constant import Constant
from respipe.schedules.lowmode import LowMode
from respipe.schedules.mixsize import MixSize
from respipe.schedules.multicrop import MultiCrop
from respipe.schedules.progressive import Progressive
from respipe.schedules.rsnet import RSNet
from respipe.schedules.step import Schedule, View
from respipe.schedules.trd import TRD

SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "Constant": Constant,
    "LowMode": LowMode,
    "MixSize": MixSize,
    "Progressive": Progressive,
    "RSNet": RSNet,
    "TRD": TRD,
}
"""Every schedule by the name that recipes and expressions use."""

IN_EXPRESSIONS: Mapping[str, Callable[..., Any]] = {**SCHEDULES, "MultiCrop": MultiCrop, "View": View}
"""What expressions may name: more than recipes, whose training knows no loss for such steps."""


def schedule_from_config(config: Mapping[str, Any], *, num_epochs: int | None = None) -> Schedule:
    """Build a schedule from a mapping such as ``{"name": "TRD", "full_size": 224, ...}``.

    Args:
        config: ``name``, a key of :data:`SCHEDULES`, and the schedule's own fields. Lists stand for tuples.
        num_epochs: length of the run, for schedules that have such a field and are not told otherwise.

    Raises:
        ValueError: a field is unknown, missing, of the wrong type or out of range; the message names it.
    """
    if "name" not in config:
        raise ValueError(f"`schedule.name` must be given; got the fields {list(config)}. {_choices()}")
    fields = {str(field): value for field, value in config.items() if field != "name"}
    return _build(config["name"], (), fields, num_epochs=num_epochs)


def schedule_from_expression(
    text: str, *, num_epochs: int | None = None, known: Mapping[str, Callable[..., Any]] = IN_EXPRESSIONS
) -> Schedule:
    """Build a schedule from an expression such as ``TRD(224, 112, 0.5, milestones=(75, 150, 225))``.

    The text is parsed, never run: one call of a known schedule, whose arguments are literals, views or schedules.

    Args:
        text: the expression.
        num_epochs: length of the run, for schedules that have such a field and are not told otherwise.
        known: what may be called, by name.

    Raises:
        ValueError: the text is anything else, or an argument is unknown, missing or out of range.
    """
    try:
        call = _parsed(text.strip())
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise TypeError("not a call")
        schedule = _called(call, call.func.id, known, num_epochs)
    except (SyntaxError, TypeError, RecursionError, MemoryError, _NoLiteralError) as error:
        raise ValueError(
            f"`schedule` must be one schedule with literal arguments; got {text[:200]!r}. "
            "Write for example TRD(224, 112, 0.5, milestones=(75, 150, 225))."
        ) from error
    if not isinstance(schedule, Schedule):
        raise ValueError(f"`schedule` must be a schedule; got {schedule!r}. {_choices()}")
    return schedule


def values_from_expression(text: str, known: Mapping[str, Callable[..., Any]]) -> tuple[Any, ...]:
    """The values of literals and calls between commas, such as ``RandAugment(2, 9), RandomErasing(0.25)``.

    Args:
        text: parsed, never run.
        known: what may be called, by name.

    Raises:
        ValueError: the text is anything else, or an argument is unknown, missing or out of range.
    """
    try:
        return _value(_parsed(f"[{text.strip()}]"), known, None)
    except (SyntaxError, TypeError, RecursionError, MemoryError, _NoLiteralError) as error:
        raise ValueError(f"An expression must call some of {', '.join(known)}; got {text[:200]!r}.") from error


def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except ValueError as error:  # of null bytes; a SyntaxError from Python 3.11.4 on
        raise _NoLiteralError from error


class _NoLiteralError(Exception):
    """A part of an expression is neither a literal nor a call of what is known."""


def _value(node: ast.expr, known: Mapping[str, Callable[..., Any]], num_epochs: int | None) -> Any:
    """What a literal stands for, a call of what is known, or a sequence of them."""
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_value(one, known, num_epochs) for one in node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
        return _called(node, node.func.id, known, num_epochs)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise _NoLiteralError from error


def _called(call: ast.Call, name: str, known: Mapping[str, Callable[..., Any]], num_epochs: int | None) -> Any:
    arguments = [_value(argument, known, num_epochs) for argument in call.args]
    fields = {_field_name(keyword): _value(keyword.value, known, num_epochs) for keyword in call.keywords}
    return _build(name, arguments, fields, num_epochs=num_epochs, known=known)


def _field_name(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise _NoLiteralError
    return keyword.arg


def _build(
    name: object,
    arguments: Sequence[Any],
    fields: Mapping[str, Any],
    *,
    num_epochs: int | None,
    known: Mapping[str, Callable[..., Any]] = SCHEDULES,
) -> Any:
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"`schedule.name` must be a known schedule; got {name!r}. {_choices()}")
    signature = inspect.signature(known[name])
    for field in fields:
        if field not in signature.parameters:
            others = ", ".join(signature.parameters)
            raise ValueError(f"`schedule.{field}` must be a field of {name}; it is not. Its fields are {others}.")
    tuples = {field: _as_tuple(value) for field, value in fields.items()}
    if num_epochs is not None and "num_epochs" in signature.parameters:
        tuples.setdefault("num_epochs", num_epochs)
    try:
        signature.bind(*arguments, **tuples)
    except TypeError as error:
        required = [field for field, one in signature.parameters.items() if one.default is one.empty]
        raise ValueError(f"`schedule` must give {name} its fields {', '.join(required)}; {error}.") from error
    try:
        return known[name](*arguments, **tuples)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`schedule` must describe a {name} that can run: {error}") from error


def _as_tuple(value: Any) -> Any:
    return tuple(cast(list[Any], value)) if isinstance(value, list) else value


def _choices() -> str:
    return f"Choose one of {', '.join(SCHEDULES)}."
