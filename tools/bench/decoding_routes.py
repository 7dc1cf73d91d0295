"""Ways from stored JPEGs to crops of one size on a device, all with the crops that respipe plans."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types

from respipe.backends.dali.backend import pipeline as dali_pipeline
from respipe.backends.dali.pipeline import crops_of, to_torch
from respipe.backends.routing import route
from respipe.planning.batch import BatchPlan
from respipe.planning.run import RunPlan
from respipe.sampling import SamplingPolicy
from respipe.storage.dataset import Bytes
from respipe.storage.open import open_dataset

from .contender import EPOCH_IMAGES, Batch, Settings
from .respipe_loader import OneCrop, Repeated, Respipe

Decoding = Literal["whole", "region, CPU", "region"]
Inputs = tuple[Sequence[Bytes], *tuple[NDArray[Any], ...]]


class CutCrops(Respipe):
    """``respipe.Loader`` with DALI: crops cut out of the compressed bytes, decoded whole.

    Args:
        settings: what all routes have in common.
        file: which of the prepared files to read.
        hw_decoder_load: share of the images that the GPU's hardware engine decodes.
    """

    def __init__(self, settings: Settings, *, file: str, hw_decoder_load: float) -> None:
        dali_pipeline.HW_DECODER_LOAD = hw_decoder_load  # of this process, which has no other loader
        super().__init__(settings, backend="dali", file=file)


class StoredLevels:
    """DALI on the stored images as they are.

    Args:
        settings: what all routes have in common.
        file: which of the prepared files to read.
        decoding: the whole stored image, from which the resize takes the crop (its filter sees what lies around it);
            or the crop's region, on the device or, whatever the device, on the CPU.
    """

    batches_ahead = 3  # two in its queue, one under way

    def __init__(self, settings: Settings, *, file: str, decoding: Decoding) -> None:
        self._settings, self._file, self._decoding = settings, file, decoding

    def stream(self, sizes: tuple[int, ...]) -> Iterator[Batch]:
        """See :meth:`tools.bench.contender.Contender.stream`."""
        (size,) = sizes
        dataset = Repeated(open_dataset(self._settings.files[self._file]), EPOCH_IMAGES)
        labels: deque[torch.Tensor] = deque()

        def inputs() -> Iterator[Inputs]:
            for plan in self._plans(dataset, size):
                labels.append(torch.from_numpy(dataset.labels[plan.indices]))
                yield self._inputs(dataset, plan)

        pipeline = _pipeline(
            inputs(),
            size,
            self._decoding,
            on_gpu=self._settings.on_gpu,
            batch_size=self._settings.batch_size,
            num_threads=self._settings.num_threads,
            device_id=0 if self._settings.on_gpu else None,
            prefetch_queue_depth=2,
            exec_dynamic=True,
        )
        while True:
            (images,) = to_torch(pipeline.run())
            if self._settings.on_gpu:
                images = images.clone()  # DALI's own memory is overwritten
                self._settings.synchronize()
            yield images.permute(0, 3, 1, 2), labels.popleft().to(self._settings.device)

    def _plans(self, dataset: Repeated, size: int) -> Iterator[BatchPlan]:
        plan = RunPlan(OneCrop((size,)), dataset, SamplingPolicy(), batch_size=self._settings.batch_size)
        epoch = 0
        while True:
            yield from plan.local_batches(epoch, 0, rank=0, world_size=1)
            epoch += 1

    def _inputs(self, dataset: Repeated, plan: BatchPlan) -> Inputs:
        """Encoded images, the crops' corners in what is decoded (y, x), and the regions to decode, if not all."""
        routed = route(dataset, plan, margin=self._settings.level_margin)
        images = [dataset.encoded(*place) for place in zip(plan.indices.tolist(), routed.levels.tolist(), strict=True)]
        crops = crops_of(routed, 0)
        anchors, shapes = (np.ascontiguousarray(part, np.int32) for part in np.split(routed.covers, 2, axis=1))
        if self._decoding == "whole":
            return images, crops.starts + anchors.astype(np.float32), crops.ends + anchors.astype(np.float32)
        return images, crops.starts, crops.ends, anchors, shapes


@pipeline_def
def _pipeline(source: Iterator[Inputs], size: int, decoding: Decoding, *, on_gpu: bool) -> Any:
    kinds = [types.UINT8, types.FLOAT, types.FLOAT] + ([] if decoding == "whole" else [types.INT32, types.INT32])
    inputs = fn.external_source(source=source, num_outputs=len(kinds), dtype=kinds, ndim=1)
    images, starts, ends, *region = inputs
    on_device = {"device": "mixed", "hw_decoder_load": 1.0, "jpeg_fancy_upsampling": True}
    options = on_device if on_gpu and decoding != "region, CPU" else {}
    if decoding == "whole":
        pixels = fn.decoders.image(images, **options)
    else:
        pixels = fn.decoders.image_slice(images, *region, axis_names="HW", **options)
    return fn.resize(
        pixels.gpu() if on_gpu else pixels,
        size=[size, size],
        roi_start=starts,
        roi_end=ends,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
