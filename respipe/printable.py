"""Text from outside made fit for a terminal, a log or an error."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""``text`` with whatever is not printable escaped.

    File names may hold line breaks, terminal commands, marks that reverse the writing direction, and bytes that are no
    text at all: they become ``\n``, ``\x1b``, ``\u202e`` and ``\udc..``.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
