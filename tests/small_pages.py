"""Conversions of a few small images that still fill several pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from respipe.conversion import ConversionReport, convert
from respipe.conversion.settings import ConversionSettings

PAGE_SIZE = 1 << 14
LEVELS = (128, 64, 32)


def convert_small(source: Any, target: Path, **options: Any) -> ConversionReport:
    """Convert in this process, to small levels on small pages."""
    with mock.patch.object(ConversionSettings, "page_size", PAGE_SIZE):
        return convert(source, target, **{"levels": LEVELS, "num_workers": 0, **options})
