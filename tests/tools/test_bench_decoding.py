"""The benchmark of decoding routes: that all cut the same crops, what a crash leaves, and a whole run on the CPU."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.engines import needs_dali
from tests.small_pages import convert_small
from tools.bench.contender import Settings
from tools.bench.loaders import GPU_ROUTES, ROUTES
from tools.bench.measure import Timing
from tools.bench.respipe_loader import Respipe

SCRIPT = "bench_decoding"


@pytest.fixture
def file(jpeg_folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "small.beton"
    convert_small(jpeg_folder, target)
    return target


class Fragile:
    """Answers so many questions, and then dies."""

    def __init__(self, answers: int) -> None:
        self.answers = answers

    def first_batch(self, sizes: tuple[int, ...]) -> float:
        return self.throughput(sizes, 1)

    def throughput(self, sizes: tuple[int, ...], num_batches: int) -> float:
        assert self.answers >= 0, "nobody asks the dead"
        self.answers -= 1
        if self.answers < 0:
            raise BrokenPipeError
        return 100.0


@needs_dali
@pytest.mark.parametrize(
    ("decoding", "worst"),
    # Mean differences in grey levels; the filter of "whole" sees what lies around the crop. A wrong crop costs tens.
    [("whole", 2.0), ("region, CPU", 0.5), ("region", 0.5)],
)
def test_routes_cut_the_crops_of_the_loader(decoding: str, worst: float, file: Path) -> None:
    from tools.bench.decoding_routes import StoredLevels

    settings = Settings(data=file, files={"pyramid": file}, batch_size=8, num_threads=1)
    wanted = Respipe(settings, backend="reference", file="pyramid").stream((48,))
    found = StoredLevels(settings, file="pyramid", decoding=decoding).stream((48,))
    for _ in range(3):
        (images, labels), (expected, expected_labels) = next(found), next(wanted)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(labels, expected_labels)
        assert (images.float() - expected.float()).abs().mean() < worst
    wanted.close()


@needs_dali
def test_the_share_of_the_hardware_engine_reaches_the_pipeline(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from respipe.backends.dali.backend import pipeline as dali_pipeline
    from tools.bench.decoding_routes import CutCrops

    monkeypatch.setattr(dali_pipeline, "HW_DECODER_LOAD", 1.0)
    settings = Settings(data=file, files={"pyramid": file}, batch_size=8, num_threads=1)
    CutCrops(settings, file="pyramid", hw_decoder_load=0.65)
    assert dali_pipeline.HW_DECODER_LOAD == 0.65


def test_a_route_that_crashed_is_told_and_not_asked_again(script: ModuleType) -> None:
    plan = script.Plan(
        visits={"cut-0": [(64,), (32,)], "tiles": [(64,), (32,)]}, batch_size=8, num_threads=1, rounds=2, seconds=1.0
    )
    routes = {"cut-0": script.Route(Fragile(5)), "tiles": script.Route(Fragile(100))}
    results = script.make_results(routes, script.measure(routes, plan))
    assert [(one["route"], one["images_per_second"], one["crashed"]) for one in results] == [
        (ROUTES["cut-0"].title, None, True),
        (ROUTES["cut-0"].title, None, True),
        (ROUTES["tiles"].title, 100.0, False),
        (ROUTES["tiles"].title, 100.0, False),
    ]
    headings, rows = script.table(results)
    assert headings == ("images/s", "64 px", "32 px")
    assert rows[0][1:] == ("crashed", "crashed")
    assert rows[-1] == ("fastest", ROUTES["tiles"].title, ROUTES["tiles"].title)


def test_what_was_measured_before_a_crash_counts(script: ModuleType) -> None:
    route = script.Route(Fragile(0))
    assert route.first_batch((64,)) == 0.0
    timings = {
        ("cut-0", (64,)): Timing(first_batch_seconds=1.0, rates=[90.0, 110.0]),
        ("cut-0", (32,)): Timing(first_batch_seconds=1.0, rates=[90.0, 0.0]),
    }
    before, after = script.make_results({"cut-0": route}, timings)
    assert math.isclose(before["images_per_second"], 100.0)
    assert after["images_per_second"] is None


def test_routes_that_need_a_gpu_are_refused_on_a_cpu(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.parse_arguments([str(tmp_path), "--device", "cpu", "--routes", f"tiles,{GPU_ROUTES[0]}"])
    assert "must be of region-cpu, tiles; got cut-0" in capsys.readouterr().err


@needs_dali
def test_a_run_on_the_cpu_measures_both_routes(
    script: ModuleType, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = file.parent / "results" / "decoding.json"
    script.main(
        [str(file), "--device", "cpu", "--threads", "1", "--batch-size", "4", "--sizes", "32", "--seconds", "0.01",
         "--json", str(target), "--markdown"]
    )  # fmt: skip
    report = json.loads(target.read_text())
    assert [one["route"] for one in report["routes"]] == [ROUTES["region-cpu"].title, ROUTES["tiles"].title]
    assert all(one["images_per_second"] > 0 for one in report["routes"])
    assert str(file) not in report["command"]
    assert "| fastest |" in capsys.readouterr().out
