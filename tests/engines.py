"""Marks for tests that need an optional engine: ``@needs_ffcv``, ``@needs_dali``."""

from __future__ import annotations

import importlib.util

import pytest


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a dotted name whose parent is missing
        return False


needs_ffcv = pytest.mark.skipif(not _is_installed("ffcv"), reason="needs FFCV: pip install 'respipe[ffcv]'")
needs_dali = pytest.mark.skipif(
    not _is_installed("nvidia.dali"), reason="needs DALI: pip install 'respipe[dali-cuda13]'"
)
