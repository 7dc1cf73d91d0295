"""Does any damage become a crash, a hang, a wrong image, or a read outside the file?

Mutates images and ``.beton`` files, and gives them to every backend, to the cutter and to the conversion: in processes
of their own with limited memory, from memory that ends where an unreadable page begins. Every outcome must be an error,
or the pixels that Pillow makes of the same bytes. The exit status is 1 where one is anything else.

    python -m tests.slow.fuzz_faults --images 2000 --betons 2000 --json benchmarks/faults.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.slow.faults.processes import Tally, run_cases

TARGETS = ("tiles", "ffcv", "dali", "reference", "cutting", "conversion")
_MODULES = {"ffcv": "ffcv", "dali": "nvidia"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    results: list[dict[str, Any]] = []
    for kind, num_cases in (("images", options.images), ("betons", options.betons)):
        for target in options.targets:
            if kind == "betons" and target == "cutting":
                continue  # backends cut what they load
            start = time.perf_counter()
            tally = run_cases(kind, target, seed=options.seed, num_cases=num_cases)
            results.append(as_dict(kind, target, num_cases, tally, time.perf_counter() - start))
            show(results[-1])
    report = {"seed": options.seed, "results": results, "num_bad": sum(len(result["bad"]) for result in results)}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{sum(result['cases'] for result in results):,} cases, {report['num_bad']} bad")
    return int(report["num_bad"] > 0)


def as_dict(kind: str, target: str, num_cases: int, tally: Tally, seconds: float) -> dict[str, Any]:
    """A tally as JSON values."""
    return {
        "kind": kind,
        "target": target,
        "cases": num_cases,
        "outcomes": dict(tally.outcomes.most_common()),
        "bad": tally.bad,
        "seconds": round(seconds, 1),
    }


def show(result: dict[str, Any]) -> None:
    """Print a tally, and the first cases that must not be."""
    outcomes = "; ".join(f"{count:,} {outcome}" for outcome, count in result["outcomes"].items())
    print(
        f"{result['kind']} -> {result['target']}, {result['cases']:,} in {result['seconds']:.0f} s: {outcomes}",
        flush=True,
    )
    for number, outcome in result["bad"][:5]:
        print(f"  case {number}: {outcome}", flush=True)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m tests.slow.fuzz_faults",
    )
    there = [name for name in TARGETS if name not in _MODULES or importlib.util.find_spec(_MODULES[name])]
    parser.add_argument(
        "--images", type=int, default=2000, help="mutated images for each target (default: %(default)s)"
    )
    parser.add_argument("--betons", type=int, default=2000, help="mutated files for each target (default: %(default)s)")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=there, help="default: all that are installed")
    parser.add_argument("--seed", type=int, default=0, help="of all mutations (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
