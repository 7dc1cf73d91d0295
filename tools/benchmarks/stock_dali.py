"""DALI as its examples run it, on the CPU or a GPU: file reader, random-crop decoder, antialiased resize, flip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, pipeline_def, types
from PIL import Image

from .contender import Batch, Crops, Settings, folder_bytes_per_image
from .fidelity import as_shares, draw_boxes


class StockDali:
    """DALI's stock pipeline. On a GPU it decodes, resizes and mirrors there."""

    batches_ahead = 3  # two in its queue, one under way

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def stream(self, sizes: tuple[int, ...]) -> Iterator[Batch]:
        (size,) = sizes
        pipeline = _training_pipeline(
            str(self._settings.data),
            size,
            batch_size=self._settings.batch_size,
            num_threads=self._settings.num_threads,
            device_id=0 if self._settings.on_gpu else None,
            seed=0,
        )
        while True:
            images, labels = (torch.from_dlpack(output.as_tensor()) for output in pipeline.run())
            if self._settings.on_gpu:
                # DALI uses the memory of a batch again for the next but one; a consumer keeps several in flight.
                images, labels = images.clone(), labels.clone()
            yield images.permute(0, 3, 1, 2), labels.squeeze(1).long()

    def crops(self, samples: Sequence[str], uniforms: NDArray[np.float64], size: int) -> Crops:
        """See :meth:`Contender.crops`; a slice decoder in place of the one that draws its own boxes."""
        paths = [self._settings.data / sample for sample in samples]
        encoded = [np.fromfile(path, np.uint8) for path in paths]
        shapes = np.array([Image.open(path).size for path in paths], np.int64)
        widths, heights = shapes[:, 0], shapes[:, 1]
        boxes = draw_boxes(heights, widths, uniforms)
        threads = self._settings.num_threads
        pipeline = _slice_pipeline(
            size, batch_size=len(samples), num_threads=threads, device_id=None, prefetch_queue_depth=1
        )
        pipeline.feed_input("encoded", encoded)
        pipeline.feed_input("anchor", list(boxes[:, :2].astype(np.int32)))
        pipeline.feed_input("shape", list(boxes[:, 2:].astype(np.int32)))
        (images,) = pipeline.run()
        pixels = np.array(images.as_array(), np.uint8)
        bytes_read = float(np.mean([len(data) for data in encoded]))
        return Crops(pixels=pixels, boxes=as_shares(boxes, heights, widths), bytes_read=bytes_read)

    def bytes_per_image(self) -> float:
        return folder_bytes_per_image(self._settings.data)


@pipeline_def
def _training_pipeline(data: str, size: int) -> object:
    encoded, labels = fn.readers.file(file_root=data, random_shuffle=True, initial_fill=1024, name="reader")
    crop = {"random_area": [0.08, 1.0], "random_aspect_ratio": [3 / 4, 4 / 3], "num_attempts": 10}
    mirrored = fn.random.coin_flip(probability=0.5)
    if Pipeline.current().device_id is None:
        images = fn.decoders.image_random_crop(encoded, output_type=types.RGB, **crop)
        return fn.flip(fn.resize(images, size=[size, size]), horizontal=mirrored), labels
    # Whole images: decoding a part of one crashes on some GPUs with some versions of nvImageCodec.
    images = fn.decoders.image(encoded, device="mixed", output_type=types.RGB)
    images = fn.random_resized_crop(images, size=[size, size], **crop)
    return fn.flip(images, horizontal=mirrored), labels.gpu()


@pipeline_def
def _slice_pipeline(size: int) -> object:
    encoded, anchor, shape = (fn.external_source(name=name) for name in ("encoded", "anchor", "shape"))
    images = fn.decoders.image_slice(encoded, anchor, shape, axes=[0, 1], output_type=types.RGB)
    return fn.resize(images, size=[size, size])
