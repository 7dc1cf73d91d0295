"""Is a conversion that is killed at any moment finished by a rerun, to the same bytes?

Converts a folder once undisturbed, and then again and again: killed (SIGKILL) at a random moment, each time a last run
is left to finish. The exit status is 1 where a target exists before its conversion has finished, a rerun fails, or its
result differs.

    python -m tests.slow.kill_conversions FOLDER --times 30
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(source: Path, target: Path) -> subprocess.Popen[bytes]:
    """Begin a conversion with two workers."""
    program = (
        "import sys\n"
        "from respipe.conversion import convert\n"
        "convert(sys.argv[1], sys.argv[2], levels=(256, 128), num_workers=2, allow_corrupt=10**6)\n"
    )
    command = [sys.executable, "-c", program, str(source), str(target)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def digest(path: Path) -> str:
    """Of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kill_and_finish(source: Path, folder: Path, moment: float, expected: str) -> str:
    """What came of one conversion killed after so many seconds, and of its rerun."""
    target = folder / "x.beton"
    process = start(source, target)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if target.exists():
        return "finished before the kill" if digest(target) == expected else "BAD: a half-written target"
    begun = Path(f"{target}.journal").exists()
    process = start(source, target)
    _, errors = process.communicate()
    if process.returncode:
        return f"BAD: the rerun failed: {errors.decode(errors='replace')[-300:]}"
    if digest(target) != expected or len(list(folder.iterdir())) > 1:
        return "BAD: another result"
    return "resumed to the same bytes" if begun else "killed before it began, and done anew"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    moments = random.Random(options.seed)
    outcomes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole.beton"
        began = time.perf_counter()
        process = start(options.source, whole)
        _, errors = process.communicate()
        if process.returncode:
            print(f"The undisturbed conversion failed: {errors.decode(errors='replace')}", file=sys.stderr)
            return 2
        seconds, expected = time.perf_counter() - began, digest(whole)
        for number in range(options.times):
            folder = Path(name) / str(number)
            folder.mkdir()
            moment = moments.uniform(0, seconds)
            outcome = kill_and_finish(options.source, folder, moment, expected)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            print(f"killed after {moment:.2f} of {seconds:.2f} s: {outcome}", flush=True)
    print("; ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
    return int(any(outcome.startswith("BAD") for outcome in outcomes))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m tests.slow.kill_conversions",
    )
    parser.add_argument("source", type=Path, help="a folder with one subfolder per class")
    parser.add_argument("--times", type=int, default=30, help="conversions to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
