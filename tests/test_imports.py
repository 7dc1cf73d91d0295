"""What importing the package brings along."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("nvidia", "ffcv", "numba", "cv2", "matplotlib")


@pytest.mark.parametrize("module", ["respipe", "respipe.schedules", "respipe.sampling", "respipe.augment"])
def test_import_brings_no_optional_dependency(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["respipe.schedules", "respipe.sampling", "respipe.augment"])
def test_public_names_exist(name: str) -> None:
    module = importlib.import_module(name)
    assert [public for public in module.__all__ if not hasattr(module, public)] == []
