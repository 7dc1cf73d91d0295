"""What the benchmark of training makes of its measurements, and that its networks train."""

from __future__ import annotations

import itertools
from argparse import Namespace
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
import torch

from tools.benchmarks import gpu, process
from tools.benchmarks.contender import Settings
from tools.benchmarks.process import LoaderUnavailableError, Runner, start_processes
from tools.benchmarks.report import cells
from tools.benchmarks.respipe_loader import Respipe
from tools.benchmarks.training import EpochTime, Trainer, TrainingRate, normalized


def test_processes_that_started_end_where_another_fails_to(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = list[str]()

    class Started(nullcontext[object]):
        def __init__(self, name: str, settings: Settings, *, stall_timeout: float) -> None:
            super().__init__(self)
            self.name = name
            if name == "missing":
                raise LoaderUnavailableError("not installed")
            if name == "broken":
                raise RuntimeError("died")

        def __exit__(self, *_: object) -> None:
            ended.append(self.name)

    monkeypatch.setattr(process, "LoaderProcess", Started)
    settings = Settings(data=Path(), files={}, batch_size=1, num_threads=1)
    with ExitStack() as stack:
        assert list(start_processes(("missing", "first"), settings, stack)) == ["first"]
        assert ended == []
    with pytest.raises(RuntimeError, match="died"), ExitStack() as stack:
        start_processes(("broken", "second"), settings, stack)
    assert ended == ["first", "second"]
    with pytest.raises(LoaderUnavailableError), ExitStack() as stack:
        start_processes(("missing",), settings, stack, required=True)


class CountingLoader:
    """Claims that a network trains at half of the speed on its batches, and epochs take the time of their name."""

    def __init__(self) -> None:
        self.visits: list[tuple[int, int, bool]] = []

    def training(self, size: int, num_batches: int, model: str, *, in_memory: bool) -> TrainingRate:
        self.visits.append((size, num_batches, in_memory))
        speed = 1000.0 if in_memory else 500.0
        return TrainingRate(images_per_second=speed, allocated_mib=10.0 * len(self.visits), used_mib=7.0)

    def throughput(self, sizes: tuple[int, ...], num_batches: int) -> float:
        return 1.0

    def epochs(self, schedule: str, num_images: int, num_epochs: int, model: str) -> EpochTime:
        return EpochTime(schedule=schedule, seconds=float(len(schedule)), num_steps=1.0, relative_macs=0.5)


def options(**changes: object) -> Namespace:
    values = {
        "sizes": (224, 96), "rounds": 3, "steps": 100, "batch_size": 100, "model": "resnet18", "threads": 1,
        "epoch_loader": None, "schedules": ("full", "ab"), "epoch_images": 1, "epochs": 1,
    }  # fmt: skip
    return Namespace(**{**values, **changes})


def test_shares_are_taken_within_rounds_that_alternate() -> None:
    loader = CountingLoader()
    results = list(gpu.measure_training({"respipe-tiles": loader}, options()))
    assert [(result["size"], result["share"]) for result in results] == [(224, 0.5), (96, 0.5)]
    assert (results[0]["images_per_second"], results[0]["in_memory"]) == (500.0, 1000.0)
    # Every size once, then rounds.
    assert loader.visits[:2] == [(224, 1, True), (96, 1, True)]
    assert loader.visits[2:8] == [(224, 100, False), (224, 100, True)] * 3
    assert results[0]["allocated_mib"] == 70.0


def test_visits_too_short_to_outlast_a_full_queue_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.parse_arguments([str(tmp_path)]).steps >= 100
    with pytest.raises(SystemExit):
        gpu.parse_arguments([str(tmp_path), "--steps", "6"])
    assert "--steps must be at least 100" in capsys.readouterr().err


def test_batches_that_were_ready_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, trained, taken = Trainer("squeezenet1_1", "cpu"), list[int](), itertools.count()
    monkeypatch.setattr(trainer, "step", lambda images, labels: trained.append(int(labels)))
    batches = ((torch.zeros(1), torch.tensor([number])) for number in taken)
    trainer.run(batches, 5, batches_ahead=12)
    assert trained == [0, 1, 2, *range(15, 20)]  # those between were ready before the clock started


def test_epochs_are_compared_with_those_of_the_first_schedule() -> None:
    loaders = {"ffcv-500": CountingLoader(), "respipe-tiles": CountingLoader()}
    epochs = list(gpu.measure_epochs(loaders, options()))
    assert [epoch["relative_seconds"] for epoch in epochs] == [1.0, 0.5]
    assert {epoch["loader"] for epoch in epochs} == {"respipe tiles"}
    assert cells(gpu.EPOCHS, epochs)[1] == ("ab", "respipe tiles", "2.00", "0.50", "0.50")
    assert list(gpu.measure_epochs({"ffcv-500": CountingLoader()}, options())) == []


def test_command_names_no_path(tmp_path: Path) -> None:
    command = gpu.command_line(gpu.parse_arguments([str(tmp_path)]))
    assert str(tmp_path) not in command
    assert "--schedules" in command


def test_images_are_normalised_as_the_loader_does() -> None:
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    images, labels = normalized((pixels, torch.tensor([0, 1])))
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images[:, 0], (pixels[:, 0] / 255 - 0.485) / 0.229)
    assert labels.tolist() == [0, 1]


def test_trainer_learns_from_every_batch() -> None:
    torch.manual_seed(0)
    trainer = Trainer("squeezenet1_1", "cpu")
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    batch = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
    rate = trainer.run(itertools.repeat(batch), 1)
    assert rate.images_per_second > 0
    assert rate.used_mib == 0
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


def test_epochs_of_several_sizes_are_trained_and_counted(jpeg_folder: Path) -> None:
    settings = Settings(data=jpeg_folder, files={}, batch_size=8, num_threads=1)
    runner = Runner(Respipe(settings, backend="reference", file=None), settings)
    time = runner.epochs("RSNet((64, 32))", 16, 1, "resnet18")
    assert (time.num_steps, time.schedule) == (2.0, "RSNet((64, 32))")
    assert time.relative_macs == pytest.approx(1.25, rel=0.01)
    assert time.seconds > 0
