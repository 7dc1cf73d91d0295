"""Every loader that can be benchmarked."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .contender import Contender, Settings

BASELINE = "ffcv-500"


@dataclass(frozen=True)
class LoaderEntry:
    """Where a loader is and what it needs.

    Args:
        title: its name in tables and pictures.
        module, attribute: its class; imported in the loader's own process only.
        options: keyword arguments of the class; ``file`` names the prepared file that it reads.
        peer: whether it is not respipe's.
    """

    title: str
    module: str
    attribute: str
    options: Mapping[str, Any] = field(default_factory=dict)
    peer: bool = True

    @property
    def file(self) -> str | None:
        """The prepared file that it reads, if any."""
        return self.options.get("file")


def _respipe(title: str, backend: str, file: str | None) -> LoaderEntry:
    return LoaderEntry(f"respipe {title}", "respipe_loader", "Respipe", {"backend": backend, "file": file}, peer=False)


LOADERS: Mapping[str, LoaderEntry] = {
    "ffcv-500": LoaderEntry("FFCV 500 px", "stock_ffcv", "StockFfcv", {"file": "ffcv-500"}),
    "ffcv-256": LoaderEntry("FFCV 256 px", "stock_ffcv", "StockFfcv", {"file": "ffcv-256"}),
    "dali": LoaderEntry("DALI", "stock_dali", "StockDali"),
    "torchvision": LoaderEntry("torchvision", "torch_loaders", "Torchvision"),
    "timm": LoaderEntry("timm", "torch_loaders", "Timm"),
    "respipe-tiles": _respipe("tiles", "tiles", "pyramid"),
    "respipe-ffcv": _respipe("ffcv", "ffcv", "pyramid"),
    "respipe-dali": _respipe("dali", "dali", "pyramid"),
    "respipe-reference": _respipe("reference", "reference", "pyramid"),
    "respipe-dali-folder": _respipe("dali, folder", "dali", None),
    "respipe-reference-folder": _respipe("reference, folder", "reference", None),
}


def make_contender(name: str, settings: Settings) -> Contender:
    """Build a loader by its name.

    Raises:
        ImportError, MissingBackendError: its library is not installed.
    """
    entry = LOADERS[name]
    module = importlib.import_module(f"{__package__}.{entry.module}")
    contender: Contender = getattr(module, entry.attribute)(settings, **entry.options)
    return contender
