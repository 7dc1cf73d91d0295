"""A finished run in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pipelines.metrics import Sizes, SizeTotals, label_of, sizes_of

Epoch = Mapping[str, Any]
"""One ``epoch`` line of ``log.jsonl``."""


def totals_by_sizes(epochs: Sequence[Epoch]) -> dict[Sizes, SizeTotals]:
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


def total_macs(epochs: Sequence[Epoch], macs: Mapping[str, float]) -> float:
    """Multiply-accumulate operations of all forward passes.

    Args:
        epochs: of a run.
        macs: those of one image by side in pixels, as the log's first line has them.
    """
    totals = totals_by_sizes(epochs).items()
    return sum(total.images * sum(macs[str(size)] for size in sizes) for sizes, total in totals)


def best_and_last(epochs: Sequence[Epoch]) -> dict[int, tuple[float, float]]:
    """Highest and last top-1 at each evaluation size, largest size first."""
    scores = dict[int, list[float]]()
    for epoch in epochs:
        for size, result in epoch["eval"].items():
            scores.setdefault(int(size), []).append(result["top1"])
    return {size: (max(values), values[-1]) for size, values in sorted(scores.items(), reverse=True)}


def epoch_line(epoch: Epoch, num_epochs: int) -> str:
    """One epoch on one line."""
    parts = [f"epoch {epoch['epoch'] + 1}/{num_epochs}", f"loss {epoch['train_loss']:.3f}"]
    for sizes, total in totals_by_sizes([epoch]).items():
        parts.append(f"{label_of(sizes)} px: {total.images_per_second:.0f} images/s, waiting {total.wait_share:.0%}")
    parts += [f"top-1 {result['top1']:.1%} at {size} px" for size, result in epoch["eval"].items()]
    return "  ".join(parts)


def speed_table(epochs: Sequence[Epoch]) -> Table:
    """Throughput and waiting time by training size."""
    table = Table("trained at", "steps", "images", "time (s)", "images/s", "waiting for data", title="Speed")
    for column in table.columns:
        column.justify = "right"
    for sizes, total in totals_by_sizes(epochs).items():
        table.add_row(
            f"{label_of(sizes)} px", f"{total.steps:,}", f"{total.images:,}", f"{total.seconds:.1f}",
            f"{total.images_per_second:.0f}", f"{total.wait_share:.1%}",
        )  # fmt: skip
    return table


def accuracy_table(epochs: Sequence[Epoch]) -> Table:
    """Best and last accuracy by evaluation size, and that with BatchNorm calibrated where it was measured."""
    calibrated: Epoch = epochs[-1].get("calibrated", {}) if epochs else {}
    more = ("last, BatchNorm calibrated",) if calibrated else ()
    table = Table("evaluated at", "last top-1", "best top-1", *more, title="Accuracy")
    for column in table.columns:
        column.justify = "right"
    for size, (best, last) in best_and_last(epochs).items():
        cells = [f"{calibrated[str(size)]['top1']:.2%}"] if calibrated else []
        table.add_row(f"{size} px", f"{last:.2%}", f"{best:.2%}", *cells)
    return table
