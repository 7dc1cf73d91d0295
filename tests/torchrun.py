"""Several processes, as ``torchrun`` starts them, for tests; and what each of them does around its work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from respipe.training.processes import Process, process_group

_ROOT = Path(__file__).parents[1]
_TIMEOUT = 150.0


def torchrun(module: str, *arguments: object, num_processes: int = 2) -> None:
    """Run a module of the tests in several processes on this machine; fails with all they wrote where one fails."""
    # The address, because not every machine can look up its own name.
    options = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", module, *map(str, arguments)]
    try:
        finished = subprocess.run(
            command,
            cwd=_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        written = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout
        pytest.fail(f"{module} did not end within {_TIMEOUT:g} s. It wrote\n{written}")
    if finished.returncode:
        pytest.fail(f"{module} ended with status {finished.returncode}. It wrote\n{finished.stdout}")


@contextmanager
def one_of_the_ranks() -> Generator[Process]:
    """What such a module does its work in: joins the other processes, and leaves no thread of the group behind."""
    with process_group("cpu") as process:
        yield process
    assert not group_threads(), "threads of the process group would run into the interpreter's end"


def group_threads() -> list[str]:
    """Names of this process's threads that carry out gloo's collectives, and still do after ten seconds."""
    deadline = time.monotonic() + 10
    while names := [name for name in _thread_names() if name.startswith("pt_gloo")]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)  # a thread that was joined is listed for another moment
    return names


def _thread_names() -> Generator[str]:
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended after it was listed
            yield path.read_text().strip()
