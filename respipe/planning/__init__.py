"""Which samples each step sees, and how they are cropped: planned ahead of time, as NumPy arrays."""

from __future__ import annotations
