"""The ffcv backend: libjpeg-turbo decodes crops that were cut out of the compressed bytes."""

from __future__ import annotations

from respipe.backends.ffcv.backend import FfcvBackend

__all__ = ["FfcvBackend"]
