"""Cases in processes of their own: a crash, a hang or running out of memory is an outcome like any other."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

KINDS = {"images": "tests.slow.faults.images:ImageCases", "betons": "tests.slow.faults.betons:BetonCases"}
"""Where the classes of cases are."""

ROOT = Path(__file__).parents[3]

# A case takes milliseconds; before its first one a process also waits for the compiler.
_CASE_SECONDS, _START_SECONDS = 60.0, 300.0
# How much a process may grow while it runs its cases: none has images beyond some kilobytes.
_GROWTH = 2 << 30
_CASES_PER_PROCESS = 1000
WARMUP = 10
"""Cases that every process runs once before it counts any."""
_READY = b"ready"


@dataclass
class Tally:
    """What came of many cases.

    Args:
        outcomes: how often each.
        bad: number and outcome of cases that must not end so.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, outcome: str) -> None:
        """Count a case."""
        self.outcomes[outcome] += 1
        if outcome.startswith("BAD"):
            self.bad.append((number, outcome))


def run_cases(kind: str, target: str, *, seed: int, num_cases: int) -> Tally:
    """Run some cases.

    Args:
        kind: of ``KINDS``, or ``module:class`` of another class of cases, which can be made of a target and a seed.
        target: see there.
        seed: of all cases.
        num_cases: cases 0 to ``num_cases - 1``.
    """
    tally, number = Tally(), 0
    while number < num_cases:
        stop = min(number + _CASES_PER_PROCESS, num_cases)
        for done, outcome in _run_some(kind, target, seed, number, stop):
            tally.add(done, outcome)
            number = done + 1
    return tally


def _run_some(kind: str, target: str, seed: int, start: int, stop: int) -> Iterator[tuple[int, str]]:
    """Outcomes from one process, which may end early: then its last one is that of the case it ended in."""
    command = [sys.executable, "-m", "tests.slow.faults.processes", kind, target, *map(str, (seed, start, stop))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    expected = start
    with (
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)  # whoever stops asking must not wait for a case that hangs
        assert process.stdout is not None
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        errors = b""
        deadline = time.monotonic() + _START_SECONDS
        pending = b""
        while expected < stop:
            ready, _, _ = select.select([process.stdout, process.stderr], [], [], max(0.0, deadline - time.monotonic()))
            if process.stderr in ready:
                errors = (errors + (process.stderr.read() or b""))[-2000:]
            if process.stdout in ready:
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    code = process.wait()
                    name = signal.Signals(-code).name if code < 0 else f"status {code}"
                    yield expected, f"BAD: the process ended ({name}): {errors.decode(errors='replace')[-300:]}"
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    if line != _READY:
                        number, outcome = json.loads(line)
                        yield number, outcome
                        expected = number + 1
                    deadline = time.monotonic() + _CASE_SECONDS
            if not ready:
                yield expected, "BAD: it hangs"
                return


def main() -> None:
    """Run some cases in this process, one line of JSON each."""
    kind, target, *numbers = sys.argv[1:]
    seed, start, stop = map(int, numbers)
    faulthandler.enable()
    module, _, name = KINDS.get(kind, kind).partition(":")
    cases = getattr(importlib.import_module(module), name)(target, seed)
    for number in range(start, start + WARMUP):  # loads and compiles everything before memory is limited
        with contextlib.suppress(Exception):  # it will be raised once more, and then be told
            cases.run(number)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _GROWTH, size + _GROWTH))
    sys.stdout.write(f"{_READY.decode()}\n")
    sys.stdout.flush()
    for number in range(start, stop):
        try:
            outcome = cases.run(number)
        except Exception as error:  # noqa: BLE001 - whatever is raised but not foreseen is a finding
            outcome = f"BAD: {type(error).__name__}: {error}"
        sys.stdout.write(json.dumps((number, outcome)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
