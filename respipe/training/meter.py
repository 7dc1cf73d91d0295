"""What is measured while training: loss, throughput and waiting time of an epoch, by the sizes of its steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from typing import Any, cast

import torch

from respipe.runs import Sizes, SizeTotals, label_of, sizes_of
from respipe.training.processes import Process, sum_over_ranks


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
        loss, count = cast(list[float], sum_over_ranks(self._sums, self._process).tolist())
        return loss / count, sum(totals.seconds for totals in self.sizes.values())

    def state_dict(self) -> dict[str, Any]:
        """All sums, over all ranks: every rank has to call it."""
        self._count_gpu_time()
        sums = cast(list[float], sum_over_ranks(self._sums, self._process).tolist())
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
