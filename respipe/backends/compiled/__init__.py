"""What compiled backends share. Importing these modules imports Numba."""

from __future__ import annotations
