"""Pictures of models across test sizes: accuracy by size and by cost, calibrated or not, and what is pooled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from respipe.evaluation.activations import Activations
from respipe.plots.style import GREY, PALETTE, label_ends, new_figure, save, size_shades, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
    runs = _checked("results", results, "accuracy", ("size", *_FIELDS), "`pipelines.compare --json`")
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


def plot_evaluation(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw top-1 accuracy against test size and against multiply-adds, a line for each way of evaluating.

    Args:
        report: ``{"train_size": px or None, "runs": [run, ...]}``; each run has a ``name`` and ``results``, a list of
            rows with ``size`` (px), ``top1`` (0..1) and ``macs`` (per image, or None). The size that the model was
            trained at is marked.
        path: where the picture goes; the suffix decides the format.

    Raises:
        ValueError: there is no run, or one lacks a field.
        MissingBackendError: matplotlib is not installed.
    """
    save(evaluation_figure(report), path)


@styled
def evaluation_figure(report: Mapping[str, Any]) -> Figure:
    """The figure that :func:`plot_evaluation` writes. Without the second panel where no cost is known."""
    source = "`respipe evaluate --json` or `python -m pipelines.fixres --json`"
    runs = _checked("report", report, "results", ("size", "top1", "macs"), source)
    train_size = report.get("train_size")
    costs = all(row["macs"] for run in runs for row in run["results"])
    figure = new_figure(10.5 if costs else 6.5, 4.0)
    panels = figure.subplots(1, 2, sharey=True, squeeze=False)[0] if costs else [figure.subplots()]
    _draw(panels[0], runs, "size", 1, train_size)
    panels[0].set_title("Top-1 accuracy (%) by test size")
    panels[0].set_xlabel("image side in evaluation (px)")
    if costs:
        unit, name = _unit(max(row["macs"] for run in runs for row in run["results"]))
        _draw(panels[1], runs, "macs", unit, train_size)
        panels[1].set_title("Top-1 accuracy (%) by cost")
        panels[1].set_xlabel(f"{name} multiply-adds per image")
    if len(runs) > 1:
        # Lines of the same name in both panels: one set of labels.
        ends = [
            (100 * _ordered(run)[-1]["top1"], str(run["name"]), PALETTE[place % len(PALETTE)])
            for place, run in enumerate(runs)
        ]
        label_ends(panels[-1], ends)
    return figure


def _draw(axes: Axes, runs: Sequence[Run], field: str, unit: float, train_size: int | None) -> None:
    for place, run in enumerate(runs):
        rows, colour = _ordered(run), PALETTE[place % len(PALETTE)]
        axes.plot(
            [row[field] / unit for row in rows],
            [100 * row["top1"] for row in rows],
            color=colour, marker="o", markersize=4, label=str(run["name"]),
        )  # fmt: skip
    trained = [row[field] / unit for row in _ordered(runs[0]) if row["size"] == train_size]
    at = [float(train_size)] if field == "size" and train_size is not None else trained
    for place in at:
        axes.axvline(place, color=GREY, linewidth=1, linestyle=(0, (4, 2)), zorder=0)
        axes.annotate(
            f"trained at {train_size} px", xy=(place, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
            textcoords="offset points", color=GREY, rotation=90, va="bottom",
        )  # fmt: skip


def _ordered(run: Run) -> list[Mapping[str, Any]]:
    return sorted(run["results"], key=lambda row: row["size"])


def _unit(largest: float) -> tuple[float, str]:
    return (1e9, "billion") if largest >= 1e9 else (1e6, "million")


def plot_activations(
    activations: Sequence[Activations], path: str | os.PathLike[str], *, train_size: int | None = None
) -> None:
    """Draw the cumulative distribution of the pooled activations at each size, and their share of zeros.

    Args:
        activations: as :func:`respipe.evaluation.measure_activations` gives them, each size once.
        path: where the picture goes; the suffix decides the format.
        train_size: side in pixels that the model was trained at, whose line is set apart.

    Raises:
        ValueError: there are none.
        MissingBackendError: matplotlib is not installed.
    """
    save(activations_figure(activations, train_size=train_size), path)


@styled
def activations_figure(activations: Sequence[Activations], *, train_size: int | None = None) -> Figure:
    """The figure that :func:`plot_activations` writes."""
    if not activations:
        raise ValueError("`activations` must be of at least one size; got none.")
    ordered = sorted(activations, key=lambda one: one.size)
    figure = new_figure(10.5, 4.0)
    distribution, zeros = figure.subplots(1, 2, width_ratios=(2, 1))
    shades = size_shades(PALETTE[0], [one.size for one in ordered])
    for one in ordered:
        trained = one.size == train_size
        colour = PALETTE[1] if trained else shades[one.size]
        shares = np.linspace(0, 100, len(one.quantiles))
        distribution.plot(
            one.quantiles, shares, color=colour, label=f"{one.size} px{', trained at' if trained else ''}"
        )
    # The largest values of all are few, and would squeeze the rest.
    low = min(one.quantiles[0] for one in ordered)
    distribution.set_xlim(low, max(one.quantiles[-5] for one in ordered))
    distribution.set_title("Activations up to this value after the global pooling (%)")
    distribution.set_xlabel("activation")
    distribution.legend(frameon=False, loc="lower right")
    sizes = [one.size for one in ordered]
    values = [100 * one.zeros for one in ordered]
    zeros.plot(sizes, values, color=PALETTE[0], marker="o", markersize=4)
    zeros.set_ylim(bottom=0)
    zeros.set_title("Activations that are zero (%)")
    zeros.set_xlabel("image side in evaluation (px)")
    if train_size is not None:
        zeros.axvline(train_size, color=GREY, linewidth=1, linestyle=(0, (4, 2)), zorder=0)
    label_ends(zeros, [(values[-1], f"{values[-1]:.2g}%", PALETTE[0])])
    return figure


def _checked(
    argument: str, report: Mapping[str, Any], field: str, columns: Sequence[str], source: str
) -> Sequence[Run]:
    """The runs of a report, each with a name and rows of these columns in a field."""
    runs = cast(object, report.get("runs"))
    if not isinstance(runs, list) or not runs:
        raise ValueError(f"`{argument}` must have at least one run; got none. Pass what {source} wrote.")
    for number, run in enumerate(cast(list[Run], runs)):
        rows = cast(Sequence[Mapping[str, Any]], run.get(field, ()))
        if "name" not in run or not rows or any(not row.keys() >= {*columns} for row in rows):
            wanted = f"{', '.join(columns[:-1])} and {columns[-1]}"
            raise ValueError(
                f"`{argument}.runs[{number}]` must have a name and {field} with {wanted}; got {dict(run)}."
            )
    return cast(list[Run], runs)
