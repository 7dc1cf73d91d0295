"""Text from outside made fit for a terminal, a log or an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def printable(text: str) -> str:
    r"""``text`` with whatever is not printable escaped.

    File names may hold line breaks, terminal commands, marks that reverse the writing direction, and bytes that are no
    text at all: they become ``\n``, ``\x1b``, ``\u202e`` and ``\udc..``.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def like(name: str, names: Iterable[str]) -> str:
    """`` (did you mean X?)`` where one of the names is much like what was given, else nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {printable(close[0])}?)" if close else ""


def not_there(path: Path) -> str:
    """That a path does not exist: where it ends, and what is there under a similar name."""
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None or folder != path.parent:
        return f"{printable(str(path))} does not exist; nor does its folder"
    try:
        return f"{printable(str(path))} does not exist{like(path.name, (file.name for file in folder.iterdir()))}"
    except OSError:  # which names there are is nobody's business
        return f"{printable(str(path))} does not exist"
