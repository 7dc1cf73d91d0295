"""A user's batch transform, called so that what it draws depends on seed, epoch, step and rank alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Images = torch.Tensor | tuple[torch.Tensor, ...]
BatchTransform = Callable[[Any, Any], tuple[Any, Any]]


def transformed(
    transform: BatchTransform,
    images: Images,
    labels: torch.Tensor | None,
    *,
    seeds: tuple[int, int, int, int],
    device: torch.device,
) -> tuple[Images, torch.Tensor | None]:
    """What a transform makes of a placed batch.

    Args:
        transform: called with ``(images, labels)``.
        images: (B, 3, S, S), or a tuple of such tensors.
        labels: labels of the batch, or None.
        seeds: for every generator that the transform may draw from; see :func:`seeded_generators`.
        device: where the batch is.

    Raises:
        ValueError: labels were mixed where the images of some sizes were not, as by torchvision's ``v2.MixUp``.
    """
    with seeded_generators(seeds, device):
        new_images, new_labels = transform(images, labels)
    if isinstance(images, tuple) and new_labels is not labels:
        left = [str(new.shape[-1]) for new, old in zip(new_images, images, strict=True) if new is old]
        if left:
            raise ValueError(
                f"`batch_transform` must change the images of every size alike where it changes labels; it left those "
                f"of {', '.join(left)} px as they were. torchvision's MixUp and CutMix take images of one size."
            )
    return new_images, new_labels


@contextmanager
def seeded_generators(seeds: tuple[int, int, int, int], device: torch.device) -> Generator[None]:
    """Seed torch's, NumPy's and Python's global generators, and restore them afterwards.

    Args:
        seeds: of 64 bits, for torch on the CPU, torch on ``device``, NumPy, and Python's ``random``.
        device: whose generator is seeded besides that of the CPU; those of other devices stay as they are.
    """
    on_cpu, numpys, pythons = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    module = torch.get_device_module(device) if device.type != "cpu" else None
    where = (device,) if device.type == "cuda" else ()  # other kinds have one generator
    on_device = module.get_rng_state(*where) if module is not None else None
    try:
        torch.default_generator.manual_seed(seeds[0])
        if module is not None:
            with torch.cuda.device(device if device.type == "cuda" else None):
                module.manual_seed(seeds[1])
        np.random.seed(np.array([seeds[2]], np.uint64).view(np.uint32))  # noqa: NPY002 - what transforms draw from
        random.seed(seeds[3])
        yield
    finally:
        torch.set_rng_state(on_cpu)
        if module is not None:
            module.set_rng_state(on_device, *where)
        np.random.set_state(numpys)  # noqa: NPY002
        random.setstate(pythons)
