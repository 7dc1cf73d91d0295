"""Threads and buffers that decoders on a CPU share."""

from __future__ import annotations
