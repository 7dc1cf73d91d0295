"""Loaders that decode in worker processes with Pillow: torchvision's datasets under torch's DataLoader, and timm's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional

from .contender import EPOCH_IMAGES, Batch, Crops, Settings, folder_bytes_per_image
from .fidelity import as_shares, draw_boxes


class _PillowLoader:
    """What the two have in common: their pixels are those of Pillow, on the original files."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.batches_ahead = 2 * settings.num_threads  # DataLoader's default prefetch_factor

    def crops(self, samples: Sequence[str], uniforms: NDArray[np.float64], size: int) -> Crops:
        pixels = np.empty((len(samples), size, size, 3), np.uint8)
        boxes = np.empty((len(samples), 4))
        for row, sample in enumerate(samples):
            with Image.open(self._settings.data / sample) as opened:
                image = opened.convert("RGB")
            sides = np.array([image.height]), np.array([image.width])
            box = draw_boxes(*sides, uniforms[:, row : row + 1])
            boxes[row] = as_shares(box, *sides)[0]
            pixels[row] = np.asarray(functional.resized_crop(image, *box[0].tolist(), [size, size]))
        bytes_read = float(np.mean([(self._settings.data / sample).stat().st_size for sample in samples]))
        return Crops(pixels=pixels, boxes=boxes, bytes_read=bytes_read)

    def bytes_per_image(self) -> float:
        return folder_bytes_per_image(self._settings.data)

    def _placed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """One epoch's batches on the device."""
        for images, labels in batches:
            yield images.to(self._settings.device, non_blocking=True), labels.to(self._settings.device)


class Torchvision(_PillowLoader):
    """``ImageFolder`` and its transforms under ``DataLoader``."""

    def stream(self, sizes: tuple[int, ...]) -> Iterator[Batch]:
        (size,) = sizes
        transform = transforms.Compose(
            [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
        )
        loader: DataLoader[Any] = DataLoader(
            _Repeated(ImageFolder(str(self._settings.data), transform)),
            batch_size=self._settings.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self._settings.num_threads,
            persistent_workers=True,
            pin_memory=self._settings.on_gpu,
        )
        while True:
            yield from self._placed(loader)


class Timm(_PillowLoader):
    """timm's ``create_loader``, up to the uint8 batches that it would send to the GPU to be normalised there."""

    def __init__(self, settings: Settings) -> None:
        import timm.data  # so that a missing timm shows before anything is measured

        super().__init__(settings)
        self._create_loader = timm.data.create_loader

    def stream(self, sizes: tuple[int, ...]) -> Iterator[Batch]:
        (size,) = sizes
        folder = ImageFolder(str(self._settings.data))
        loader = self._create_loader(
            _Repeated(folder),
            input_size=size,
            batch_size=self._settings.batch_size,
            is_training=True,
            color_jitter=0.0,
            interpolation="bilinear",
            num_workers=self._settings.num_threads,
            pin_memory=self._settings.on_gpu,
            device=torch.device("cpu"),
        )
        while True:
            yield from self._placed(loader.loader)


class _Repeated(Dataset[Any]):
    """A dataset again and again, to the length of the benchmark's epochs. ``transform`` is applied here, where set."""

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder
        self.transform: Any = None

    def __len__(self) -> int:
        return EPOCH_IMAGES

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self._folder[index % len(self._folder)]
        return (image if self.transform is None else self.transform(image)), label
