"""Checks for test suites that use loaders: that a run goes on after any step as if it had never stopped."""

from __future__ import annotations

import hashlib
import pickle
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import torch

from respipe.checks import check_int
from respipe.conversion.workers import map_samples
from respipe.errors import WorkerLostError
from respipe.loading.loader import Loader
from respipe.planning.batch import BatchPlan

MakeLoader = Callable[[], Loader]


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """All of a batch that must come again, its contents as digests.

    Args:
        epoch, step: its place, both from 0.
        layout: shape and type of the images of each size, and of the labels.
        images: one digest per image of each size.
        labels: one digest per row.
        samples: numbers of the samples, where the loader yields its plans.
        state: of the loader, once it has yielded the batch.
    """

    epoch: int
    step: int
    layout: tuple[tuple[tuple[int, ...], str], ...]
    images: tuple[tuple[bytes, ...], ...]
    labels: tuple[bytes, ...]
    samples: tuple[int, ...] | None
    state: Mapping[str, Any]


def assert_resumes_exactly(
    make_loader: MakeLoader,
    *,
    num_epochs: int = 2,
    steps: Collection[int] | None = None,
    tail: int | None = None,
    timeout: float = 300.0,
) -> None:
    """Check that a loader resumes exactly: the same images, labels, sizes and states, bit for bit.

    Runs through the epochs once and takes the state before the first batch and after every batch. A fresh process then
    builds a loader for each state, loads it, and compares what comes with what came here. With T batches in all that
    are about T * T / 2 batches; ``steps`` and ``tail`` make it cheaper.

    ::

        def make_loader():                       # in a module, not in the script that is run
            return respipe.Loader("val.beton", MixSize("S28"), batch_size=64)

        def test_resume():
            respipe.testing.assert_resumes_exactly(make_loader, steps=(1, 100, 900), tail=20)

    Args:
        make_loader: builds a loader of the run, the same each time. It is pickled: a function of a module that can be
            imported, or a ``functools.partial`` of one. Where ``torch.distributed`` is in use it must pass ``rank`` and
            ``world_size``, which the fresh process does not know.
        num_epochs: epochs to run through, from the loader's own on.
        steps: numbers of batches after which to resume, counted from the start through all epochs; 0 is the start.
            Default: all.
        tail: batches to compare after each resume. Default: all that are left.
        timeout: seconds that the fresh process may take for one resume.

    Raises:
        AssertionError: something differs; says where the loader resumed, and at which step, for which image or sample,
            what is not the same. Or the fresh process failed.
        TypeError: ``make_loader`` cannot be pickled, or makes something else.
        ValueError: ``steps`` names a step that the run does not have.
    """
    num_epochs = check_int("num_epochs", num_epochs, least=1)
    tail = check_int("tail", tail, least=1) if tail is not None else None
    _check_importable(make_loader)
    loader = make_loader()
    if not isinstance(loader, Loader):
        raise TypeError(f"`make_loader` must return a respipe.Loader; got {loader!r}.")
    with loader:
        end, states = loader.epoch + num_epochs, [loader.state_dict()]
        expected = list(_batches(loader, end))
    states += [batch.state for batch in expected]
    chosen = range(len(states)) if steps is None else sorted(set(steps))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < len(states):
        raise ValueError(f"`steps` must lie in 0..{len(states) - 1}, the batches of the run; got {list(chosen)}.")
    resume = _Resume(make_loader=make_loader, end=end, states=states, expected=expected, tail=tail)
    try:
        for _, failure in map_samples(resume, chosen, num_workers=1, stall_timeout=timeout):
            assert failure is None, failure
    except WorkerLostError as error:
        raise AssertionError(
            f"The process that resumed has ended, or one resume took longer than {timeout:g} s; what it had to say is "
            "on standard error."
        ) from error


