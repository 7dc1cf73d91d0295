"""The parts of the loader benchmark that neither decode nor time anything."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from respipe.throughput import Plan, Sizes, Timing, measure, visiting_order
from tests.memory_dataset import smooth_image
from tools.benchmarks.contender import Crops, Fidelity, Settings, folder_samples
from tools.benchmarks.fidelity import (
    as_shares,
    choose_samples,
    draw_boxes,
    draw_uniforms,
    mean_squared_error,
    original_crop,
    to_psnr,
)
from tools.benchmarks.prepare import folder_digest
from tools.benchmarks.process import Runner
from tools.benchmarks.registry import BASELINE, LOADERS
from tools.benchmarks.report import (
    RESULTS,
    SEVERAL_SIZES,
    cells,
    make_results,
    make_several_sizes_results,
    to_json,
    to_markdown,
    to_table,
)
from tools.benchmarks.respipe_loader import Respipe

TITLES = {"ffcv-500": "FFCV 500 px", "ours": "ours"}


class CountingLoader:
    """Claims a fixed speed and remembers what it was asked for."""

    def __init__(self, images_per_second: float) -> None:
        self.images_per_second = images_per_second
        self.visits: list[tuple[Sizes, int]] = []

    def first_batch(self, sizes: Sizes) -> float:
        return 0.5

    def throughput(self, sizes: Sizes, num_batches: int) -> float:
        self.visits.append((sizes, num_batches))
        return self.images_per_second


def timings() -> dict[tuple[str, Sizes], Timing]:
    return {
        ("ffcv-500", (224,)): Timing(first_batch_seconds=2.0, rates=[400.0, 100.0, 90.0]),
        ("ffcv-500", (96,)): Timing(first_batch_seconds=1.0, rates=[150.0, 200.0, 200.0]),
        ("ours", (224,)): Timing(first_batch_seconds=0.25, rates=[1200.0, 250.0, 180.0]),
        ("ours", (96,)): Timing(first_batch_seconds=0.25, rates=[1000.0, 1000.0, 1000.0]),
        ("ours", (224, 96)): Timing(first_batch_seconds=0.25, rates=[600.0, 125.0, 60.0]),
    }


def results() -> list[dict[str, Any]]:
    return make_results(
        timings(),
        titles=TITLES,
        baseline="ffcv-500",
        fidelity={("ffcv-500", 224): Fidelity(35.71, 50_000.0), ("ours", 224): Fidelity(math.inf, 20_000.0)},
        bytes_per_image={"ffcv-500": 54_321.0, "ours": 76_543.0},
    )


def test_results_are_medians_with_their_range_and_ratios_are_taken_within_rounds() -> None:
    by_key = {(result["loader"], result["size"]): result for result in results()}
    assert len(by_key) == 4
    ffcv, ours = by_key["FFCV 500 px", 224], by_key["ours", 96]
    assert (ffcv["images_per_second"], ffcv["low"], ffcv["high"]) == (100.0, 90.0, 400.0)
    assert (ffcv["ratio_to_ffcv"], ffcv["time_relative_to_224"]) == (1.0, 1.0)
    assert ours["ratio_to_ffcv"] == 5.0
    assert ours["time_relative_to_224"] == 0.25
    # The rounds' ratios are 3, 2.5 and 2.
    assert by_key["ours", 224]["ratio_to_ffcv"] == 2.5


def test_ratios_are_missing_where_what_they_refer_to_was_not_measured() -> None:
    alone = {key: timing for key, timing in timings().items() if key == ("ours", (96,))}
    (result,) = make_results(alone, titles=TITLES, baseline="ffcv-500", fidelity={}, bytes_per_image={"ours": 1.0})
    assert result["ratio_to_ffcv"] is None
    assert result["time_relative_to_224"] is None
    assert (result["psnr"], result["exact"], result["bytes_read"]) == (None, None, None)


def test_several_sizes_cost_their_time_over_that_of_the_largest_alone() -> None:
    (result,) = make_several_sizes_results(timings(), titles=TITLES)
    assert result["sizes"] == (224, 96)
    assert result["time_relative_to_largest"] == 2.0
    assert cells(SEVERAL_SIZES, [result]) == [("ours", "224 96", "125", "60-600", "2.00")]


def test_report_survives_json_and_has_the_documented_fields() -> None:
    report = to_json(
        results(),
        make_several_sizes_results(timings(), titles=TITLES),
        command="python -m tools.benchmarks.loaders DATA",
        settings={"threads": 2},
        definitions={"psnr": "..."},
    )
    read = json.loads(json.dumps(report, allow_nan=False))
    assert set(read) == {
        "machine",
        "versions",
        "command",
        "settings",
        "definitions",
        "results",
        "several_sizes",
    }
    assert set(read["results"][0]) == {
        "loader",
        "size",
        "images_per_second",
        "low",
        "high",
        "ratio_to_ffcv",
        "time_relative_to_224",
        "psnr",
        "exact",
        "bytes_read",
        "bytes_per_image",
        "first_batch_seconds",
    }
    by_key = {(row["loader"], row["size"]): row for row in read["results"]}
    assert (by_key["ours", 224]["psnr"], by_key["ours", 224]["exact"]) == (None, True)
    assert by_key["FFCV 500 px", 224]["psnr"] == 35.71
    assert set(read["machine"]) == {"cpu", "cores", "memory_gib", "system"}
    assert read["versions"]["torch"]


def test_tables_show_exact_pixels_and_gaps_in_words() -> None:
    shown = cells(RESULTS, results())
    assert shown[0] == ("FFCV 500 px", "224", "100", "90-400", "1.00", "1.00", "35.7", "50.0", "54", "2.0 s")
    assert shown[2][6] == "exact"
    assert shown[3][6] == "-"
    markdown = to_markdown(RESULTS, results()).splitlines()
    assert markdown[0].startswith("| loader | px | images/s |")
    assert markdown[1].count("---") == len(RESULTS)
    assert len(markdown) == 2 + len(shown)
    written = io.StringIO()
    Console(file=written, width=120).print(to_table(RESULTS, results()))
    assert "exact" in written.getvalue()
    assert "76" not in shown[0]


def test_psnr_of_a_known_error() -> None:
    zeros = np.zeros((2, 4, 4, 3), np.uint8)
    # Half of the pixels off by 10: the mean squared error is 50, and 10 log10(255^2 / 50) = 31.14 dB.
    other = zeros.copy()
    other[0] = 10
    assert mean_squared_error(zeros, other) == 50.0
    assert mean_squared_error(other, zeros) == 50.0
    assert to_psnr(50.0) == pytest.approx(31.1411, abs=1e-4)
    assert to_psnr(0.0) == math.inf


def test_original_crop_on_whole_pixels_equals_pillow() -> None:
    image = smooth_image(90, 120, seed=1)
    box = as_shares(np.array([[7, 11, 50, 63]]), np.array([90]), np.array([120]))[0]
    expected = image.crop((11, 7, 11 + 63, 7 + 50)).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(original_crop(image, box, size=32), np.asarray(expected))


def test_original_crop_follows_boxes_between_pixels() -> None:
    # Columns hold their own number, so the middle of column k, at k + 0.5, has value k. The two inner output pixels of
    # a box from 10.5 to 50.5 have their middles at 25.5 and 35.5.
    ramp = np.repeat(np.arange(80, dtype=np.uint8)[None, :, None], 80, axis=0).repeat(3, axis=2)
    image = Image.fromarray(ramp)
    shifted = original_crop(image, np.array([0.0, 10.5 / 80, 1.0, 40 / 80]), size=4)
    assert shifted[0, 1:3, 0].tolist() == [25, 35]


def test_boxes_are_the_same_for_a_loader_that_stores_smaller_images() -> None:
    uniforms = draw_uniforms(50, seed=3)
    heights, widths = np.full(50, 400), np.full(50, 600)
    original = as_shares(draw_boxes(heights, widths, uniforms), heights, widths)
    stored = as_shares(draw_boxes(heights // 2, widths // 2, uniforms), heights // 2, widths // 2)
    assert np.abs(original - stored).max() < 1 / 100
    assert (original[:, :2] + original[:, 2:] <= 1).all()


def test_rotated_images_are_not_compared_on(tmp_path: Path) -> None:
    image = smooth_image(40, 60, seed=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "rotated.jpg", exif=exif)
    image.save(tmp_path / "upright.jpg")
    assert choose_samples(tmp_path, ["rotated.jpg", "upright.jpg"], 10, seed=0) == ["upright.jpg"]


def test_reference_backend_on_the_originals_is_exact(jpeg_folder: Path) -> None:
    settings = Settings(data=jpeg_folder, files={}, batch_size=4, num_threads=1)
    runner = Runner(Respipe(settings, backend="reference", file=None), settings)
    paths, _ = folder_samples(jpeg_folder)
    uniforms = draw_uniforms(len(paths), seed=0)
    stored = np.mean([path.stat().st_size for path in jpeg_folder.rglob("*.jpg")])
    assert runner.fidelity(paths, uniforms, 24) == (math.inf, pytest.approx(stored))
    assert runner.bytes_per_image() == stored


def test_pixels_of_other_samples_are_told_from_the_right_ones(jpeg_folder: Path) -> None:
    class Shuffled(Respipe):
        def crops(self, samples: Sequence[str], uniforms: NDArray[np.float64], size: int) -> Crops:
            return super().crops([*samples[1:], samples[0]], uniforms, size)

    settings = Settings(data=jpeg_folder, files={}, batch_size=4, num_threads=1)
    runner = Runner(Shuffled(settings, backend="reference", file=None), settings)
    paths, _ = folder_samples(jpeg_folder)
    assert runner.fidelity(paths, draw_uniforms(len(paths), seed=0), 24).psnr < 20


def test_respipe_yields_every_crop_at_all_sizes_and_goes_on_after_its_dataset(jpeg_folder: Path) -> None:
    settings = Settings(data=jpeg_folder, files={}, batch_size=16, num_threads=1)
    stream = Respipe(settings, backend="reference", file=None).stream((24, 16))
    batches = [next(stream) for _ in range(3)]
    stream.close()
    for images, labels in batches:
        assert [tuple(tensor.shape) for tensor in images] == [(16, 3, 24, 24), (16, 3, 16, 16)]
        assert images[0].dtype == torch.uint8
        assert len(labels) == 16


def test_every_pair_is_visited_once_a_round_for_about_the_time_asked() -> None:
    loaders = {"slow": CountingLoader(100.0), "fast": CountingLoader(10_000.0)}
    visits: dict[str, list[Sizes]] = {"slow": [(224,), (96,)], "fast": [(224,)]}
    plan = Plan(visits=visits, batch_size=50, num_threads=2, rounds=3, seconds=2.0)
    calls: list[tuple[int, int]] = []
    measured = measure(loaders, plan, progress=lambda done, total: calls.append((done, total)))
    assert {key: len(timing.rates) for key, timing in measured.items()} == {
        ("slow", (224,)): 3,
        ("slow", (96,)): 3,
        ("fast", (224,)): 3,
    }
    assert loaders["slow"].visits[-1][1] == 4
    assert loaders["fast"].visits[-1][1] == 400
    assert calls[-1] == (9, 9)


def test_each_round_begins_with_another_loader() -> None:
    pairs: list[tuple[str, Sizes]] = [("a", (2,)), ("a", (1,)), ("b", (2,)), ("b", (1,))]
    assert visiting_order(pairs, 0) == [("a", (2,)), ("b", (2,)), ("a", (1,)), ("b", (1,))]
    assert visiting_order(pairs, 1) == [("b", (2,)), ("a", (2,)), ("b", (1,)), ("a", (1,))]


def test_converted_files_are_not_used_again_for_other_data(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    before = folder_digest(tmp_path)
    assert folder_digest(tmp_path) == before
    (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
    assert folder_digest(tmp_path) != before


def test_every_loader_has_a_title_of_its_own_and_the_baseline_exists() -> None:
    assert BASELINE in LOADERS
    assert len({entry.title for entry in LOADERS.values()}) == len(LOADERS)
