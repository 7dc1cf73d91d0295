"""The order of imports: a part of the package may import the parts before it, never those after it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "respipe"

GROUND = {"checks", "errors", "normalization", "printable", "processes", "rng"}

# The line the data walks, first to last: each room may import those before it.
LINE = ("jpeg", "schedules", "cost", "planning", "storage", "backends", "augment", "loading")

# What each part may import, besides itself.
ALLOWED = {room: GROUND | set(LINE[:place]) for place, room in enumerate(LINE)}
ALLOWED |= dict.fromkeys(GROUND, GROUND)
UP_TO_LOADING = GROUND | set(LINE)
ALLOWED["jpeg"] = set[str]()
ALLOWED["sampling"] = GROUND | {"planning"}
ALLOWED["recipe"] = GROUND | {"schedules", "planning"}
ALLOWED["model"] = GROUND | {"schedules", "recipe"}
ALLOWED["training"] = GROUND | {"runs"}
ALLOWED["conversion"] = GROUND | {"jpeg", "storage", "model"}
ALLOWED["evaluation"] = UP_TO_LOADING | {"model"}
ALLOWED["plots"] = UP_TO_LOADING | {"evaluation", "runs"}
ALLOWED["integrations"] = UP_TO_LOADING | {"model"}
ALLOWED["testing"] = UP_TO_LOADING | {"conversion"}
ALLOWED["runs"] = ALLOWED["throughput"] = GROUND
ALLOWED["train"] = UP_TO_LOADING | {"model", "training", "evaluation", "recipe", "runs"}
ALLOWED["cli"] = set(ALLOWED) | UP_TO_LOADING
ALLOWED["__main__"] = {"cli"}
ALLOWED["__init__"] = set(ALLOWED) - {"cli", "__main__"}

ENGINES = {"nvidia", "ffcv"}

FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names of everything a source imports, at any depth, as if ``from a import b`` were ``import a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = (*base, *([node.module] if node.module else []))
            yield from (".".join((*prefix, alias.name)) for alias in node.names)


def imports_of(file: Path) -> list[str]:
    return list(imported_modules(file.read_text(), ("respipe", *file.relative_to(PACKAGE).parts[:-1])))


def test_every_file_imports_only_earlier_rooms() -> None:
    assert not {part_of(file) for file in FILES} - ALLOWED.keys(), "give each room its place in this test"
    climbs = [
        f"{file.relative_to(PACKAGE)} imports respipe.{part}"
        for file in FILES
        for part in sorted({name.split(".")[1] for name in imports_of(file) if name.startswith("respipe.")})
        if part in ALLOWED and part not in ALLOWED[part_of(file)] | {part_of(file)}
    ]
    assert not climbs


def test_only_backends_import_an_engine() -> None:
    importers = {part_of(file) for file in FILES if {name.split(".")[0] for name in imports_of(file)} & ENGINES}
    assert importers <= {"backends"}


def test_numba_is_imported_in_one_place() -> None:
    importers = {file.name for file in FILES if any(name.split(".")[0] == "numba" for name in imports_of(file))}
    assert importers == {"compilation.py"}


def test_planning_needs_numpy_only() -> None:
    planning = [file for file in FILES if part_of(file) in {"rng", "checks", "schedules", "planning", "sampling"}]
    roots = {name.split(".")[0] for file in planning for name in imports_of(file)}
    assert not roots & {"torch", "torchvision", "PIL", "scipy"}


def test_imports_are_found_in_every_form() -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    from ..e import g\n    from . import h\n"
    assert set(imported_modules(source, ("respipe", "model"))) == {"a.b", "c.d", "respipe.e.g", "respipe.model.h"}
