"""What a schedule costs in arithmetic, and which sizes it uses."""

from __future__ import annotations

from respipe.cost.apparent_size import TestSizeSuggestion, apparent_size_ratio, mean_crop_side, suggest_test_size
from respipe.cost.macs import MeanMacs, by_area, counted, expected_macs, mean_macs, relative_epoch_macs

__all__ = [
    "MeanMacs",
    "TestSizeSuggestion",
    "apparent_size_ratio",
    "by_area",
    "counted",
    "expected_macs",
    "mean_crop_side",
    "mean_macs",
    "relative_epoch_macs",
    "suggest_test_size",
]