def _check_importable(make_loader: MakeLoader) -> None:
    remedy = "Define it at the top level of a module that can be imported, or use functools.partial on such a function."
    try:
        content = pickle.dumps(make_loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"`make_loader` must be a function that can be pickled: {error}. {remedy}") from error
    if b"__main__" in content:
        raise TypeError(f"`make_loader` must not come from the script that is run; got {make_loader!r}. {remedy}")


@dataclass(frozen=True, kw_only=True)
class _Resume:
    """Called in the fresh process with the number of a state; returns what went wrong, or None."""

    make_loader: MakeLoader
    end: int
    states: Sequence[Mapping[str, Any]]
    expected: Sequence[_Batch]
    tail: int | None

    def __call__(self, number: int) -> str | None:
        state = self.states[number]
        place = f"Resumed at step {state['step']} of epoch {state['epoch']}"
        stop = len(self.expected) if self.tail is None else min(number + self.tail, len(self.expected))
        try:
            with closing(self.make_loader()) as loader:
                loader.load_state_dict(state)
                found = _batches(loader, self.end)
                for wanted in self.expected[number:stop]:
                    batch = next(found, None)
                    difference = _difference(batch, wanted) if batch is not None else "there is none"
                    if difference:
                        return f"{place}: the batch at step {wanted.step} of epoch {wanted.epoch} differs: {difference}"
                if stop == len(self.expected) and (batch := next(found, None)) is not None:
                    return f"{place}: there is one batch too many, at step {batch.step} of epoch {batch.epoch}"
        except Exception:  # noqa: BLE001 - told by the process that waits
            return f"{place}, the loader failed:\n{traceback.format_exc()}"
        return None


def _batches(loader: Loader, end: int) -> Iterator[_Batch]:
    """What is left of the epochs before ``end``."""
    while loader.epoch < end:
        for images, labels, *rest in loader:
            assert loader.last is not None
            epoch, step = loader.last
            sizes = cast(tuple[torch.Tensor, ...], images if isinstance(images, tuple) else (images,))
            plan = rest[0] if rest and isinstance(rest[0], BatchPlan) else None
            yield _Batch(
                epoch=epoch,
                step=step,
                layout=tuple((tuple(tensor.shape), str(tensor.dtype)) for tensor in (*sizes, labels)),
                images=tuple(_digests(tensor) for tensor in sizes),
                labels=_digests(labels),
                samples=tuple(plan.indices.tolist()) if plan is not None else None,
                state=loader.state_dict(),
            )


def _digests(tensor: torch.Tensor) -> tuple[bytes, ...]:
    """One digest per row of the first dimension."""
    rows = tensor.detach().cpu().contiguous()
    content = [row.reshape(-1).view(torch.uint8).numpy().tobytes() for row in rows]
    return tuple(hashlib.blake2b(row, digest_size=16).digest() for row in content)


def _difference(found: _Batch, wanted: _Batch) -> str | None:
    """The first difference between two batches, in words."""
    if (found.epoch, found.step) != (wanted.epoch, wanted.step):
        return f"step {found.step} of epoch {found.epoch} came"
    if found.layout != wanted.layout:
        return f"images and labels are {found.layout} instead of {wanted.layout}"
    if found.samples != wanted.samples:
        return f"it holds the samples {found.samples} instead of {wanted.samples}"
    for name, rows, others in (
        ("the label", found.labels, wanted.labels),
        *zip(_names(wanted), found.images, wanted.images, strict=True),
    ):
        differing = [row for row, (one, other) in enumerate(zip(rows, others, strict=True)) if one != other]
        if differing:
            row = differing[0]
            sample = f" (sample {wanted.samples[row]})" if wanted.samples is not None else ""
            return f"{name} of image {row}{sample}, and {len(differing) - 1} more of {len(rows)}"
    if found.state != wanted.state:
        return f"afterwards the state is {found.state} instead of {wanted.state}"
    return None


def _names(batch: _Batch) -> list[str]:
    return [f"the pixels at {shape[-1]} px" for shape, _ in batch.layout[:-1]]
