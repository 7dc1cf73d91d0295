"""The graph that the DALI backend runs. DALI's objects have no usable types: they are ``Any`` here, and only here."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import os
import re
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from respipe.backends.base import ReadJob
from respipe.storage.dataset import Bytes

# Share of the JPEGs that a GPU's hardware engine decodes, where there is one. All: it and the CUDA decoder round
# differently, so a sample's pixels would depend on how DALI splits its batch between them.
HW_DECODER_LOAD = 1.0


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Crops:
    """Crop boxes of one size in the form that DALI takes them. All arrays have one ``(y, x)`` row per image.

    Args:
        anchors, shapes: (B, 2) int32, first pixel and extent of each box's integer hull, in pixels of what is decoded
            of the image.
        starts, ends: (B, 2) float32, corners of each box in pixels of its hull. Mirroring exchanges start and end in x.
    """

    anchors: NDArray[np.int32]
    shapes: NDArray[np.int32]
    starts: NDArray[np.float32]
    ends: NDArray[np.float32]


def crops_of(job: ReadJob, number: int) -> Crops:
    """Translate the crops and flips of a job at one of its sizes."""
    boxes, flips = job.boxes[:, number], job.flips
    anchors, shapes = job.hulls[:, number, :2], job.hulls[:, number, 2:]
    # The hull forgives a box that leaves it by a rounding error; DALI would not.
    starts = np.maximum(boxes[:, :2] - anchors, 0.0)
    ends = np.minimum(boxes[:, :2] + boxes[:, 2:] - anchors, shapes)
    starts[flips, 1], ends[flips, 1] = ends[flips, 1], starts[flips, 1]
    return Crops(
        anchors=np.ascontiguousarray(anchors - job.covers[:, :2], np.int32),
        shapes=np.ascontiguousarray(shapes, np.int32),
        starts=np.ascontiguousarray(starts, np.float32),
        ends=np.ascontiguousarray(ends, np.float32),
    )


@dataclass(frozen=True)
class Variant:
    """What is fixed when a pipeline is built.

    Args:
        num_sizes: outputs per image.
        padded: whether crops may reach over the image's edge. On a GPU one pipeline does for both, and this is True.
        nested: whether each size has a crop of its own.
        cubic: whether crops are resized with a cubic filter instead of a triangle.
    """

    num_sizes: int
    padded: bool
    nested: bool = False
    cubic: bool = False

    @property
    def num_crops(self) -> int:
        """Crops per image."""
        return self.num_sizes if self.nested else 1


class DaliPipeline:
    """Encoded images and crops in, pixels out, first in first out. Sizes and crops arrive with each batch.

    Args:
        variant: see there.
        max_batch_size: images that one batch may have.
        num_threads: threads that decode and resize.
        device: where the pixels end up; on a CUDA device DALI decodes and resizes there too.
    """

    def __init__(self, variant: Variant, *, max_batch_size: int, num_threads: int, device: torch.device) -> None:
        self.max_batch_size = max_batch_size
        self._variant = variant
        self._device = device
        # Declared before the images below it so that it dies first: its threads read them where they lie.
        self._pipe: Any = _build(variant, max_batch_size, num_threads, device)
        self._in_flight: deque[Sequence[Bytes]] = deque()
        # On a GPU: the end of the last batch's copying, with what it reads.
        self._copying: tuple[torch.cuda.Event, Any] | None = None
        _pipes.add(self._pipe)

    def submit(self, images: Sequence[Bytes], job: ReadJob) -> None:
        """Start a batch: encoded images, and the job with crops in pixels of these images."""
        self._pipe.feed_input("images", list(images))
        self._pipe.feed_input("anchors", np.ascontiguousarray(job.covers[:, :2], np.int32))
        self._pipe.feed_input("shapes", np.ascontiguousarray(job.covers[:, 2:], np.int32))
        for number in range(self._variant.num_crops):
            crops = crops_of(job, number)
            for name in Crops.__slots__ if self._variant.nested else _FLOATS:
                self._pipe.feed_input(f"{name}_{number}", getattr(crops, name))
        for number, size in enumerate(job.sizes):
            self._pipe.feed_input(f"size_{number}", np.full((len(images), 2), size, np.float32))
        self._pipe.schedule_run()
        self._in_flight.append(images)

    def collect(self) -> tuple[torch.Tensor, ...]:
        """Wait for the oldest batch: a (B, S, S, 3) uint8 tensor for each size, which later batches do not overwrite.

        Raises:
            RuntimeError: DALI cannot decode one of its images.
        """
        images = self._in_flight.popleft()
        if self._device.type != "cuda":
            return to_torch(self._pipe.outputs())
        # Nobody here waits for the GPU to decode: the copies do, on their stream.
        stream = torch.cuda.current_stream(self._device)
        outputs = to_torch(self._pipe.outputs(stream))
        # DALI would reuse GPU memory when a tensor is dropped, without waiting for kernels that still read it. Memory
        # of torch's own allocator is safe to drop; DALI's is too, once the copying has ended.
        copies = tuple(output.clone() for output in outputs)
        copied = torch.cuda.Event(blocking=True)
        copied.record(stream)
        self._end_copying()
        self._copying = copied, (outputs, images)
        return copies

    def close(self) -> None:
        """End DALI's threads now: left to the garbage collector, those of many failed pipelines might add up."""
        self._end_copying()
        self._pipe._shutdown()  # noqa: SLF001 - DALI has no public way

    def _end_copying(self) -> None:
        """Wait until the copying of the last batch has ended, which by then it mostly has."""
        if self._copying is not None:
            self._copying[0].synchronize()
            self._copying = None


