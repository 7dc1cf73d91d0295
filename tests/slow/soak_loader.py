"""Memory of a loader over thousands of batches of changing size: does it grow?

Reads batches epoch after epoch and notes the memory of this process, and of the GPU's allocator with ``--device cuda``.
Two things count, both after a first fifth of the run is left out. Anonymous memory (pages of the data file that the
kernel keeps mapped are no leak) has grown if its median over the second half exceeds that over the first half by more
than ``--tolerance``. And the straight line that fits resident memory best may rise by at most ``--slope`` per 10,000
images. Where either fails the exit status is 1.

    python -m tests.slow.soak_loader train.beton --schedule "MixSize('S144')" --batch-size 64 --images 200000
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import respipe
from respipe.schedules.parsing import schedule_from_expression

MIB = 2**20
ALLOCATOR_NOISE = 32.0
"""How much the free memory that the C library keeps comes and goes where nothing leaks, in MiB."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory after a number of batches, in MiB.

    Args:
        batches, images: batches and images read so far; each copy of an image counts.
        rss: resident memory of this process.
        anonymous: the part of it that is backed by no file.
        cuda_allocated, cuda_reserved: held by tensors, and by torch's allocator, on the GPU; 0 without one.
    """

    batches: int
    images: int
    rss: float
    anonymous: float
    cuda_allocated: float = 0.0
    cuda_reserved: float = 0.0


def measure(batches: int, images: int, device: torch.device) -> Memory:
    """Memory now (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    rss, anonymous = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))
    if device.type != "cuda":
        return Memory(batches=batches, images=images, rss=rss, anonymous=anonymous)
    return Memory(
        batches=batches,
        images=images,
        rss=rss,
        anonymous=anonymous,
        cuda_allocated=torch.cuda.memory_allocated(device) / MIB,
        cuda_reserved=torch.cuda.memory_reserved(device) / MIB,
    )


def growth(values: Sequence[float]) -> float:
    """How much the median of the second half exceeds that of the first, when the first fifth is left out."""
    settled = values[len(values) // 5 :]
    middle = len(settled) // 2
    return statistics.median(settled[middle:]) - statistics.median(settled[:middle])


def slope(images: Sequence[int], values: Sequence[float]) -> float:
    """How steeply values rise per 10,000 images by least squares, when the first fifth is left out."""
    start = len(values) // 5
    line = statistics.linear_regression(images[start:], values[start:])
    return 10_000 * line.slope


def soak(
    loader: respipe.Loader, *, num_batches: int | None, num_images: int | None, every: int, device: torch.device
) -> Iterator[Memory]:
    """Read so many batches, or as many as it takes for so many images, measuring after every few."""
    batches = images = 0
    while True:
        for _, labels in loader:
            batches, images = batches + 1, images + len(labels)
            done = batches == num_batches if num_images is None else images >= num_images
            if batches % every == 0 or done:
                yield measure(batches, images, device)
            if done:
                return


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    device = torch.device(options.device)
    loader = respipe.Loader(
        options.data,
        schedule_from_expression(options.schedule, num_epochs=90),
        batch_size=options.batch_size,
        backend=options.backend,
        device=device,
        num_threads=options.threads,
    )
    with loader:
        largest = next(loader.warmup_shapes()).nbytes / MIB
        tolerance = options.tolerance if options.tolerance is not None else max(largest, ALLOCATOR_NOISE)
        if not options.json:
            print(f"{loader.schedule!r}, {loader.backend} backend on {device}, largest batch {largest:.1f} MiB")
            print("   batches     images    RSS  anonymous  CUDA held  CUDA reserved (MiB)")
        start, memory = time.perf_counter(), list[Memory]()
        limits = {"num_batches": options.batches, "num_images": options.images}
        for now in soak(loader, **limits, every=options.every, device=device):
            memory.append(now)
            if not options.json:
                print(
                    f"{now.batches:10d} {now.images:10d} {now.rss:6.0f} {now.anonymous:10.0f} "
                    f"{now.cuda_allocated:10.0f} {now.cuda_reserved:14.0f}",
                    flush=True,
                )
        seconds = time.perf_counter() - start
        report = make_report(
            loader, memory, largest=largest, tolerance=tolerance, steepest=options.slope, seconds=seconds
        )
    if options.json:
        print(json.dumps(report))
    else:
        grown = f"{report['host_growth']:+.1f} MiB on the host, {report['cuda_growth']:+.1f} MiB on the GPU"
        grown += f"; RSS by {report['rss_slope']:+.3f} MiB per 10,000 images"
        print(f"{'GREW' if report['grew'] else 'did not grow'}: {grown}; {seconds:.0f} s")
    return int(report["grew"])


def make_report(
    loader: respipe.Loader,
    memory: Sequence[Memory],
    *,
    largest: float,
    tolerance: float,
    steepest: float,
    seconds: float,
) -> dict[str, Any]:
    """The run and its verdict, ready for JSON; all memory in MiB."""
    host = growth([one.anonymous for one in memory])
    cuda = growth([one.cuda_reserved for one in memory])
    rss = slope([one.images for one in memory], [one.rss for one in memory])
    return {
        "schedule": repr(loader.schedule),
        "batch_size": loader.batch_size,
        "backend": loader.backend,
        "images": memory[-1].images,
        "seconds": round(seconds, 1),
        "largest_batch": round(largest, 2),
        "tolerance": round(tolerance, 2),
        "host_growth": round(host, 2),
        "cuda_growth": round(cuda, 2),
        "rss_slope": round(rss, 4),
        "grew": max(host, cuda) > tolerance or rss > steepest,
        "memory": [asdict(one) for one in memory],
    }


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m tests.slow.soak_loader",
    )
    parser.add_argument("data", help=".beton file or class folder")
    parser.add_argument("--schedule", default="MixSize('S144')", help="schedule to run (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="at the base size (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=5000, help="batches to read (default: %(default)s)")
    parser.add_argument("--images", type=int, help="images to read, instead of --batches")
    parser.add_argument("--every", type=int, default=100, help="batches between measurements (default: %(default)s)")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="decoding threads (default: the cores this process may use)")
    parser.add_argument(
        "--tolerance", type=float, help="growth allowed, in MiB (default: the largest batch, at least 32)"
    )
    parser.add_argument(
        "--slope", type=float, default=1.0, help="MiB of RSS allowed per 10,000 images (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    if options.batches < 10 * options.every:
        parser.error(f"`--batches` must be at least ten times `--every`; got {options.batches} and {options.every}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
