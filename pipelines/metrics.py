"""What is measured while training, and where it is written down."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pipelines.distributed import Process, sum_over_ranks

logger = logging.getLogger(__name__)


Sizes = tuple[int, ...]
"""The sides in pixels that a step shows its images at, largest first; usually one."""


def label_of(sizes: Sequence[int]) -> str:
    """``32``, or ``32+24+16`` for steps of several sizes: what a log calls them."""
    return "+".join(str(size) for size in sizes)


def sizes_of(label: str) -> Sizes:
    """The sizes that a log calls so."""
    return tuple(int(size) for size in label.split("+"))


@dataclass(kw_only=True)
class SizeTotals:
    """Sums over the steps of one kind: of one size, or of the same several sizes, where an image counts once.

    Seconds are wall time; ``wait_seconds`` is the part spent waiting for data.
    """

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Throughput over all ranks."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time spent waiting for data, in 0..1."""
        return self.wait_seconds / self.seconds if self.seconds else 0.0


class EpochMeter:
    """Loss, throughput and waiting time of one epoch, by the sizes of its steps.

    Call ``batch_arrived`` and ``step_done`` around every step. Neither waits for a GPU: its own clock tells when it was
    done with each step. On a GPU, waiting for data while its queue is still at work counts as waiting too, so that the
    waiting time is an upper bound there.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._sums = torch.zeros(2, dtype=torch.float64, device=process.device)
        self._step_sizes: Sizes | None = None
        self._mark = time.perf_counter()
        self._gpu_marks: list[tuple[Sizes | None, torch.cuda.Event]] = []  # the sizes are those of the step before
        self._mark_on_gpu(None)
        self.sizes: dict[Sizes, SizeTotals] = {}

    def restart_clock(self) -> None:
        """Do not count the time since the last step: something else was done."""
        self._mark = time.perf_counter()
        self._mark_on_gpu(None)

    def batch_arrived(self, sizes: Sizes) -> None:
        """The loop has received a batch of these sizes."""
        arrived = time.perf_counter()
        self._step_sizes = sizes
        totals = self.sizes.setdefault(sizes, SizeTotals())
        totals.wait_seconds += arrived - self._mark
        if not self._gpu_marks:
            totals.seconds += arrived - self._mark
        self._mark = arrived

    def step_done(self, loss: torch.Tensor, num_images: int) -> None:
        """The loop has dealt with the batch: its mean loss, and how many images it had on this rank."""
        assert self._step_sizes is not None, "a batch arrived before"
        self._sums[0] += loss.detach().double() * num_images
        self._sums[1] += num_images
        totals = self.sizes[self._step_sizes]
        totals.steps += 1
        totals.images += num_images * self._process.world_size
        done = time.perf_counter()
        if self._gpu_marks:
            self._mark_on_gpu(self._step_sizes)
        else:
            totals.seconds += done - self._mark
        self._mark = done

    def finish(self) -> tuple[float, float]:
        """End the epoch: its mean loss over all ranks, and its seconds."""
        self._count_gpu_time()
        loss, count = sum_over_ranks(self._sums, self._process).tolist()
        return loss / count, sum(totals.seconds for totals in self.sizes.values())

    def state_dict(self) -> dict[str, Any]:
        """All sums, over all ranks: every rank has to call it."""
        self._count_gpu_time()
        sums = sum_over_ranks(self._sums, self._process).tolist()
        return {"sums": sums, "sizes": {label_of(sizes): asdict(totals) for sizes, totals in self.sizes.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a saved state."""
        if self._process.is_main:
            self._sums += torch.tensor(state["sums"], dtype=torch.float64, device=self._process.device)
        self.sizes = {sizes_of(label): SizeTotals(**totals) for label, totals in state["sizes"].items()}

    def _mark_on_gpu(self, sizes: Sizes | None) -> None:
        if self._process.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._gpu_marks.append((sizes, event))

    def _count_gpu_time(self) -> None:
        """Wait for the GPU, and count the time between its marks."""
        if not self._gpu_marks:
            return
        self._gpu_marks[-1][1].synchronize()
        for (_, before), (sizes, after) in pairwise(self._gpu_marks):
            if sizes is not None:
                self.sizes[sizes].seconds += before.elapsed_time(after) / 1000
        del self._gpu_marks[:-1]


class RunLog:
    """Writes ``log.jsonl``, one JSON object a line, and TensorBoard's files beside it where it is installed.

    Args:
        directory: of the run; lines are appended to a log that is there.
        tensorboard: whether to write TensorBoard's files.
    """

    def __init__(self, directory: Path, *, tensorboard: bool) -> None:
        path = directory / "log.jsonl"
        is_torn = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = path.open("a", encoding="utf-8")
        if is_torn:  # by a kill: what follows must not become part of that line
            self._file.write("\n")
        self._writer = _tensorboard_writer(directory) if tensorboard else None

    def write(self, event: str, **fields: Any) -> None:
        """Append one line ``{"event": event, ...}``."""
        self._file.write(json.dumps({"event": event, **fields}) + "\n")
        self._file.flush()
        if self._writer is not None and event == "epoch":
            for name, value in _scalars(fields).items():
                self._writer.add_scalar(name, value, fields["epoch"])

    def close(self) -> None:
        """Close all files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def _tensorboard_writer(directory: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        logger.warning("TensorBoard is not installed: log.jsonl only. Install it with: pip install tensorboard")
        return None
    return SummaryWriter(directory / "tensorboard")


def _scalars(epoch: Mapping[str, Any]) -> dict[str, float]:
    scalars = {name: epoch[name] for name in ("train_loss", "lr", "seconds")}
    for sizes, totals in epoch["sizes"].items():
        scalars[f"images_per_second/{sizes}"] = totals["images_per_second"]
        scalars[f"wait_seconds/{sizes}"] = totals["wait_seconds"]
    scalars |= {f"ensemble_weight/{size}": weight for size, weight in epoch.get("ensemble", {}).items()}
    for prefix, results in (("", epoch["eval"]), ("calibrated_", epoch.get("calibrated", {}))):
        for size, result in results.items():
            scalars |= {f"{prefix}{name}/{size}": result[name] for name in ("top1", "top5", "loss")}
    return scalars
