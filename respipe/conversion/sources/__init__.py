"""What a conversion reads: one file for each kind of source."""

from __future__ import annotations

from respipe.conversion.sources.base import BetonSource, FolderSource, Source, open_source

__all__ = ["BetonSource", "FolderSource", "Source", "open_source"]
