"""Loaders of small datasets, for tests, and what comes out of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from respipe.loading.loader import Loader
from respipe.schedules import TRD, Constant, LowMode, MixSize, Progressive, RSNet, Schedule, Step
from tests.memory_dataset import MemoryDataset

SCHEDULE = TRD(32, 16, 0.5, unit="step", seed=1)


class Mixed:
    """Sizes, batch sizes and duplicates that change at every step."""

    base_size = 32
    sizes = (32, 24, 16)

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> list[Step]:
        return [Step((32,), 4), Step((16,), 8, 2), Step((24, 16), 4), Step((32,), 4, 3)]

    def __repr__(self) -> str:
        return "Mixed()"


class Greedy(Mixed):
    """More samples than there are."""

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> list[Step]:
        return [Step((32,), num_samples), Step((16,), 1)]


def make(dataset: MemoryDataset, schedule: Schedule = SCHEDULE, **options: Any) -> Loader:
    defaults: dict[str, Any] = {"batch_size": 4, "backend": "reference", "num_threads": 2, "with_spec": True, "seed": 7}
    return Loader(dataset, schedule, **(defaults | options))


def flat(batches: Iterator[Any]) -> list[tuple[Any, ...]]:
    """Everything about each batch, comparable with ==."""
    return [
        (
            tuple(image.numpy().tobytes() for image in (images if isinstance(images, tuple) else (images,))),
            _plain(labels),
            spec.step,
            spec.epoch,
            spec.number,
            spec.indices.tolist(),
        )
        for images, labels, spec in batches
    ]


def _plain(values: Any) -> Any:
    """Labels, or fields by name, as lists."""
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    return [*map(_plain, values)] if isinstance(values, tuple) else values.tolist()


class InTurn:
    """Another schedule in every epoch: all kinds that there are."""

    base_size = 32
    sizes = (32, 24, 16)
    schedules: ClassVar[tuple[Schedule, ...]] = (
        Constant(32),
        Progressive(16, 32, start_epoch=0, end_epoch=2, multiple=8),
        TRD(32, 16, 0.5, unit="step", seed=1),
        LowMode(32, probability=0.5),
        RSNet((32, 24, 16)),
        MixSize({32: 0.4, 24: 0.3, 16: 0.3}, base_size=32, grow="both", batch_multiple=4),
        MixSize({32: 0.4, 16: 0.6}, base_size=32, grow="duplicates", weighting="steps", seed=3),
    )

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        return self.schedules[epoch % len(self.schedules)].steps(epoch, num_samples=num_samples, batch_size=batch_size)

    def __repr__(self) -> str:
        return f"InTurn({self.schedules})"
