"""Reading what a training run wrote down: ``log.jsonl``, one JSON object per line."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

logger = logging.getLogger(__name__)

LOG_NAME = "log.jsonl"


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
    path = Path(run_dir) / LOG_NAME
    records: dict[int, EpochRecord] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            event = _parse(line, f"{path}:{number}")
            if event.get("event") == "epoch":
                record = _epoch_record(event, f"{path}:{number}")
                records[record.epoch] = record
    if not records:
        raise ValueError(f"`run_dir` must hold the log of at least one epoch; got {path}. Let an epoch finish first.")
    epochs = tuple(records[epoch] for epoch in sorted(records))
    return RunLog(name=Path(run_dir).resolve().name, epochs=epochs)


def _images(sizes: Mapping[str, Mapping[str, Any]]) -> Mapping[int, int]:
    """Images by side; those of steps of several sizes, ``32+24``, count at each of them."""
    images: Counter[int] = Counter()
    for label, measured in sizes.items():
        images.update({int(size): int(measured["images"]) for size in label.split("+")})
    return images


def _parse(line: str, place: str) -> Mapping[str, Any]:
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        logger.warning("%s is not a whole line of JSON, as after a killed run; skipped.", place)
        return {}
    return cast(Mapping[str, Any], event) if isinstance(event, dict) else {}


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
