"""The ``.beton`` format: reading and writing FFCV's files, with several resolutions of every image."""

from __future__ import annotations

from respipe.storage.beton.dataset import BetonDataset

__all__ = ["BetonDataset"]
