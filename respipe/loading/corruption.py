"""What happens when a stored image turns out to be damaged during training."""

from __future__ import annotations

import logging
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from respipe.backends.base import ReadJob
from respipe.checks import check_choice, check_int
from respipe.errors import CorruptImageError
from respipe.planning.batch import BatchPlan
from respipe.storage.dataset import Dataset

logger = logging.getLogger(__name__)

OnCorrupt = Literal["raise", "quarantine"]


class CorruptionGuard:
    """Knows which stored images were checked, and keeps damaged samples out of the batches.

    Each image is checked the first time it is used, by the thread that decodes it; each time, where its bytes may have
    been fetched again meanwhile.

    With ``"raise"`` the first damaged sample ends the epoch with :class:`CorruptImageError`. With ``"quarantine"`` it
    is left out from then on: in training its place in the batch is taken, label and all, by the next sound sample of
    the batch, so that shapes stay as planned; in evaluation the batch gets shorter, so that no sample counts twice.
    After any change to the file every image is checked once more.

    Args:
        dataset: where the images are.
        on_corrupt: the policy.
        budget: samples that may be quarantined before the error is raised after all.
        keep_length: replace damaged samples rather than drop them.
    """

    def __init__(self, dataset: Dataset, *, on_corrupt: OnCorrupt, budget: int, keep_length: bool) -> None:
        check_choice("on_corrupt", on_corrupt, get_args(OnCorrupt))
        budget = check_int("corrupt_budget", budget, least=0)
        self._dataset = dataset
        self._budget = budget if on_corrupt == "quarantine" else 0
        self._keep_length = keep_length
        self._checked = np.zeros((len(dataset.levels), len(dataset)), np.bool_)
        self._revision = dataset.revision()
        self._is_volatile = dataset.fetched is not None and dataset.fetched.volatile
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
        """The job, in which those images are now marked that were not checked yet, and what ``enter`` notes them in."""
        if self._is_volatile:
            job.unchecked[:] = True
        else:
            np.logical_not(self._checked[job.levels, job.indices], out=job.unchecked)
        return job, self._checked

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
        if self._keep_length:
            if not len(rows):
                index = int(plan.indices[0])
                raise CorruptImageError(f"Every sample of a batch is damaged. {self._damaged[index]}", index=index)
            # The next sound row, wrapping around at the end of the batch.
            rows = rows[np.searchsorted(rows, np.arange(len(plan))) % len(rows)]
        left = plan.take(rows)
        return left if plan.real is None else left.replace(real=plan.real & sound)
