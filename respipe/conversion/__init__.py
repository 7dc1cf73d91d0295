"""Converting images to ``.beton`` files, and checking what is stored."""

from __future__ import annotations

from respipe.conversion.engine import convert as convert
from respipe.conversion.export import ExportReport as ExportReport
from respipe.conversion.export import export as export
from respipe.conversion.inspection import Inspection as Inspection
from respipe.conversion.inspection import LevelSummary as LevelSummary
from respipe.conversion.inspection import inspect as inspect
from respipe.conversion.report import ConversionReport as ConversionReport
from respipe.conversion.report import LevelReport as LevelReport
from respipe.conversion.report import SampleNote as SampleNote
from respipe.conversion.report import TooManyCorruptError as TooManyCorruptError
from respipe.conversion.shards import merge as merge
from respipe.conversion.shards import split as split
from respipe.conversion.sources import BetonSource as BetonSource
from respipe.conversion.sources import FolderSource as FolderSource
from respipe.conversion.sources import Source as Source
from respipe.conversion.verification import DamagedImage as DamagedImage
from respipe.conversion.verification import VerificationReport as VerificationReport
from respipe.conversion.verification import verify as verify
