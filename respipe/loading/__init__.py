"""The loader: iterates planned batches, places them on a device and resumes."""

from __future__ import annotations
