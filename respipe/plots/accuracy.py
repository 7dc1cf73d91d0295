"""A picture of accuracy against the size of the evaluation, before and after BatchNorm was calibrated for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from respipe.plots.style import PALETTE, label_ends, new_figure, save, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = Mapping[str, Any]

_FIELDS = ("before", "after")


def plot_accuracy(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw top-1 accuracy against evaluation size, one colour per run: dashed before, solid after calibration.

    Args:
        results: ``{"runs": [run, ...]}``; each run has a ``name`` and ``accuracy``, a list of rows with ``size`` (px)
            and top-1 ``before`` and ``after`` (0..1).
        path: where the picture goes; the suffix decides the format.

    Raises:
        ValueError: there is no run, or one lacks a field.
        MissingBackendError: matplotlib is not installed.
    """
    save(accuracy_figure(results), path)


@styled
def accuracy_figure(results: Mapping[str, Any]) -> Figure:
    """The figure that :func:`plot_accuracy` writes."""
    runs = _checked(results)
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    axes.set_title("Top-1 accuracy (%): dashed before, solid after BatchNorm was calibrated at the size")
    ends: list[tuple[float, str, str]] = []
    for place, run in enumerate(runs):
        colour = PALETTE[place % len(PALETTE)]
        rows = sorted(run["accuracy"], key=lambda row: row["size"])
        sizes = [row["size"] for row in rows]
        for field, dashes in zip(_FIELDS, ((0, (4, 1.5)), "-"), strict=True):
            values = [100 * row[field] for row in rows]
            axes.plot(sizes, values, color=colour, linestyle=dashes, marker="o", markersize=4)
        ends.append((100 * rows[-1]["after"], str(run["name"]), colour))
    label_ends(axes, ends)
    axes.set_xticks(sorted({row["size"] for run in runs for row in run["accuracy"]}))
    axes.set_xlabel("image side in evaluation (px)")
    return figure


def _checked(results: Mapping[str, Any]) -> Sequence[Run]:
    runs = cast(object, results.get("runs"))
    if not isinstance(runs, list) or not runs:
        raise ValueError("`results` must have at least one run; got none. Pass what `pipelines.compare --json` wrote.")
    for number, run in enumerate(cast(list[Run], runs)):
        rows = cast(Sequence[Mapping[str, float]], run.get("accuracy", ()))
        if "name" not in run or not rows or any(not row.keys() >= {"size", *_FIELDS} for row in rows):
            raise ValueError(
                f"`results.runs[{number}]` must have a name and accuracy with size, before and after; got {dict(run)}."
            )
    return cast(list[Run], runs)
