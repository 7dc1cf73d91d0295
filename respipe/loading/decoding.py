"""Planned batches through a backend, in order, with damaged samples kept out."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from respipe.backends.base import Backend, ReadJob
from respipe.backends.routing import route
from respipe.checks import check_choice, check_int
from respipe.errors import CorruptImageError
from respipe.loading.read_ahead import routed_ahead
from respipe.planning.batch import BatchPlan
from respipe.storage.dataset import Dataset


def decode_in_order(
    backend: Backend,
    dataset: Dataset,
    guard: CorruptionGuard,
    plans: Iterable[BatchPlan],
    *,
    routed: Callable[[Dataset, BatchPlan], ReadJob] = route,
) -> Generator[tuple[BatchPlan, tuple[torch.Tensor, ...]], None, None]:
    """Decode batches, keeping the backend busy with the next ones while the last is in use.

    Args:
        backend: decodes; nothing may be submitted to it by others meanwhile.
        dataset: where the images are.
        guard: decides what happens to damaged samples.
        plans: batches in the order wanted.
        routed: :func:`respipe.backends.routing.route`, with or without options.

    Yields:
        The plan as it was carried out, without damaged samples, and its pixels (see :class:`Backend`), of the sides
        that ``plan.step.decoded`` has; where the plan has views, a tensor for all crops of each view.

    Raises:
        CorruptImageError: a sample is damaged and may not be left out.
    """

    def routes(plan: BatchPlan) -> tuple[ReadJob, ...]:
        return tuple(routed(dataset, one) for one in plan.views or (plan,))

    batches = _InFlight(backend, guard, routes)
    ahead = routed_ahead(plans, routes, dataset.buffers)
    try:
        for plan, jobs in ahead:
            batches.submit(plan, jobs)
            # A decoding thread that is done needs the interpreter to go on with the next batch.
            time.sleep(0)
            room = batches.room
            if len(batches) >= room:
                yield from batches.collect_until(room // 2)
        yield from batches.collect_until(0)
    finally:
        ahead.close()
        backend.reset()


class _Submitted(NamedTuple):
    """A batch that a backend is working on: its plan, a job for each view, and where to note what was checked."""

    plan: BatchPlan
    jobs: tuple[tuple[ReadJob, NDArray[np.bool_]], ...]


class _InFlight:
    """Batches that were submitted to a backend, oldest first."""

    def __init__(
        self, backend: Backend, guard: CorruptionGuard, route: Callable[[BatchPlan], tuple[ReadJob, ...]]
    ) -> None:
        self._backend = backend
        self._guard = guard
        self._route = route
        self._submitted: deque[_Submitted] = deque()

    def __len__(self) -> int:
        return len(self._submitted)

    @property
    def room(self) -> int:
        """How many batches like the last one the backend needs to be busy."""
        return min(self._backend.room(job) for job, _ in self._submitted[-1].jobs)

    def submit(self, planned: BatchPlan, jobs: Iterable[ReadJob] = ()) -> None:
        """Start decoding a batch, routed or not, without its damaged samples, as far as they are known."""
        plan = self._guard.admit(planned)
        routed = jobs if jobs and plan is planned else self._route(plan)
        checked = tuple(map(self._guard.must_check, routed))
        for job, _ in checked:
            self._backend.submit(job)
        self._submitted.append(_Submitted(plan, checked))

    def collect_until(self, left: int) -> Iterator[tuple[BatchPlan, tuple[torch.Tensor, ...]]]:
        """The oldest batches, until this many are left."""
        while len(self) > left:
            yield self._collect()

    def _collect(self) -> tuple[BatchPlan, tuple[torch.Tensor, ...]]:
        while True:
            try:
                pixels = tuple(tensor for _ in self._submitted[0].jobs for tensor in self._backend.collect())
            except CorruptImageError as error:
                # Damage shows only now, and the backend has lost its place: do all again without that sample.
                self._guard.report(error)
                self._backend.reset()
                again = list(self._submitted)
                self._submitted.clear()
                for plan, jobs in again:
                    self._enter(jobs)
                    self.submit(plan)
            else:
                plan, jobs = self._submitted.popleft()
                self._enter(jobs)
                return plan, pixels

    def _enter(self, jobs: Iterable[tuple[ReadJob, NDArray[np.bool_]]]) -> None:
        for job, checked in jobs:
            self._guard.enter(job, checked)


logger = logging.getLogger(__name__)

OnCorrupt = Literal["raise", "quarantine"]


class CorruptionGuard:
    """Knows which stored images were checked, and keeps damaged samples out of the batches.

    Each image is checked the first time it is used, by the thread that decodes it.

    With ``"raise"`` the first damaged sample ends the epoch with :class:`CorruptImageError`. With ``"quarantine"`` it
    is left out from then on: in training its place in the batch is taken, label and all, by the next sound sample of
    the batch, so that shapes stay as planned; in evaluation the batch gets shorter, so that no sample counts twice.
    After any change to the file every image is checked once more.

    Args:
        dataset: where the images are.
        on_corrupt: the policy.
        budget: samples that may be quarantined before the error is raised after all.
        training: replace damaged samples rather than drop them.
    """

    def __init__(self, dataset: Dataset, *, on_corrupt: OnCorrupt, budget: int, training: bool) -> None:
        check_choice("on_corrupt", on_corrupt, get_args(OnCorrupt))
        budget = check_int("corrupt_budget", budget, least=0)
        self._dataset = dataset
        self._budget = budget if on_corrupt == "quarantine" else 0
        self._training = training
        self._checked = np.zeros((len(dataset.levels), len(dataset)), np.bool_)
        self._revision = dataset.revision()
        self._damaged: dict[int, str] = {}

    @property
    def damaged(self) -> dict[int, str]:
        """Samples quarantined so far, with what is wrong with each."""
        return dict(self._damaged)

    def admit(self, plan: BatchPlan) -> BatchPlan:
        """The plan without the samples that are known to be damaged.

        Raises:
            CorruptImageError: no sample is left.
            StorageError: the file is shorter than when it was opened.
        """
        if (revision := self._dataset.revision()) != self._revision:
            logger.warning("%s was written to; checking its images again", self._dataset.path)
            self._checked = np.zeros_like(self._checked)  # a new array: jobs under way may still enter the old one
            self._revision = revision
        return self._without_damaged(plan)

    def must_check(self, job: ReadJob) -> tuple[ReadJob, NDArray[np.bool_]]:
        """The job with those images marked that were not checked yet, and where ``enter`` is to note what was."""
        return replace(job, unchecked=~self._checked[job.levels, job.indices]), self._checked

    @staticmethod
    def enter(job: ReadJob, checked: NDArray[np.bool_]) -> None:
        """Note which images of a job a decoder has found sound."""
        sound = ~job.unchecked
        checked[job.levels[sound], job.indices[sound]] = True

    def report(self, error: CorruptImageError) -> None:
        """Quarantine the sample of an error, or raise the error where the policy or the budget says so."""
        if len(self._damaged) >= self._budget:
            raise error
        self._damaged[error.index] = str(error)
        logger.warning("Quarantined sample %d (%d so far): %s", error.index, len(self._damaged), error)

    def _without_damaged(self, plan: BatchPlan) -> BatchPlan:
        if not self._damaged:
            return plan
        sound = ~np.isin(plan.indices, list(self._damaged))
        if sound.all():
            return plan
        rows = np.flatnonzero(sound)
        if self._training:
            if not len(rows):
                index = int(plan.indices[0])
                raise CorruptImageError(f"Every sample of a batch is damaged. {self._damaged[index]}", index=index)
            # The next sound row, wrapping around at the end of the batch.
            rows = rows[np.searchsorted(rows, np.arange(len(plan))) % len(rows)]
        return plan.take(rows)
