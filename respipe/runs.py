"""A run on disk, written and read here alone: ``checkpoint.pt``, and ``log.jsonl`` with one JSON object a line.

Shares are in 0..1, times in seconds; ``seconds`` is the training time of an epoch, ``elapsed`` that of the run with
evaluation. ``calibrated`` has the form of ``eval``; the last epoch has it where the recipe asks for it. Steps of many
sizes count as one of ``32+24+16`` px, their images once, and ``ensemble`` is what each size weighs in the teacher of
all. A resumed run may write an epoch again: the later line counts. ::

    {"event": "start", "recipe": {...}, "schedule": "TRD(...)", "world_size": 1, "device": "cpu", "backend": "ffcv",
     "num_samples": 50000, "steps_per_epoch": 390, "num_steps": 63960, "lr_scale": 1.0, "macs": {"32": 9e7, "16": 2e7}}
    {"event": "resume", "epoch": 3, "step": 0}
    {"event": "epoch", "epoch": 0, "seconds": 9.1, "elapsed": 9.9, "train_loss": 2.1, "lr": 0.1,
     "sizes": {"32": {"steps": 390, "images": 49920, "seconds": 9.1, "wait_seconds": 0.1, "images_per_second": 5486}},
     "eval": {"32": {"top1": 0.3, "top5": 0.8, "loss": 1.9}}, "calibrated": {...}}
    {"event": "end", "elapsed": 99.0, "top1": {"32": {"best": 0.9, "last": 0.9}}}
"""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

logger = logging.getLogger(__name__)

CHECKPOINT_NAME, LOG_NAME = "checkpoint.pt", "log.jsonl"
VERSION = 2

Event = Mapping[str, Any]
"""One line of ``log.jsonl``."""

Sizes = tuple[int, ...]
"""The sides in pixels that a step shows its images at, largest first; usually one."""


