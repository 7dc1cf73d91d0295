"""Which files a path, a folder or a pattern names: the one place where wildcards and braces are resolved."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from respipe.errors import StorageError
from respipe.storage.class_folder import SPLITS, is_litter
from respipe.storage.remote import Cache, copy_files, root_of

_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")


def is_pattern(given: str) -> bool:
    """Whether it is no path of its own, but has wildcards, or braces that stand for several names."""
    return not os.path.lexists(given) and (glob.has_magic(given) or _BRACES.search(given) is not None)


def files_of(given: str, extensions: tuple[str, ...] = ()) -> list[Path]:
    """What a pattern names; the files with some extension that a folder holds; or the path itself.

    Braces are as in a shell, ``{000..063}`` and ``{train,val}``, and stand for files that are all there. Wildcards are
    ``*``, ``?``, ``[...]``, and ``**`` for folders at any depth; what they find is sorted.

    Args:
        given: the path or pattern.
        extensions: in lower case, of the files that are looked for in a folder. One that has subfolders holds none.

    Raises:
        StorageError: a pattern names nothing, or files of which some are missing; or a folder's files are of several
            splits.
    """
    if not is_pattern(given):
        path = Path(given)
        return _files_in(path, extensions) if path.is_dir() and extensions else [path] if path.exists() else []
    found: list[Path] = []
    missing: list[str] = []
    names = expanded(given)
    for name in names:
        # Path.glob has no patterns that begin at the root.
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]  # noqa: PTH207
        found += map(Path, matches)
        missing += [] if matches and os.path.lexists(matches[0]) else [name]
    if missing:
        what = f"{len(missing)} of the {len(names)} that it stands for are missing, first {missing[0]}"
        raise StorageError(f"{given} names nothing{'' if len(names) == 1 else f': {what}'}. Check the pattern.")
    return [*dict.fromkeys(found)]


def single(given: str) -> str:
    """The path that a pattern stands for, where it is one; else what was given."""
    found = files_of(given) if is_pattern(given) else []
    return str(found[0]) if len(found) == 1 else given


def copied(url: str) -> str:
    """The local path or pattern for a URL, of a file, a folder or a pattern, once what it names was copied."""
    urls = expanded(url)
    entry = str(copy_files(urls, Cache()))
    root = root_of(urls)
    return f"{entry}/{url[len(root) :]}".rstrip("/")


def expanded(pattern: str) -> Sequence[str]:
    """A pattern with every choice of its braces in turn."""
    if (found := _BRACES.search(pattern)) is None:
        return [pattern]
    first, is_range, last = found[1].partition("..")
    choices = found[1].split(",")
    if is_range and "," not in found[1]:
        low, high = int(first), int(last)
        numbers = range(low, high + 1) if low <= high else range(low, high - 1, -1)
        choices = [f"{number:0{len(first) if first.startswith('0') else 1}d}" for number in numbers]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [name for choice in choices for name in expanded(f"{head}{choice}{tail}")]


def _files_in(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    with os.scandir(folder) as entries:
        listed = [entry for entry in entries if not is_litter(entry.name)]
        if any(entry.is_dir() for entry in listed):
            return []
        names = sorted(entry.name for entry in listed if entry.name.lower().endswith(extensions))
    splits = {split: name for name in names if (split := re.split(r"[^a-z]", name.lower())[0]) in SPLITS}
    if len(splits) > 1:
        raise StorageError(
            f"{folder} must hold the files of one split; it has those of {', '.join(splits)}, such as "
            f"{', '.join(splits.values())}. Name one of them by a pattern: '{folder / min(splits)}*'."
        )
    return [folder / name for name in names]
