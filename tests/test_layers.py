"""The order of imports: a part of the package may import the parts before it, never those after it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "respipe"

# The line the data walks, first to last. Modules of one entry may import each other.
LINE = (
    {"errors", "printable"},
    {"rng"},
    {"schedules"},
    {"sampling"},
    {"storage"},
    {"backends"},
    {
        "batch_shapes",
        "bounded_buffer",
        "color_jitter",
        "corruption",
        "current_backend",
        "decimation",
        "decoding",
        "epoch_setter",
        "loader",
        "placement",
        "prefetch",
        "ranks",
        "run_plan",
        "state",
    },
)
BELOW_CONVERSION = {"errors", "printable", "rng", "schedules", "sampling", "storage"}
UP_TO_LOADER = set[str]().union(*LINE)

# What each part may import, besides itself.
ALLOWED = {part: set[str]().union(*LINE[: place + 1]) for place, parts in enumerate(LINE) for part in parts}
ALLOWED["model"] = {"errors", "schedules"}
ALLOWED["training"] = {"errors"}
ALLOWED["conversion"] = BELOW_CONVERSION
ALLOWED["evaluation"] = UP_TO_LOADER | {"model"}
ALLOWED["plots"] = UP_TO_LOADER | {"evaluation"}
ALLOWED["cli"] = UP_TO_LOADER | {"model", "conversion", "evaluation", "plots"}
ALLOWED["testing"] = UP_TO_LOADER | {"conversion"}
ALLOWED["__main__"] = {"cli"}
ALLOWED["__init__"] = UP_TO_LOADER | {"model", "training", "conversion", "evaluation", "testing"}

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


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_file_imports_only_earlier_parts(file: Path) -> None:
    part = part_of(file)
    assert part in ALLOWED, f"give {part} its place in this test"
    inner = {name.split(".")[1] for name in imports_of(file) if name.startswith("respipe.")}
    assert inner & ALLOWED.keys() <= ALLOWED[part] | {part}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_backends_import_an_engine(file: Path) -> None:
    engines = {name.split(".")[0] for name in imports_of(file)} & ENGINES
    assert not engines or part_of(file) == "backends"


def test_planning_needs_numpy_only() -> None:
    planning = [file for file in FILES if part_of(file) in {"rng", "schedules", "sampling"} and file.name != "cost.py"]
    roots = {name.split(".")[0] for file in planning for name in imports_of(file)}
    assert not roots & {"torch", "torchvision", "PIL", "scipy"}


def test_imports_are_found_in_every_form() -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    from ..e import g\n    from . import h\n"
    assert set(imported_modules(source, ("respipe", "model"))) == {"a.b", "c.d", "respipe.e.g", "respipe.model.h"}
