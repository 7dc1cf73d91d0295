"""How the tests get at the benchmarks, which are scripts with a package beside them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script that a module of tests names as its ``SCRIPT``, imported as when it is run."""
    name = request.module.SCRIPT
    monkeypatch.syspath_prepend(str(TOOLS))
    yield importlib.import_module(name)
    for loaded in [loaded for loaded in sys.modules if loaded == name or loaded.partition(".")[0] == "bench"]:
        del sys.modules[loaded]
