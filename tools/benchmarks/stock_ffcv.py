"""FFCV as its users run it: its loader, its random resized crop decoder and its flip on a file from its writer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.libffcv import imdecode, resize_crop
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage
from numpy.typing import NDArray

from .contender import EPOCH_IMAGES, Batch, Crops, Settings, folder_samples
from .fidelity import as_shares, draw_boxes


class StockFfcv:
    """Stock ``ffcv.Loader``. One epoch per size stays open for the whole run: an epoch left early leaks its thread."""

    batches_ahead = 5  # three in its queue, one waiting for room in it, one being decoded

    def __init__(self, settings: Settings, *, file: str) -> None:
        self._settings = settings
        self._path = settings.files[file]
        self._reader = Reader(str(self._path))

    def stream(self, sizes: tuple[int, ...]) -> Iterator[Batch]:
        (size,) = sizes
        samples = self._reader.num_samples
        move = [ToDevice(torch.device("cuda", 0), non_blocking=True)] if self._settings.on_gpu else []
        loader = Loader(
            str(self._path),
            batch_size=self._settings.batch_size,
            num_workers=self._settings.num_threads,
            os_cache=True,
            order=OrderOption.RANDOM,
            indices=np.arange(EPOCH_IMAGES, dtype=np.uint64) % np.uint64(samples),
            drop_last=True,
            pipelines={
                "image": [
                    RandomResizedCropRGBImageDecoder((size, size)),
                    RandomHorizontalFlip(),
                    ToTensor(),
                    *move,
                    ToTorchImage(),
                ],
                "label": [IntDecoder(), ToTensor(), *move, Squeeze()],
            },
        )
        while True:
            yield from loader

    def crops(self, samples: Sequence[str], uniforms: NDArray[np.float64], size: int) -> Crops:
        """See :meth:`Contender.crops`; through the C functions that FFCV's decoder calls."""
        paths, _ = folder_samples(self._settings.data)
        number = {path: index for index, path in enumerate(paths)}
        fields = self._image_fields()[[number[sample] for sample in samples]]
        heights, widths = fields["height"].astype(np.int64), fields["width"].astype(np.int64)
        boxes = draw_boxes(heights, widths, uniforms)
        memory = np.memmap(self._path, np.uint8, mode="r")
        stored = self._reader.alloc_table
        lengths = dict(zip(stored["ptr"].tolist(), stored["size"].tolist(), strict=True))
        pixels = np.empty((len(samples), size, size, 3), np.uint8)
        for row, (field, (top, left, height, width)) in enumerate(zip(fields, boxes.tolist(), strict=True)):
            start = int(field["data_ptr"])
            image = np.empty((int(field["height"]), int(field["width"]), 3), np.uint8)
            data = np.array(memory[start : start + lengths[start]])
            code = imdecode(data, image, *image.shape[:2], *image.shape[:2], 0, 0, 1, 1, False, False)
            assert code == 0, f"FFCV cannot decode {samples[row]}"
            resize_crop(image, top, top + height, left, left + width, pixels[row])
        bytes_read = float(np.mean([lengths[int(field["data_ptr"])] for field in fields]))
        return Crops(pixels=pixels, boxes=as_shares(boxes, heights, widths), bytes_read=bytes_read)

    def bytes_per_image(self) -> float:
        return float(self._reader.alloc_table["size"].sum()) / self._reader.num_samples

    def _image_fields(self) -> NDArray[Any]:
        # FFCV names the columns of its metadata table by position; the image comes first in the files prepared here.
        return self._reader.metadata["f0"]


def write_ffcv_file(
    data: Path, target: Path, *, max_resolution: int, quality: int, num_workers: int, num_images: int | None = None
) -> None:
    """Convert a class folder with FFCV's own writer, every image as JPEG.

    Args:
        data: class folder. FFCV's writer waits for ever where an image in it cannot be read.
        target: the file to write.
        max_resolution: longest side in pixels.
        quality: of the JPEGs.
        num_workers: processes.
        num_images: how many to convert, the folder's again and again; by default each once.
    """
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torch.utils.data import Subset
    from torchvision.datasets import ImageFolder

    image = RGBImageField(write_mode="jpg", max_resolution=max_resolution, jpeg_quality=quality)
    writer = DatasetWriter(str(target), {"image": image, "label": IntField()}, num_workers=num_workers)
    folder = ImageFolder(str(data))
    indices = range(len(folder) if num_images is None else num_images)
    writer.from_indexed_dataset(Subset(folder, [index % len(folder) for index in indices]))
