"""Time to the first batch of a plan, and peak memory, each in a process of its own.

Memory is the highest resident set of the process, its imports and the images' sizes (2 x 2 bytes a sample) included.

    python -m tools.benchmarks.planning --output benchmarks/planning_cpu.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from respipe.planning.policy import SamplingPolicy
from respipe.planning.run import RunPlan
from respipe.sampling import Blocks
from respipe.schedules import TRD, Constant, MixSize

from .report import write_json

SCHEDULES = {"Constant": Constant(224), "TRD": TRD(224, 96, 0.5), "MixSize": MixSize("S224")}
BATCH, NUM_TIMED = 256, 50


@dataclass(frozen=True)
class Data:
    """As much of a dataset as a plan needs."""

    levels: tuple[Any, ...]
    fingerprint: str = "planning"

    def __len__(self) -> int:
        return len(self.levels[0].heights)


def measure(num_samples: int, schedule: str, shuffle: str) -> dict[str, Any]:
    sides = np.full((2, num_samples), 500, np.uint16)
    policy = SamplingPolicy(shuffle=Blocks() if shuffle == "blocks" else "full")
    start = time.perf_counter()
    data = Data((SimpleNamespace(heights=sides[0], widths=sides[1]),))
    batches = RunPlan(SCHEDULES[schedule], data, policy, batch_size=BATCH).local_batches(0, 0, rank=0, world_size=1)
    next(batches)
    first = time.perf_counter()
    num_timed = sum(1 for _ in islice(batches, NUM_TIMED))
    later = (time.perf_counter() - first) / num_timed
    return {
        "num_samples": num_samples, "schedule": schedule, "shuffle": shuffle,
        "seconds_to_first_batch": round(first - start, 2), "milliseconds_per_batch": round(1000 * later, 2),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        arguments.output.write_text(json.dumps(measure(int(arguments.case[0]), *arguments.case[1:])))
        return
    cases = [(count, name, "full") for count in (10**7, 10**8) for name in SCHEDULES] + [(10**8, "TRD", "blocks")]
    results: list[dict[str, Any]] = []
    for case in cases:
        command = [sys.executable, "-m", "tools.benchmarks.planning", "--output", str(arguments.output), "--case"]
        subprocess.run([*command, *map(str, case)], check=True, timeout=600)
        results.append(json.loads(arguments.output.read_text()))
        print(results[-1], flush=True)
    write_json(arguments.output, {"batch_size": BATCH, "results": results})


if __name__ == "__main__":
    main()
