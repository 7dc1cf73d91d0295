"""What changes the pixels of a batch: augmentation as planned, and a user's transform with seeded generators."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch

from respipe.augment.operations import augment_tensor, resolve
from respipe.backends.pool import DaemonPool
from respipe.planning.batch import BatchPlan

Decoded = tuple[BatchPlan, tuple[torch.Tensor, ...]]


def augment_in_order(
    batches: Generator[Decoded, None, None],
    *,
    mean: tuple[float, ...],
    to_device: Callable[[torch.Tensor], torch.Tensor],
    num_threads: int,
) -> Iterator[Decoded]:
    """Augment batches, those on a CPU by threads while the next one is being decoded.

    Args:
        batches: plans and their (B, S, S, 3) uint8 pixels; closed at the end.
        mean: mean colour, three values in 0..1.
        to_device: copy to the device where batches end up.
        num_threads: number of threads, whose work is done by compiled loops without the GIL.

    Yields:
        the same, changed in place or copied to the device.
    """
    threads = DaemonPool(num_threads, "respipe-augment")
    waiting: deque[tuple[Decoded, list[Future[None]]]] = deque()
    with closing(batches):
        try:
            for plan, pixels in batches:
                waiting.append(_started(plan, tuple(map(to_device, pixels)), mean, threads, num_threads))
                if len(waiting) > 1:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:
            wait([future for _, futures in waiting for future in futures], timeout=30)
            threads.close()


def _started(
    plan: BatchPlan, pixels: tuple[torch.Tensor, ...], mean: tuple[float, ...], threads: DaemonPool, num_threads: int
) -> tuple[Decoded, list[Future[None]]]:
    futures: list[Future[None]] = []
    for part, images in zip(plan.views or (plan,) * len(pixels), pixels, strict=True):
        if part.augmentation is None:
            continue
        resolved = resolve(part.augmentation, images.shape[1], mean)
        if images.device.type != "cpu":
            augment_tensor(images, resolved)
            continue
        edges = [len(images) * number // num_threads for number in range(num_threads + 1)]
        futures += [
            threads.submit(resolved.augment, images.numpy(), start, stop)
            for start, stop in pairwise(edges)
            if start < stop
        ]
    return (plan, pixels), futures


def _finished(batch: Decoded, futures: list[Future[None]]) -> Decoded:
    for future in futures:
        future.result(timeout=300)
    return batch


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
        TypeError: it returned something else.
        ValueError: labels were mixed where the images of some sizes were not, as by torchvision's ``v2.MixUp``.
    """
    with seeded_generators(seeds, device):
        returned = cast(object, transform(images, labels))
    if not isinstance(returned, (tuple, list)) or len(cast("tuple[Any, ...]", returned)) != 2:
        kind = type(cast(object, returned)).__name__
        raise TypeError(
            f"`batch_transform` must return (images, labels); got {kind}. Return both, also the one "
            "that it leaves as it is."
        )
    new_images, new_labels = cast("tuple[Images, torch.Tensor | None]", returned)
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
