from __future__ import annotations

import pytest
import torch

from respipe.runs import SizeTotals
from respipe.training import meter as metrics
from respipe.training.meter import EpochMeter
from respipe.training.processes import Process

PROCESS = Process(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the meter's clock shows, changed by assigning to the only entry."""
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    return now


def test_time_is_split_by_size_into_waiting_and_work(clock: list[float]) -> None:
    meter = EpochMeter(PROCESS)
    for size, wait, work, images in [(32, 1.0, 3.0, 4), (16, 0.5, 1.5, 8), (32, 2.0, 2.0, 4)]:
        clock[0] += wait
        meter.batch_arrived((size,))
        clock[0] += work
        meter.step_done(torch.tensor(2.0), images)
    assert meter.sizes == {
        (32,): SizeTotals(steps=2, images=8, seconds=8.0, wait_seconds=3.0),
        (16,): SizeTotals(steps=1, images=8, seconds=2.0, wait_seconds=0.5),
    }
    assert meter.sizes[(32,)].images_per_second == 1.0
    assert meter.sizes[(32,)].wait_share == 0.375
    assert meter.finish() == (2.0, 10.0)


def test_time_before_restart_is_not_counted(clock: list[float]) -> None:
    meter = EpochMeter(PROCESS)
    clock[0] += 100.0
    meter.restart_clock()
    clock[0] += 1.0
    meter.batch_arrived((32,))
    meter.step_done(torch.tensor(0.0), 1)
    assert meter.finish() == (0.0, 1.0)


def test_loss_is_the_mean_over_images_not_steps(clock: list[float]) -> None:
    meter = EpochMeter(PROCESS)
    for loss, images in [(1.0, 30), (4.0, 10)]:
        meter.batch_arrived((32,))
        meter.step_done(torch.tensor(loss), images)
    assert meter.finish()[0] == 1.75


def test_images_count_over_all_ranks(clock: list[float]) -> None:
    meter = EpochMeter(Process(rank=0, world_size=4, device=torch.device("cpu")))
    meter.batch_arrived((32,))
    meter.step_done(torch.tensor(0.0), 8)
    assert meter.sizes[(32,)].images == 32


def test_saved_meter_goes_on_counting(clock: list[float]) -> None:
    meter = EpochMeter(PROCESS)
    meter.batch_arrived((32,))
    clock[0] += 2.0
    meter.step_done(torch.tensor(3.0), 1)
    resumed = EpochMeter(PROCESS)
    resumed.load_state_dict(meter.state_dict())
    resumed.batch_arrived((32,))
    clock[0] += 4.0
    resumed.step_done(torch.tensor(1.0), 3)
    assert resumed.finish() == (1.5, 6.0)
    assert resumed.sizes == {(32,): SizeTotals(steps=2, images=4, seconds=6.0)}
