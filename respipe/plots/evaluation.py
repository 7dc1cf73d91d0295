"""A picture of a model across test sizes: accuracy against the size, and against what it costs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from respipe.plots.style import GREY, PALETTE, label_ends, new_figure, save, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = Mapping[str, Any]


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
    runs, train_size = _checked(report), report.get("train_size")
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


def _checked(report: Mapping[str, Any]) -> Sequence[Run]:
    runs = cast(object, report.get("runs"))
    if not isinstance(runs, list) or not runs:
        raise ValueError(
            "`report` must have at least one run; got none. Pass what `respipe evaluate --json` or "
            "`python -m pipelines.fixres --json` wrote."
        )
    for number, run in enumerate(cast(list[Run], runs)):
        rows = cast(Sequence[Mapping[str, Any]], run.get("results", ()))
        if "name" not in run or not rows or any(not row.keys() >= {"size", "top1", "macs"} for row in rows):
            raise ValueError(
                f"`report.runs[{number}]` must have a name and results with size, top1 and macs; got {dict(run)}."
            )
    return cast(list[Run], runs)
