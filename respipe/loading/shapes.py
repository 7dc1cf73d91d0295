"""The shapes of a rank's batches: their memory, and one batch of each to warm up with."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from respipe.schedules.step import Step


@dataclass(frozen=True, order=True)
class BatchShape:
    """What the tensors of a batch look like on one rank.

    Args:
        num_images: images of each size, copies included.
        sizes: sides in pixels; one tensor for each.
    """

    num_images: int
    sizes: tuple[int, ...]

    @property
    def num_pixels(self) -> int:
        """Pixels of all images together."""
        return self.num_images * sum(size**2 for size in self.sizes)

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Memory of images of three channels, in bytes."""
        return 3 * self.num_pixels * dtype.itemsize

    def zeros(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Black images in channels_last memory format, as a loader yields them: a tuple only for several sizes."""
        images = [
            torch.empty(
                (self.num_images, 3, size, size), dtype=dtype, device=device, memory_format=torch.channels_last
            ).zero_()
            for size in self.sizes
        ]
        return images[0] if len(images) == 1 else tuple(images)


def batch_shapes(steps: Iterable[Step], *, rank: int, world_size: int) -> list[BatchShape]:
    """The distinct shapes that a rank's share of some steps has, most pixels first; empty ones are left out."""
    shapes = {
        BatchShape(
            (step.batch_size * (rank + 1) // world_size - step.batch_size * rank // world_size) * step.duplicates,
            step.sizes,
        )
        for step in steps
    }
    return sorted((shape for shape in shapes if shape.num_images), key=lambda one: (one.num_pixels, one), reverse=True)


def warn_past_recompile_limit(num_shapes: int) -> None:
    """Warn where ``torch.compile`` would give up on a model before it has seen every shape.

    Warns:
        UserWarning: there are more shapes than TorchDynamo recompiles a function for.
    """
    config: Any = sys.modules.get("torch._dynamo.config")  # without it, nothing can have been compiled
    if config is None:
        return
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    limit = getattr(config, name)
    if num_shapes > limit:
        warnings.warn(
            f"The schedule has batches of {num_shapes} shapes, and a function is recompiled for {limit} at most: a "
            f"model compiled with dynamic=False would run uncompiled on the others. Compile it with dynamic=True, set "
            f"torch._dynamo.config.{name} = {num_shapes}, or plan fewer sizes.",
            UserWarning,
            stacklevel=3,
        )
