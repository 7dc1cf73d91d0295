"""Time and memory of planning one epoch: order, crops and flips of every sample. NumPy only, no images."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import numpy as np

from respipe.sampling import SamplingPolicy, plan_epoch
from respipe.schedules import TRD


def current_rss() -> int:
    """Bytes this process holds in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_281_167, help="samples in the dataset (default: ImageNet)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    heights = rng.integers(200, 600, arguments.samples, dtype=np.int32)
    widths = rng.integers(200, 600, arguments.samples, dtype=np.int32)
    schedule = TRD(224, 112, 0.5)
    before = current_rss()
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    for epoch in range(arguments.repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        plan_epoch(
            schedule, SamplingPolicy(), epoch=epoch, heights=heights, widths=widths, batch_size=arguments.batch_size
        )
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    # The peak may date from the imports, so the growth is never understated.
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    report = {
        "samples": arguments.samples,
        "median_seconds": round(statistics.median(seconds), 3),
        # What the time would be if nothing else ran on the machine.
        "median_cpu_seconds": round(statistics.median(cpu_seconds), 3),
        "seconds": [round(value, 3) for value in seconds],
        "peak_rss_growth_mb": round(growth / 1e6),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