def save_checkpoint(directory: Path, content: Mapping[str, Any]) -> None:
    """Write a run's checkpoint in one step: a kill leaves the old file or the new one, never half of one."""
    import torch

    path = directory / CHECKPOINT_NAME
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"version": VERSION, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(directory: Path, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read a run's checkpoint onto the CPU; None where there is none.

    Args:
        directory: folder of the run.
        recipe: recipe that the run is to continue with, without what may change.

    Raises:
        ValueError: the checkpoint cannot be read, or was made with another recipe.
    """
    import torch

    path = directory / CHECKPOINT_NAME
    if not path.is_file():
        return None
    try:
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"`--output` must hold a sound checkpoint; {path} cannot be read: {error}") from error
    content = cast(dict[str, Any], loaded) if isinstance(loaded, dict) else {}
    if content.get("version") != VERSION:
        raise ValueError(
            f"`--output` must hold a checkpoint of version {VERSION}; {path} has {content.get('version')}. "
            "Continue with the version of the code that made it, or start anew in another folder."
        )
    saved, given = _flat(content["recipe"]), _flat(recipe)
    differing = sorted(key for key in saved.keys() | given.keys() if saved.get(key) != given.get(key))
    if differing:
        sides = "\n".join(f"  {key}: saved {saved.get(key)!r}, now {given.get(key)!r}" for key in differing)
        raise ValueError(
            f"`RECIPE` must be the one that {path} was made with; they differ in\n{sides}\n"
            "Restore these values, or start anew in another folder."
        )
    return content


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = dict[str, Any]()
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(cast(Mapping[str, Any], value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


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


def totals_by_sizes(epochs: Sequence[Event]) -> dict[Sizes, SizeTotals]:
    """Sum the epochs' measurements by the sizes of a step, largest first."""
    totals = dict[Sizes, SizeTotals]()
    for epoch in epochs:
        for label, measured in epoch["sizes"].items():
            total = totals.setdefault(sizes_of(label), SizeTotals())
            total.steps += measured["steps"]
            total.images += measured["images"]
            total.seconds += measured["seconds"]
            total.wait_seconds += measured["wait_seconds"]
    return dict(sorted(totals.items(), reverse=True))


def total_macs(epochs: Sequence[Event], macs: Mapping[str, float]) -> float:
    """Multiply-accumulate operations of all forward passes.

    Args:
        epochs: epochs of a run.
        macs: operations for one image by side in pixels, as the log's first line has them.
    """
    totals = totals_by_sizes(epochs).items()
    return sum(total.images * sum(macs[str(size)] for size in sizes) for sizes, total in totals)


def best_and_last(epochs: Sequence[Event]) -> dict[int, tuple[float, float]]:
    """Highest and last top-1 at each evaluation size, largest size first."""
    scores = dict[int, list[float]]()
    for epoch in epochs:
        for size, result in epoch["eval"].items():
            scores.setdefault(int(size), []).append(result["top1"])
    return {size: (max(values), values[-1]) for size, values in sorted(scores.items(), reverse=True)}


def epoch_line(epoch: Event, num_epochs: int) -> str:
    """One epoch on one line."""
    parts = [f"epoch {epoch['epoch'] + 1}/{num_epochs}", f"loss {epoch['train_loss']:.3f}"]
    for sizes, total in totals_by_sizes([epoch]).items():
        parts.append(f"{label_of(sizes)} px: {total.images_per_second:.0f} images/s, waiting {total.wait_share:.0%}")
    parts += [f"top-1 {result['top1']:.1%} at {size} px" for size, result in epoch["eval"].items()]
    return "  ".join(parts)


class LogWriter:
    """Writes ``log.jsonl``, one JSON object a line, and TensorBoard's files beside it where it is installed.

    Args:
        directory: folder of the run; lines are appended to a log that is there.
        tensorboard: True writes TensorBoard's files too.
    """

    def __init__(self, directory: Path, *, tensorboard: bool) -> None:
        path = directory / LOG_NAME
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
        logger.warning("TensorBoard is not installed: log.jsonl only. Install it with: pip install 'respipe[train]'")
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


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """What one epoch of training came to.

    Args:
        epoch: its number, from 0.
        elapsed: seconds since the run began, at the end of the epoch and its evaluation.
        train_loss: mean over the epoch.
        images: images trained on at each side in pixels.
        top1: share of correct answers in 0..1 at each evaluation side in pixels; empty without evaluation.
    """

    epoch: int
    elapsed: float
    train_loss: float
    images: Mapping[int, int]
    top1: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class RunLog:
    """A run: its name, and its epochs in order without repetition."""

    name: str
    epochs: tuple[EpochRecord, ...]


def read_run(run_dir: str | os.PathLike[str]) -> RunLog:
    """Read a run's log.

    A line that is not JSON, as a killed run leaves behind, is skipped with a warning. Where a resumed run logged an
    epoch again, the later record counts.

    Args:
        run_dir: folder with a ``log.jsonl``.

    Raises:
        OSError: the log cannot be read.
        ValueError: an epoch lacks a field, or the log holds no epoch.
    """
    records = [_epoch_record(event, f"{Path(run_dir) / LOG_NAME}") for event in epochs_of(read_events(run_dir))]
    if not records:
        raise ValueError(
            f"`run_dir` must hold the log of at least one epoch; got {Path(run_dir) / LOG_NAME}. Let an epoch finish "
            "first."
        )
    return RunLog(name=Path(run_dir).resolve().name, epochs=tuple(records))


def read_events(run_dir: str | os.PathLike[str]) -> list[Event]:
    """All events of a run's log, in order. A line that is not JSON, as after a kill, is skipped with a warning.

    Raises:
        OSError: the log cannot be read.
    """
    path = Path(run_dir) / LOG_NAME
    with path.open(encoding="utf-8", errors="replace") as lines:
        return list(_events(lines, path))


def epochs_of(events: Sequence[Event]) -> list[Event]:
    """The epochs of a run, in order and without repetition.

    Raises:
        ValueError: an epoch has no number.
    """
    epochs = [event for event in events if event.get("event") == "epoch"]
    if not all(isinstance(event.get("epoch"), int) for event in epochs):
        raise ValueError("an epoch of the log must have the field 'epoch'; it is missing. Train it again.")
    latest = {event["epoch"]: event for event in epochs}
    return [latest[number] for number in sorted(latest)]


def _events(lines: Iterator[str], path: Path) -> Iterator[Event]:
    for number, line in enumerate(lines, start=1):
        try:
            event: object = json.loads(line)
        except json.JSONDecodeError:
            logger.warning("%s:%d is not a whole line of JSON, as after a killed run; skipped.", path, number)
            continue
        if isinstance(event, dict):
            yield cast(Event, event)


def _images(sizes: Mapping[str, Mapping[str, Any]]) -> Mapping[int, int]:
    """Images by side; those of steps of several sizes, ``32+24``, count at each of them."""
    images: Counter[int] = Counter()
    for label, measured in sizes.items():
        images.update({int(size): int(measured["images"]) for size in label.split("+")})
    return images


def _epoch_record(event: Mapping[str, Any], place: str) -> EpochRecord:
    try:
        sizes = cast(Mapping[str, Mapping[str, Any]], event["sizes"])
        evaluations = cast(Mapping[str, Mapping[str, Any]], event.get("eval") or {})
        return EpochRecord(
            epoch=int(event["epoch"]),
            elapsed=float(event["elapsed"]),
            train_loss=float(event["train_loss"]),
            images=_images(sizes),
            top1={int(size): float(scores["top1"]) for size, scores in evaluations.items()},
        )
    except KeyError as error:
        raise ValueError(f"{place}: an epoch must have the field {error}; it is missing.") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{place}: a field of the epoch has the wrong type: {error}.") from error
