"""Processor time of augmentation alone: respipe, torchvision's v2 as a DataLoader's worker runs it, DALI's auto_aug.

Images lie decoded in memory. respipe draws, resolves and augments batches; torchvision transforms one image at a time
and collates; DALI runs ``auto_aug`` on a CPU thread. What is counted is the processor time of the whole process, which
other work on the machine disturbs little. Rounds visit all of them in turn.

    python -m tools.benchmarks.augment --output benchmarks/augment_cpu.json
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate
from torchvision.transforms import v2

from respipe import augment
from respipe.augment.operations import resolve
from respipe.planning.augmentation import Canvas, plan_augmentation

from .report import medians, race, times_faster, write_json

BATCH = 64
POLICIES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "RandAugment(2, 9)": ((augment.RandAugment(2, 9),), v2.RandAugment(2, 9)),
    "TrivialAugmentWide": ((augment.TrivialAugmentWide(),), v2.TrivialAugmentWide()),
    "AutoAugment": ((augment.AutoAugment(),), v2.AutoAugment()),
    "ColorJitter(0.4, 0.4, 0.4)": ((augment.ColorJitter(0.4, 0.4, 0.4),), v2.ColorJitter(0.4, 0.4, 0.4)),
}


def pictures(size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size] / size
    phases = rng.uniform(0, 6, (BATCH, 3, 1, 1))
    waves = 128 + 90 * np.sin(phases + 9 * x + 5 * y * phases) + rng.normal(0, 10, (BATCH, 3, size, size))
    return np.ascontiguousarray(waves.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def with_respipe(policies: tuple[Any, ...], images: np.ndarray) -> Iterator[object]:
    canvas = Canvas(sizes=np.full(BATCH, images.shape[1]), base_size=224)
    for epoch in range(1 << 30):
        plan = plan_augmentation(
            policies, canvas, seed=0, epoch=epoch, indices=np.arange(BATCH), copies=np.zeros(BATCH, np.int64)
        )
        batch = images.copy()
        resolve(plan, images.shape[1], (0.485, 0.456, 0.406)).augment(batch, 0, BATCH)
        yield batch


def with_torchvision(transform: Any, images: np.ndarray) -> Iterator[object]:
    planes = list(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    while True:
        yield default_collate([transform(image) for image in planes])


def with_dali(name: str, images: np.ndarray) -> Iterator[object]:
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.auto_aug import auto_augment, rand_augment, trivial_augment

    functions: dict[str, Callable[[Any], Any]] = {
        "RandAugment(2, 9)": lambda data: rand_augment.rand_augment(data, n=2, m=9, shape=images.shape[1:3]),
        "TrivialAugmentWide": lambda data: trivial_augment.trivial_augment_wide(data, shape=images.shape[1:3]),
        "AutoAugment": lambda data: auto_augment.auto_augment_image_net(data, shape=images.shape[1:3]),
    }
    if name not in functions:
        return

    @pipeline_def(
        enable_conditionals=True,
        batch_size=BATCH,
        num_threads=1,
        device_id=None,
        exec_async=False,
        exec_pipelined=False,
    )
    def pipeline() -> Any:
        return functions[name](fn.external_source(lambda: images, layout="HWC", batch=True))

    pipe = pipeline()
    pipe.build()
    while True:
        yield pipe.run()


def microseconds(batches: Iterator[object], count: int) -> float:
    """Processor time for each image."""
    start = time.process_time()
    for _ in range(count):
        next(batches)
    return (time.process_time() - start) / (count * BATCH) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=2, help="batches of a visit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for size in (224, 128, 96):
        images = pictures(size)
        for name, (policies, transform) in POLICIES.items():
            makers = {
                "respipe": with_respipe(policies, images),
                "torchvision": with_torchvision(transform, images),
                "dali": with_dali(name, images),
            }
            if next(makers["dali"], None) is None:
                del makers["dali"]
            times = race(makers, options.rounds, lambda batches: microseconds(batches, options.batches))
            measured = {"microseconds_per_image": medians(times, 1), "times_faster": times_faster(times)}
            results.append({"policy": name, "size": size, **measured})
            print(results[-1], flush=True)
    report = {"cpu": platform.processor() or platform.machine(), "batch": BATCH, "results": results}
    if options.output:
        write_json(options.output, report)


if __name__ == "__main__":
    main()
