"""The tiles backend: a decoder for the JPEGs of respipe's own conversion, compiled from Python."""

from __future__ import annotations

from respipe.backends.tiles.backend import TilesBackend as TilesBackend
