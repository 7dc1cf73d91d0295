"""Decoded pixels to the tensors a model takes: device, decimation, normalisation, dtype, memory format."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from respipe.normalization import Normalize, mean_and_std


def check_device(device: str | torch.device) -> torch.device:
    """A device of this machine; a plain "cuda" is the current one of the thread that asks.

    Other threads, such as the one that decodes, have a current device of their own, which begins as the first.

    Raises:
        ValueError: there is no such device, or none of that kind here.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"`device` must be a device that torch knows; got {device!r}. Pass 'cpu' or 'cuda'."
        ) from error
    if found.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=found).cpu()
        except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
            raise ValueError(
                f"`device` must be one that this machine and its torch can hold images on; got {str(found)!r}. Pass "
                "'cpu' or 'cuda'."
            ) from error
    count = torch.cuda.device_count() if found.type == "cuda" else 1 if found.type == "cpu" else math.inf
    if (found.index or 0) >= count:
        remedy = ", or make the GPU visible" if found.type == "cuda" else ""
        raise ValueError(
            f"`device` must be on this machine; got {str(found)!r}, and torch finds {count} {found.type.upper()} "
            f"devices. Pass 'cpu'{remedy}."
        )
    return torch.device("cuda", torch.cuda.current_device()) if found == torch.device("cuda") else found


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What happens to a batch between decoding and the model.

    Args:
        device: where images and labels end up.
        dtype: of the images. ``torch.uint8`` keeps raw pixel values and needs ``normalize=None``.
        normalize: a preset ("imagenet", "cifar10", "cifar100"), or ``(mean, std)`` of three numbers each for values
            in 0..1, or None for plain values (0..1 where ``dtype`` is floating, 0..255 for uint8).

    Raises:
        ValueError, TypeError: the combination makes no sense.
    """

    device: torch.device
    dtype: torch.dtype
    normalize: Normalize

    def __post_init__(self) -> None:
        mean_and_std(self.normalize)
        if not isinstance(self.dtype, torch.dtype):
            raise TypeError(f"`dtype` must be a torch.dtype; got {self.dtype!r}. Pass for example torch.bfloat16.")
        if self.dtype == torch.uint8 and self.normalize is not None:
            raise ValueError(
                f"`dtype` must be floating where images are normalised; got {self.dtype} with normalize="
                f"{self.normalize!r}. Pass normalize=None for raw uint8 pixels."
            )
        if self.dtype != torch.uint8 and not self.dtype.is_floating_point:
            raise TypeError(f"`dtype` must be torch.uint8 or a floating type; got {self.dtype}. Pass torch.float32.")

    @cached_property
    def stream(self) -> torch.cuda.Stream | None:
        """The stream to place batches on; None without CUDA.

        One for all epochs, since torch's allocator gives memory back to the stream that asked for it only.
        """
        return torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def images(self, pixels: torch.Tensor, decimation: int = 1) -> torch.Tensor:
        """Place one decoded batch.

        Args:
            pixels: (B, S, S, 3) uint8, contiguous, on the CPU or already on ``device``.
            decimation: see :class:`respipe.schedules.Step`.

        Returns:
            (B, 3, S / decimation, S / decimation) of ``dtype`` on ``device``, in channels_last memory format.
        """
        # Bytes cross the bus, not floats: a quarter of the traffic.
        images = self.to_device(pixels).permute(0, 3, 1, 2)
        if decimation > 1:
            images = blur_and_decimate(images.to(torch.float32), decimation)
        if self.dtype == torch.uint8:
            return images if decimation == 1 else images.round_().to(torch.uint8)
        if images.device.type == "cpu" and images.dtype == torch.uint8:
            return _normalized(pixels, *self._shift_and_scale).permute(0, 3, 1, 2).to(self.dtype)
        return normalized(images, *self._constants, dtype=self.dtype)

    def values(self, values: NDArray[Any] | list[str] | list[bytes]) -> torch.Tensor | list[str] | list[bytes]:
        """Place one field of a batch: numbers as a tensor, floats of them in float32; text and bytes as they are."""
        if isinstance(values, list):
            return values
        tensor = torch.from_numpy(values)
        return self.to_device(tensor.float() if tensor.is_floating_point() else tensor)

    @cached_property
    def _shift_and_scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is subtracted from the values 0..255 of each channel, and what they are multiplied by after that."""
        mean, std = (torch.tensor(values) for values in mean_and_std(self.normalize))
        return mean * 255, 1 / (std * 255)

    @cached_property
    def _constants(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, 3, 1, 1) on the device, copied there once: a copy for each batch would wait behind its images."""
        shift, scale = (one.view(1, 3, 1, 1).to(self.device) for one in self._shift_and_scale)
        return shift, scale

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on ``device``; itself where it is there."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            # Decoders write into pinned memory. Labels are few, and so cheap to copy once more.
            pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
            return pinned.to(self.device, non_blocking=True)
        return tensor.to(self.device)


def normalized(images: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """``(images - shift) * scale`` in float32, rounded to ``dtype`` once, in as few passes over memory as torch allows.

    On a GPU that is two kernels, which convert while they read and while they write: 11 bytes of traffic an element in
    bfloat16, where converting in steps of their own takes 27.

    Args:
        images: (B, 3, H, W) uint8 or float32.
        shift, scale: (1, 3, 1, 1) float32 on the same device.
        dtype: floating type of the result.

    Returns:
        the values in the memory format of ``images``, which stay as they are.
    """
    values = torch.sub(images, shift)
    return torch.mul(values, scale, out=values if dtype == torch.float32 else torch.empty_like(values, dtype=dtype))


@dataclass(frozen=True, kw_only=True, eq=False)
class HandOver:
    """Hands batches to a consumer that works on a GPU, and bounds how many of them it may be working on.

    The consumer's host only enqueues work, and may run far ahead of the GPU: with CUDA graphs by hundreds of steps. As
    the memory of a batch is free only when the GPU is done with it, each of those steps would take memory of its own.

    Args:
        most: batches that the GPU may not have finished with. The host waits for the one before them.
    """

    most: int = 4
    _done: deque[torch.cuda.Event] = field(default_factory=deque[torch.cuda.Event], init=False)

    def __call__(self, tensors: Sequence[torch.Tensor], ready: torch.Event) -> None:
        """Let the consumer's stream wait for a copy, and the allocator for the consumer before it reuses the memory.

        Args:
            tensors: a batch on one CUDA device, written by another stream.
            ready: recorded on that stream after the copy.
        """
        stream = torch.cuda.current_stream(tensors[0].device)
        # Behind all that the consumer enqueued for the batches before this one. Blocking, as a thread that spins takes
        # a core from those that decode.
        done = torch.cuda.Event(blocking=True)
        done.record(stream)
        self._done.append(done)
        if len(self._done) > self.most:
            self._done.popleft().synchronize()
        ready.wait(stream)
        for tensor in tensors:
            # The events above bound the memory; this keeps a batch safe that its consumer holds for longer.
            tensor.record_stream(stream)


def _normalized(pixels: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(B, S, S, 3) float32 from uint8 on the CPU: what torch computes, to the last bit, on this thread alone.

    Torch would share the work with a thread per core. Where training keeps the cores busy, each waits for its turn, and
    all for the last of them.
    """
    batch, height, width, channels = pixels.shape
    lines = pixels.numpy().reshape(batch * height, width * channels)
    values = np.subtract(lines, np.tile(shift.numpy(), width), dtype=np.float32)
    values *= np.tile(scale.numpy(), width)
    return torch.from_numpy(values.reshape(pixels.shape))


_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def blur_and_decimate(images: torch.Tensor, ratio: int) -> torch.Tensor:
    """Blur images and keep every ``ratio``-th row and column, beginning with the first.

    Once for each factor of two: the binomial filter (1, 4, 6, 4, 1) / 16 in both axes, whose deviation of one pixel is
    half of the factor, on images continued by their reflection; then every other pixel. An even image stays as it is,
    so normalised and other images alike can be given.

    Args:
        images: (N, C, H, W), floating; H and W are multiples of ``ratio``, and of at least twice that.
        ratio: a power of two.

    Returns:
        (N, C, H / ratio, W / ratio) of the same dtype, device and memory format.
    """
    assert ratio & (ratio - 1) == 0 and not any(side % ratio for side in images.shape[2:]), (
        "the ratio divides the sides"
    )
    channels = images.shape[1]
    kernel = _kernel(images.dtype, images.device).expand(channels, 1, 5, 5)
    while ratio > 1:
        images = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=channels)
        ratio //= 2
    return images


@lru_cache
def _kernel(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(5, 5): the filter in both axes, copied to each device once."""
    taps = torch.tensor(_BINOMIAL, dtype=dtype, device=device)
    return torch.outer(taps, taps)
