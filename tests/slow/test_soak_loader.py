from __future__ import annotations

import json
import mmap
from pathlib import Path

import pytest
import torch

from tests.slow import soak_loader

MIX = "MixSize({32: 0.5, 16: 0.5}, base_size=32)"


def line(data: Path, *more: str) -> list[str]:
    return [str(data), "--schedule", MIX, "--batch-size", "2", "--backend", "reference", "--device", "cpu",
            "--batches", "40", "--every", "4", *more]  # fmt: skip


def test_growth_compares_the_halves_after_the_first_fifth() -> None:
    assert soak_loader.growth([0.0, 50.0, *[100.0] * 8]) == 0
    assert soak_loader.growth([float(number) for number in range(100)]) == 40
    assert soak_loader.growth([100.0] * 5 + [300.0] + [100.0] * 5) == 0


def test_slope_counts_per_ten_thousand_images_after_the_first_fifth() -> None:
    images = [250 * number for number in range(100)]
    assert soak_loader.slope(images, [1e6] * 20 + [count / 5000 for count in images[20:]]) == pytest.approx(2.0)


def test_memory_that_is_kept_is_measured() -> None:
    cpu = torch.device("cpu")
    before = soak_loader.measure(0, 0, cpu)
    # From the system, since an array may lie in memory that the C library has kept.
    with mmap.mmap(-1, 64 * soak_loader.MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as kept:
        kept.write(b"1" * len(kept))
        after = soak_loader.measure(7, 14, cpu)
    assert (after.batches, after.images) == (7, 14)
    assert after.anonymous - before.anonymous > 58
    assert after.rss >= after.anonymous


def test_report_tells_memory_and_verdict(jpeg_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert soak_loader.main(line(jpeg_folder, "--tolerance=1e6", "--slope=1e6", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["batches"] for one in report["memory"]] == list(range(4, 41, 4))
    assert (report["grew"], report["batch_size"], report["backend"]) == (False, 2, "reference")
    # Two samples at 32 px or eight at 16 px, as float32.
    assert report["largest_batch"] == pytest.approx(2 * 3 * 32**2 * 4 / 2**20, abs=0.005)


@pytest.mark.parametrize("options", [("--tolerance=-1e6", "--slope=1e6"), ("--tolerance=1e6", "--slope=-1e6")])
def test_more_growth_than_tolerated_ends_with_status_1(
    jpeg_folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert soak_loader.main(line(jpeg_folder, *options)) == 1
    assert "\nGREW: " in capsys.readouterr().out


def test_a_run_may_be_as_long_as_a_number_of_images(jpeg_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soak_loader.main(line(jpeg_folder, "--images", "30", "--json"))
    report = json.loads(capsys.readouterr().out)
    assert 30 <= report["images"] < 30 + 8
    assert report["memory"][-1]["images"] == report["images"]


def test_too_few_measurements_are_refused(jpeg_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        soak_loader.main(line(jpeg_folder, "--every", "5"))
    assert "at least ten times `--every`; got 40 and 5" in capsys.readouterr().err
