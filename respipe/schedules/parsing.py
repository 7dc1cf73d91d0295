"""Schedules from text: from the ``schedule:`` mapping of a recipe, or from an expression on a command line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from respipe.schedules.constant import Constant
from respipe.schedules.lowmode import LowMode
from respipe.schedules.mixsize import MixSize
from respipe.schedules.progressive import Progressive
from respipe.schedules.rsnet import RSNet
from respipe.schedules.step import Schedule
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


def schedule_from_expression(text: str, *, num_epochs: int | None = None) -> Schedule:
    """Build a schedule from an expression such as ``TRD(224, 112, 0.5, milestones=(75, 150, 225))``.

    The text is parsed, never run: one call of a known schedule, with literals as arguments.

    Args:
        text: the expression.
        num_epochs: length of the run, for schedules that have such a field and are not told otherwise.

    Raises:
        ValueError: the text is anything else, or an argument is unknown, missing or out of range.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("not a call")
        arguments = [ast.literal_eval(argument) for argument in call.args]
        fields = {_field_name(keyword): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"`schedule` must be one schedule with literal arguments; got {text[:200]!r}. "
            "Write for example TRD(224, 112, 0.5, milestones=(75, 150, 225))."
        ) from error
    return _build(call.func.id, arguments, fields, num_epochs=num_epochs)


def _field_name(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("** is not a field")
    return keyword.arg


def _build(name: object, arguments: Sequence[Any], fields: Mapping[str, Any], *, num_epochs: int | None) -> Schedule:
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ValueError(f"`schedule.name` must be a known schedule; got {name!r}. {_choices()}")
    signature = inspect.signature(SCHEDULES[name])
    for field in fields:
        if field not in signature.parameters:
            known = ", ".join(signature.parameters)
            raise ValueError(f"`schedule.{field}` must be a field of {name}; it is not. Its fields are {known}.")
    tuples = {field: _as_tuple(value) for field, value in fields.items()}
    if num_epochs is not None and "num_epochs" in signature.parameters:
        tuples.setdefault("num_epochs", num_epochs)
    try:
        signature.bind(*arguments, **tuples)
    except TypeError as error:
        required = [field for field, one in signature.parameters.items() if one.default is one.empty]
        raise ValueError(f"`schedule` must give {name} its fields {', '.join(required)}; {error}.") from error
    try:
        return SCHEDULES[name](*arguments, **tuples)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`schedule` must describe a {name} that can run: {error}") from error


def _as_tuple(value: Any) -> Any:
    return tuple(cast(list[Any], value)) if isinstance(value, list) else value


def _choices() -> str:
    return f"Choose one of {', '.join(SCHEDULES)}."
