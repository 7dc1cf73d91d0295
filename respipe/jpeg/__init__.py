"""JPEG files as bytes: headers, tables, restart intervals, cutting and coding anew. Imports nothing else of respipe."""

from __future__ import annotations