_pipes: weakref.WeakSet[Any] = weakref.WeakSet()


def _leave_pipes_alone() -> None:
    """In the child of a fork DALI would wait for ever for threads that only the parent has."""
    for pipe in _pipes:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipe._pipe))  # noqa: SLF001 - never to be destroyed,
        pipe._pipe = None  # noqa: SLF001 - nor shut down when the interpreter leaves


os.register_at_fork(after_in_child=_leave_pipes_alone)


def _build(variant: Variant, max_batch_size: int, num_threads: int, device: torch.device) -> Any:
    dali: Any = import_dali()
    fn: Any = importlib.import_module("nvidia.dali.fn")
    on_gpu = device.type == "cuda"
    # An empty tensor tells which GPU a plain "cuda" means.
    device_id = torch.empty(0, device=device).device.index if on_gpu else None
    pipe = dali.Pipeline(
        batch_size=max_batch_size,
        num_threads=num_threads,
        device_id=device_id,
        # Batches in flight are counted by whoever submits them; a deeper queue would only make the first call to
        # schedule_run start batches that have not been fed.
        prefetch_queue_depth=1,
        # Outputs that stay valid for as long as a tensor uses them, and a pipeline that survives a damaged image.
        exec_dynamic=True,
    )
    with pipe:
        # Without a copy: a batch of encoded images can be a tenth of a gigabyte.
        images = fn.external_source(name="images", dtype=dali.types.UINT8, ndim=1, no_copy=True)
        anchors, shapes = (fn.external_source(name=name, dtype=dali.types.INT32, ndim=1) for name in _INTEGERS)
        cropped = _cropped(fn, images, anchors, shapes, padded=variant.padded, on_gpu=on_gpu)
        regions = [_region(fn, dali.types, cropped, i, nested=variant.nested) for i in range(variant.num_crops)]
        sizes = [fn.external_source(name=f"size_{i}", dtype=dali.types.FLOAT, ndim=1) for i in range(variant.num_sizes)]
        pipe.set_outputs(
            *(
                fn.resize(
                    pixels,
                    size=size,
                    roi_start=starts,
                    roi_end=ends,
                    interp_type=dali.types.INTERP_CUBIC if variant.cubic else dali.types.INTERP_LINEAR,
                    antialias=True,
                )
                for size, (pixels, starts, ends) in zip(sizes, itertools.cycle(regions), strict=False)
            )
        )
    pipe.build()
    return pipe


_INTEGERS = ("anchors", "shapes")
_FLOATS = ("starts", "ends")


def _region(fn: Any, types: Any, cropped: Any, number: int, *, nested: bool) -> tuple[Any, Any, Any]:
    """What a size's resize sees of the decoded crops, and the corners of its boxes there."""
    starts, ends = (fn.external_source(name=f"{name}_{number}", dtype=types.FLOAT, ndim=1) for name in _FLOATS)
    if nested:
        inner = (fn.external_source(name=f"{name}_{number}", dtype=types.INT32, ndim=1) for name in _INTEGERS)
        cropped = fn.slice(cropped, *inner, axis_names="HW", normalized_anchor=False, normalized_shape=False)
    return cropped, starts, ends


def _cropped(fn: Any, images: Any, anchors: Any, shapes: Any, *, padded: bool, on_gpu: bool) -> Any:
    """Decode images and cut out the hulls of their crops. The only place where CPU and GPU differ.

    DALI does not turn images: datasets hand over upright ones, of whose EXIF tags DALI might think otherwise.
    """
    if not on_gpu and not padded:
        # Skips what lies outside the hull, and gives the pixels that cropping the whole image would.
        return fn.decoders.image_slice(images, start=anchors, shape=shapes, axis_names="HW", adjust_orientation=False)
    # On a GPU always whole images: decoding regions there crashes with some versions of nvImageCodec.
    on_device = {"device": "mixed", "hw_decoder_load": HW_DECODER_LOAD, "jpeg_fancy_upsampling": True}
    decoded = fn.decoders.image(images, adjust_orientation=False, **(on_device if on_gpu else {}))
    return fn.slice(decoded, start=anchors, shape=shapes, axis_names="HW", out_of_bounds_policy="pad", fill_values=0)


def to_torch(outputs: Any) -> tuple[torch.Tensor, ...]:
    """What a pipeline returned, as tensors of DALI's memory."""
    return tuple(torch.from_dlpack(output.as_tensor()) for output in outputs)


_NOT_AN_IMAGE = re.compile(
    r"CUDA (runtime API |driver API )?error|cudaError[A-Z]|CUDA_ERROR_|CUDA allocation failed|out of memory|bad_alloc"
    r"|fail(ed|ure) to allocate",
    re.IGNORECASE,
)


def blames_the_machine(error: Exception) -> bool:
    """Whether an error is one of memory or of CUDA: no image has caused it, and decoding again would not help.

    DALI raises RuntimeErrors for everything, whose texts quote what its libraries said; torch's are subclasses of it.
    """
    return isinstance(error, MemoryError) or _NOT_AN_IMAGE.search(str(error)) is not None


def import_dali() -> Any:
    """The package ``nvidia.dali``; raises ImportError where it is not installed."""
    return importlib.import_module("nvidia.dali")
