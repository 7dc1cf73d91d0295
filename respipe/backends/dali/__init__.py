"""The dali backend: DALI decodes on the CPU or the GPU."""

from __future__ import annotations

from respipe.backends.dali.backend import DaliBackend

__all__ = ["DaliBackend"]
