"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Write the report as JSON to stdout, and nothing else there.")]


def parse_integers(text: str) -> tuple[int, ...]:
    """Positive integers separated by commas."""
    numbers = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in numbers):
        raise typer.BadParameter(f"must be positive whole numbers separated by commas; got {text!r}.")
    return tuple(int(part) for part in numbers)


def parse_names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise typer.BadParameter(f"must be names separated by commas; got {text!r}.")
    return names


def parse_sizes(text: str) -> tuple[int, ...]:
    """Sides in pixels separated by commas, each a number or a range ``first:last:step`` that includes its last."""
    sizes = list[int]()
    for part in text.split(","):
        first, *rest = (parse_integers(number)[0] for number in part.split(":"))
        if len(rest) not in (0, 2) or (rest and rest[0] < first):
            raise typer.BadParameter(f"must be sizes such as 128,224 or 96:448:32 (first, last, step); got {text!r}.")
        sizes += range(first, rest[0] + 1, rest[1]) if rest else [first]
    return tuple(dict.fromkeys(sizes))


def parse_part(text: str) -> tuple[int, int]:
    """A part of a whole: ``3/16``, counted from 0."""
    number, _, of = text.partition("/")
    if not (number.isascii() and number.isdigit() and of.isascii() and of.isdigit()):
        raise typer.BadParameter(f"must be such as 3/16, from 0/16 to 15/16; got {text!r}.")
    return int(number), int(of)
