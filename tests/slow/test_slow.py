"""Minutes of mutated files, of conversions killed at any moment, and of changing sizes: ``make test-slow``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slow import fuzz_faults, kill_conversions, soak_loader
from tests.small_pages import convert_small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_no_mutated_file_crashes_hangs_or_gives_other_pixels(tmp_path: Path) -> None:
    report = tmp_path / "faults.json"
    assert fuzz_faults.main(["--images", "2000", "--betons", "500", "--json", str(report)]) == 0
    assert report.stat().st_size > 0


def test_conversions_killed_at_any_moment_end_alike(jpeg_folder: Path) -> None:
    assert kill_conversions.main([str(jpeg_folder), "--times", "30"]) == 0


@pytest.mark.parametrize("backend", ["tiles", "reference"])
def test_memory_does_not_grow_over_thousands_of_changes_of_size(
    backend: str, jpeg_folder: Path, tmp_path: Path
) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    options = {
        "--schedule": "MixSize({32: 0.5, 16: 0.5}, base_size=32)",
        "--batch-size": "4",
        "--backend": backend,
        "--device": "cpu",
        "--batches": "5000",
    }
    line = [str(tmp_path / "x.beton"), *(word for option in options.items() for word in option)]
    assert soak_loader.main(line) == 0
