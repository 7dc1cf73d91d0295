"""What a conversion reads: one file for each kind of source."""

from __future__ import annotations

from respipe.conversion.sources.base import Source, SourceOptions, SourceSpec, open_source
from respipe.conversion.sources.beton import BetonSource
from respipe.conversion.sources.folder import FolderSource

__all__ = ["BetonSource", "FolderSource", "Source", "SourceOptions", "SourceSpec", "open_source"]
