"""Datasets, sources and targets at any URL that fsspec knows, by way of a local cache of bounded size."""

from __future__ import annotations

from respipe.storage.remote.access import is_url
from respipe.storage.remote.cache import Cache
from respipe.storage.remote.copies import copy_files, open_remote, root_of
from respipe.storage.remote.folder import RemoteFolder

__all__ = ["Cache", "RemoteFolder", "copy_files", "is_url", "open_remote", "root_of"]
