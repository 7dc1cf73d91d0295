"""Processor time of DINO's ten crops a sample, 2 x 224 and 8 x 96 px: respipe, torchvision and FFCV.

torchvision decodes an image once and crops it ten times, as a DataLoader's worker runs it. FFCV decodes for each crop:
its loaders have one crop a field, so that a batch here is two of one loader and eight of another. All deliver
normalised float32 batches. What is counted is the processor time of all threads of the process, which other work on the
machine disturbs little. Rounds visit all of them in turn.

    python -m tools.benchmarks.multicrop DATA --workdir .bench --output benchmarks/multicrop_cpu.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import v2

import respipe
from respipe.schedules import MultiCrop, View

from .contender import folder_samples
from .prepare import prepare_files
from .report import medians, race, times_faster, write_json

BATCH = 64
VIEWS = ((224, 2, (0.32, 1.0)), (96, 8, (0.05, 0.32)))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MANY = 1 << 20  # samples of an epoch, of which a benchmark sees the beginning


def with_respipe(file: Path, num_threads: int) -> Iterator[object]:
    schedule = MultiCrop([View(size, count, scale=scale) for size, count, scale in VIEWS])
    # The file many times over: where an epoch ends, nothing is decoded ahead.
    yield from respipe.Loader([file] * 64, schedule, batch_size=BATCH, num_threads=num_threads)


def with_torchvision(data: Path) -> Iterator[object]:
    paths, _ = folder_samples(data)
    crops = [
        v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=scale, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )
        for size, count, scale in VIEWS
        for _ in range(count)
    ]
    rng = np.random.default_rng(0)
    while True:
        batch: list[list[torch.Tensor]] = []
        for number in rng.choice(len(paths), BATCH, replace=False).tolist():
            with Image.open(data / paths[number]) as image:
                decoded = image.convert("RGB")
            batch.append([crop(decoded) for crop in crops])
        yield default_collate(batch)


def with_ffcv(file: Path, num_threads: int) -> Iterator[object]:
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.reader import Reader
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    mean, std = 255 * np.array(MEAN), 255 * np.array(STD)
    loaders = [
        Loader(
            str(file),
            batch_size=BATCH,
            num_workers=num_threads,
            os_cache=True,
            order=OrderOption.RANDOM,
            indices=np.arange(MANY, dtype=np.uint64) % np.uint64(Reader(str(file)).num_samples),
            drop_last=True,
            pipelines={
                "image": [
                    RandomResizedCropRGBImageDecoder((size, size), scale=scale),
                    RandomHorizontalFlip(),
                    NormalizeImage(mean, std, np.float32),
                    ToTensor(),
                    ToTorchImage(),
                ],
                "label": None,
            },
        )
        for size, _, scale in VIEWS
    ]
    streams = [iter(loader) for loader in loaders]
    while True:
        yield [next(stream) for stream, (_, count, _) in zip(streams, VIEWS, strict=True) for _ in range(count)]


def milliseconds(batches: Iterator[object], count: int) -> float:
    """Processor time for each sample, from full queues to full queues."""
    settle()
    start = time.process_time()
    for _ in range(count):
        next(batches)
    settle()
    return (time.process_time() - start) / (count * BATCH) * 1e3


def settle() -> None:
    """Wait until no thread of this process works ahead any more, for a minute at most."""
    for _ in range(120):
        before = time.process_time()
        time.sleep(0.5)
        if time.process_time() - before < 0.005:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="class folder of JPEGs")
    parser.add_argument("--workdir", type=Path, default=Path(".bench"), help="where converted files are kept")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=6, help="batches of a visit")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = prepare_files(options.data, ("pyramid", "ffcv-500"), options.workdir, num_workers=options.threads)
    makers = {
        "respipe": with_respipe(files["pyramid"], options.threads),
        "torchvision": with_torchvision(options.data),
        "ffcv": with_ffcv(files["ffcv-500"], options.threads),
    }
    times = race(makers, options.rounds, lambda batches: milliseconds(batches, options.batches))
    report = {
        "cpu": platform.processor() or platform.machine(),
        "threads": options.threads,
        "batch": BATCH,
        "views": [{"size": size, "count": count, "scale": scale} for size, count, scale in VIEWS],
        "milliseconds_per_sample": medians(times, 2),
        "samples_per_core_second": {name: round(1e3 / time, 1) for name, time in medians(times, 6).items()},
        "times_faster": times_faster(times),
    }
    print(json.dumps(report, indent=1))
    if options.output:
        write_json(options.output, report)


if __name__ == "__main__":
    main()
