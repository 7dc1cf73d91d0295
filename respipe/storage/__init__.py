"""Stored images: class folders, and ``.beton`` files with one or several resolutions of every image."""

from __future__ import annotations

from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.dataset import Dataset, Level
from respipe.storage.folder import FolderDataset
from respipe.storage.open import open_dataset

__all__ = ["BetonDataset", "Dataset", "FolderDataset", "Level", "open_dataset"]
