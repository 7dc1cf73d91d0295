"""Checks of arguments: each names the field, the rule, the value and what to do."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any, SupportsIndex, cast


def check_int(name: str, value: object, *, least: int, most: int | None = None) -> int:
    """``value`` as a Python integer, so that schedules built from NumPy or YAML numbers compare and print alike.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is below ``least`` or above ``most``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, SupportsIndex)):
        raise TypeError(f"`{name}` must be an integer; got {value!r}. Pass a whole number from {least}.")
    number = value.__index__()
    if number < least:
        raise ValueError(f"`{name}` must be at least {least}; got {number}. Pass a larger number.")
    if most is not None and number > most:
        raise ValueError(f"`{name}` must be at most {most}; got {number}. Pass a smaller number.")
    return number


def check_sequence(name: str, value: object) -> Sequence[Any]:
    """``value`` as a sequence of whatever it holds.

    Raises:
        TypeError: it is a string, or not a sequence.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"`{name}` must be a sequence of integers; got {value!r}. Pass a tuple.")
    return cast("Sequence[Any]", value)


def check_probability(name: str, value: object) -> float:
    """``value`` as a float.

    Raises:
        TypeError: it is not a number.
        ValueError: it lies outside [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number; got {value!r}. Pass one from 0 to 1.")
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"`{name}` must lie between 0 and 1; got {number}. Pass a probability, not a percentage.")
    return number


def check_number(name: str, value: object, *, least: float) -> float:
    """``value`` as a finite float.

    Raises:
        TypeError: it is not a number.
        ValueError: it is below ``least``, infinite or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number; got {value!r}. Pass one from {least:g}.")
    number = float(value)
    if not least <= number < math.inf:
        raise ValueError(f"`{name}` must be at least {least:g} and finite; got {number}. Pass a larger number.")
    return number


def check_bool(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is True or False: "false", None and 0 are none of them."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False; got {value!r}. Pass one of them.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}; got {value!r}. Pass one of them.")


def check_path(name: str, value: str | os.PathLike[str]) -> Path:
    """``value`` as a path.

    Raises:
        ValueError: it is empty, which would be the current folder.
    """
    if not os.fspath(value):
        raise ValueError(f"`{name}` must be a path; got an empty one. Pass '.' for the current folder.")
    return Path(value)
