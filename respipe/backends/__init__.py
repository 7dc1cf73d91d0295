"""Decoders: from a read job to pixels. A module in here that defines ``SPEC`` is a backend."""

from __future__ import annotations
