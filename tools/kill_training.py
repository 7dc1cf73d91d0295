"""Kill a training run at random moments, again and again, and compare what becomes of it with an undisturbed run.

::

    PYTHONPATH=. python tools/kill_training.py --kills 100 -- RECIPE --data TRAIN --val VAL --set runtime.device=cpu

Everything behind ``--`` is for ``python -m pipelines.train``, without ``--output`` and ``--resume``. The run is trained
once undisturbed. Then it is started with ``--resume``, killed by SIGKILL after a random time of up to that of the whole
run, and started again until it ends; and all that until there were so many kills. Weights, momenta, losses, learning
rates and accuracies must be those of the undisturbed run to the last bit, else the exit status is 1.

Each life is a fork of this process, which has imported the pipeline and done nothing else: that is as good as a new
process and spares the imports. On a CPU only: a GPU's kernels do not always add in the same order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipelines import train
from pipelines.checkpoint import NAME

_LOGGED = ("epoch", "train_loss", "lr", "eval")
_LONGEST_LIFE = 3600.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="tools/kill_training.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how often to kill (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    parser.add_argument("training", nargs="+", metavar="ARGUMENT", help="of pipelines.train, behind --")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        report = kill_again_and_again(options.training, Path(folder), kills=options.kills, seed=options.seed)
    print(json.dumps(report))
    sys.exit(0 if report["identical"] == report["runs"] else 1)


def kill_again_and_again(training: Sequence[str], folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Train undisturbed and killed; returns what happened.

    Args:
        training: arguments of ``pipelines.train`` without its output.
        folder: for outputs; those that are as they should be are removed.
        kills: how often to kill.
        seed: of the moments.

    Returns:
        ``kills``; ``runs``, the killed runs that ended; ``identical``, those of them that ended as the undisturbed one;
        ``writing``, the kills that interrupted the writing of a checkpoint.

    Raises:
        RuntimeError: a run failed by itself.
    """
    moments = random.Random(seed)
    began = time.perf_counter()
    live([*training, "--output", str(folder / "undisturbed")], log=folder / "undisturbed.txt", seconds=_LONGEST_LIFE)
    longest = time.perf_counter() - began
    expected = outcome(folder / "undisturbed")
    report = {"kills": 0, "runs": 0, "identical": 0}
    half_written = set[tuple[Path, int]]()
    while report["kills"] < kills:
        output, log = folder / f"run{report['runs']}", folder / f"run{report['runs']}.txt"
        line = [*training, "--output", str(output), "--resume"]
        while not live(line, log=log, seconds=moments.uniform(0, longest)):
            report["kills"] += 1
            half_written |= {(path, path.stat().st_mtime_ns) for path in output.glob("*.partial")}
        report["runs"] += 1
        if same(expected, outcome(output)):
            report["identical"] += 1
            shutil.rmtree(output)
    return report | {"writing": len(half_written)}


def live(line: Sequence[str], *, log: Path, seconds: float) -> bool:
    """Train in a process of its own for so long; returns whether it ended by itself before it was killed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _train(line, log)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise RuntimeError(
                    f"Training must not fail by itself; it ended with status {status}:\n{log.read_text()}"
                )
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return status == 0  # it ended in the last moment


def _train(line: Sequence[str], log: Path) -> None:
    """What the child does; does not return."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    status = 1
    try:
        train.main(line)
        status = 0
    except BaseException:  # noqa: BLE001 - nothing may get past the fork
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def outcome(output: Path) -> tuple[dict[str, torch.Tensor], list[list[Any]]]:
    """Weights and momenta of a run that has ended, and what it logged of each epoch."""
    checkpoint = torch.load(output / NAME, weights_only=True)
    momenta = {f"momentum.{key}": state["momentum_buffer"] for key, state in checkpoint["optimizer"]["state"].items()}
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    epochs = {line["epoch"]: [line[name] for name in _LOGGED] for line in lines if line["event"] == "epoch"}
    return {**checkpoint["model"], **momenta}, list(epochs.values())


def same(
    first: tuple[dict[str, torch.Tensor], list[list[Any]]], second: tuple[dict[str, torch.Tensor], list[list[Any]]]
) -> bool:
    """Whether two runs have ended alike, to the last bit."""
    (tensors, log), (others, other_log) = first, second
    equal = all(torch.equal(tensor, others[name]) for name, tensor in tensors.items() if name in others)
    return log == other_log and tensors.keys() == others.keys() and equal


if __name__ == "__main__":
    main()
