"""Converting images to ``.beton`` files, and checking what is stored."""

from __future__ import annotations

from respipe.conversion.engine import convert
from respipe.conversion.export import ExportReport, export
from respipe.conversion.inspection import Inspection, LevelSummary, inspect
from respipe.conversion.report import ConversionReport, LevelReport, SampleNote, TooManyCorruptError
from respipe.conversion.shards import merge, split
from respipe.conversion.sources import BetonSource, FolderSource, Source
from respipe.conversion.verification import DamagedImage, VerificationReport, verify

__all__ = [
    "BetonSource",
    "ConversionReport",
    "DamagedImage",
    "ExportReport",
    "FolderSource",
    "Inspection",
    "LevelReport",
    "LevelSummary",
    "SampleNote",
    "Source",
    "TooManyCorruptError",
    "VerificationReport",
    "convert",
    "export",
    "inspect",
    "merge",
    "split",
    "verify",
]
