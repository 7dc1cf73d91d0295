"""respipe's loader with one of its backends, on a converted file or on the class folder."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from respipe.backends.registry import make_backend
from respipe.backends.routing import route
from respipe.jpeg.cut import cut
from respipe.loading.loader import Loader
from respipe.planning.batch import BatchPlan
from respipe.schedules.sequence import steps_per_epoch, uniform_steps
from respipe.schedules.step import Schedule, Step
from respipe.storage.dataset import Bytes, Dataset, Level
from respipe.storage.open import open_dataset

from .contender import EPOCH_IMAGES, Batch, Crops, Settings, folder_bytes_per_image
from .fidelity import as_shares, draw_boxes


class Respipe:
    """``respipe.Loader``.

    Args:
        settings: what all loaders have in common.
        backend: as for the loader.
        file: which of the prepared files to read; None for the class folder.

    Raises:
        MissingBackendError: the backend is not installed.
    """

    batches_ahead = 12  # three in its queue, one waiting for room in it, up to eight being decoded

    def __init__(self, settings: Settings, *, backend: str, file: str | None) -> None:
        self._settings = settings
        self._backend = backend
        self._path = settings.data if file is None else settings.files[file]
        # Fails here, before anything is measured, where the backend is missing.
        make_backend(backend, open_dataset(self._path), **self._engine_options()).close()

    def stream(self, sizes: tuple[int, ...]) -> Generator[Batch, None, None]:
        with self.loader(OneCrop(sizes), EPOCH_IMAGES, dtype=torch.uint8, normalize=None) as loader:
            while True:
                yield from loader

    def loader(self, schedule: Schedule, num_images: int, **options: Any) -> Loader:
        """The loader of a schedule, with epochs of so many images. ``options`` are further arguments of it."""
        return Loader(
            Repeated(open_dataset(self._path), num_images),
            schedule,
            batch_size=self._settings.batch_size,
            backend=self._backend,
            device=self._settings.device,
            num_threads=self._settings.num_threads,
            level_margin=self._settings.level_margin,
            **options,
        )

    def crops(self, samples: Sequence[str], uniforms: NDArray[np.float64], size: int) -> Crops:
        """See :meth:`Contender.crops`; a plan with these boxes through the backend."""
        dataset = open_dataset(self._path)
        number = {dataset.name(index): index for index in range(len(dataset))}
        indices = np.array([number[sample] for sample in samples], np.int64)
        largest = dataset.levels[0]
        heights, widths = (side[indices].astype(np.int64) for side in (largest.heights, largest.widths))
        boxes = draw_boxes(heights, widths, uniforms)
        plan = BatchPlan(
            step=Step((size,), len(indices)),
            epoch=0,
            number=0,
            indices=indices,
            boxes=boxes.astype(np.float64),
            flips=np.zeros(len(indices), np.bool_),
        )
        backend = make_backend(self._backend, dataset, **self._engine_options())
        backend.submit(route(dataset, plan, margin=self._settings.level_margin))
        (pixels,) = backend.collect()
        backend.close()
        bytes_read = float(np.mean(self._bytes_read(dataset, plan)))
        return Crops(pixels=pixels.cpu().numpy(), boxes=as_shares(boxes, heights, widths), bytes_read=bytes_read)

    def bytes_per_image(self) -> float:
        dataset = open_dataset(self._path)
        if not dataset.buffers:
            return folder_bytes_per_image(self._path)
        # Levels share the bytes of images that are too small to be stored twice.
        stored: dict[int, int] = {}
        for level in dataset.levels:
            stored.update(zip(level.offsets.tolist(), level.sizes.tolist(), strict=True))
        return sum(stored.values()) / len(dataset)

    def _bytes_read(self, dataset: Dataset, plan: BatchPlan) -> list[int]:
        """Encoded bytes that each crop of a plan is decoded from."""
        routed = route(dataset, plan, margin=self._settings.level_margin)
        stored = [
            dataset.encoded(index, level)
            for index, level in zip(plan.indices.tolist(), routed.levels.tolist(), strict=True)
        ]
        if self._backend == "reference" or not dataset.tiled:
            return [len(data) for data in stored]
        return [len(cut(data.tobytes(), box)[0]) for data, box in zip(stored, routed.covers.tolist(), strict=True)]

    def _engine_options(self) -> dict[str, Any]:
        return {
            "device": torch.device(self._settings.device),
            "num_threads": self._settings.num_threads,
        }


@dataclass(frozen=True)
class OneCrop:
    """A schedule whose steps all yield the same crops at all of some sizes.

    Args:
        sizes: sides in pixels.
    """

    sizes: tuple[int, ...]

    @property
    def base_size(self) -> int:
        """The largest size."""
        return max(self.sizes)

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        count = steps_per_epoch(epoch, num_samples=num_samples, batch_size=batch_size)
        return uniform_steps(Step(self.sizes, batch_size), count)


class Repeated:
    """A dataset again and again, to a given length.

    Only the first repetition is checked for damage, since later epochs of a training run do not check again.
    """

    def __init__(self, dataset: Dataset, num_images: int) -> None:
        self._dataset = dataset
        self._source = np.arange(num_images) % len(dataset)
        self.levels = tuple(self._repeat(level) for level in dataset.levels)
        self.fields = {
            name: replace(column, values=np.asarray(column.values)[self._source])
            for name, column in dataset.fields.items()
        }
        self.labels = None if dataset.labels is None else dataset.labels[self._source]
        self.path: Path = dataset.path
        self.classes = dataset.classes
        self.kind, self.buffers = dataset.kind, dataset.buffers
        self.fingerprint = f"{dataset.fingerprint} x {num_images}"
        self.tiled = dataset.tiled

    def __len__(self) -> int:
        return len(self._source)

    def encoded(self, index: int, level: int = 0) -> Bytes:
        return self._dataset.encoded(int(self._source[index]), level)

    @property
    def fetched(self) -> None:
        """None: all of it is there."""

    def check(self, index: int, level: int = 0) -> None:
        if index < len(self._dataset):
            self._dataset.check(index, level)

    def name(self, index: int) -> str:
        return self._dataset.name(int(self._source[index]))

    def revision(self) -> int:
        return self._dataset.revision()

    def close(self) -> None:
        self._dataset.close()

    def _repeat(self, level: Level) -> Level:
        arrays = ("heights", "widths", "buffers", "offsets", "sizes", "raw", "checksums")
        values = {name: getattr(level, name) for name in arrays}
        return replace(level, **{name: value[self._source] for name, value in values.items() if value is not None})
