"""A picture of training runs side by side: loss and accuracy by epoch and by wall time, and the sizes trained at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from respipe.plots.style import PALETTE, label_ends, new_figure, save, size_shades, styled
from respipe.runs import RunLog, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Edge = NDArray[np.float64]
End = tuple[float, str, str]

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.5)))
_UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def plot_runs(run_dirs: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str]) -> None:
    """Draw runs side by side, against the epoch on the left and against wall time on the right.

    From top to bottom: training loss, top-1 accuracy (the largest evaluation size solid, others dashed), and one lane
    per run with the sizes it trained at.

    Args:
        run_dirs: folders with a ``log.jsonl`` each.
        path: where the picture goes; the suffix decides the format.

    Raises:
        OSError: a log cannot be read.
        ValueError: a log holds no epoch or an incomplete one, or there is no run.
        MissingBackendError: matplotlib is not installed.
    """
    save(runs_figure([read_run(run_dir) for run_dir in run_dirs]), path)


@styled
def runs_figure(runs: Sequence[RunLog]) -> Figure:
    """The figure that :func:`plot_runs` writes: axes in rows loss, accuracy, sizes; in columns epoch, wall time."""
    if not runs:
        raise ValueError("`run_dirs` must name at least one run; got none. Pass a folder with a log.jsonl.")
    seconds, unit = _time_unit(max(run.epochs[-1].elapsed for run in runs))
    figure = new_figure(11.0, 6.2 + 0.3 * len(runs))
    grid = figure.subplots(3, 2, sharex="col", sharey="row", height_ratios=(4, 4, 0.5 + 0.4 * len(runs)))
    for column, (loss_axes, accuracy_axes, size_axes) in enumerate(grid.T):
        right = 0.0
        loss_ends: list[End] = []
        accuracy_ends: list[End] = []
        for place, run in enumerate(runs):
            colour = _colour(place)
            edges = _edges(run) if column == 0 else _times(run) / seconds
            right = max(right, float(edges[1, -1]))
            loss_ends.append(_draw_loss(loss_axes, run, edges[1], colour))
            accuracy_ends += _draw_accuracy(accuracy_axes, run, edges[1], colour)
            _draw_sizes(size_axes, run, edges, colour, lane=place)
        size_axes.set_xlim(0, right)
        size_axes.locator_params(axis="x", integer=column == 0)
        size_axes.set_xlabel("epoch" if column == 0 else f"wall time ({unit})")
        if column == 1:
            label_ends(loss_axes, loss_ends)
            label_ends(accuracy_axes, accuracy_ends)
            _label_lanes(size_axes, runs)
    _finish(grid[:, 0], runs)
    figure.align_ylabels(grid[:2, 0])
    return figure


def _draw_loss(axes: Axes, run: RunLog, ends: Edge, colour: str) -> End:
    losses = [record.train_loss for record in run.epochs]
    axes.plot(ends, losses, color=colour, **_markers(run))
    return losses[-1], f"{_short(run.name)}  {losses[-1]:.3g}", colour


def _draw_accuracy(axes: Axes, run: RunLog, ends: Edge, colour: str) -> list[End]:
    labels: list[End] = []
    sizes = sorted({size for record in run.epochs for size in record.top1}, reverse=True)
    for place, size in enumerate(sizes):
        points = [
            (end, 100 * record.top1[size]) for end, record in zip(ends, run.epochs, strict=True) if size in record.top1
        ]
        axes.plot(
            [end for end, _ in points],
            [top1 for _, top1 in points],
            color=colour,
            linestyle=_DASHES[min(place, len(_DASHES) - 1)],
            linewidth=1.8 if place == 0 else 1.2,
            **_markers(run),
        )
        labels.append((points[-1][1], f"{_short(run.name)}  {points[-1][1]:.1f}% at {size} px", colour))
    return labels


def _draw_sizes(axes: Axes, run: RunLog, edges: NDArray[np.float64], colour: str, *, lane: int) -> None:
    """A lane of height 0.7 that each epoch divides from bottom to top by its shares of images at each size."""
    shades = size_shades(colour, [size for record in run.epochs for size in record.images])
    bottoms = np.full(len(run.epochs), lane - 0.35)
    for size, colour_of_size in shades.items():
        totals = np.array([sum(record.images.values()) for record in run.epochs])
        heights = 0.7 * np.array([record.images.get(size, 0) for record in run.epochs]) / np.maximum(totals, 1)
        axes.bar(edges[0], heights, width=edges[1] - edges[0], bottom=bottoms, align="edge", color=colour_of_size)
        bottoms += heights


def _label_lanes(axes: Axes, runs: Sequence[RunLog]) -> None:
    for lane, run in enumerate(runs):
        sizes = sorted({size for record in run.epochs for size in record.images}, reverse=True)
        axes.annotate(
            f"{sizes[0]} px" if len(sizes) == 1 else f"{sizes[0]} px dark to {sizes[-1]} px light",
            xy=(1.0, lane),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            color=_colour(lane),
            va="center",
            annotation_clip=False,
        )


def _finish(axes: Sequence[Axes], runs: Sequence[RunLog]) -> None:
    """What the axes of the left column share with their row."""
    loss_axes, accuracy_axes, size_axes = axes
    loss_axes.set_ylabel("training loss")
    accuracy_axes.set_ylabel("top-1 accuracy (%)")
    size_axes.set_ylim(len(runs) - 0.5, -0.5)
    size_axes.set_yticks(range(len(runs)), [_short(run.name) for run in runs])
    for lane, label in enumerate(size_axes.get_yticklabels()):
        label.set_color(_colour(lane))
    size_axes.set_title("sizes trained at")
    size_axes.grid(visible=False)


def _markers(run: RunLog) -> dict[str, Any]:
    """Dots on short lines, without which a run of one epoch could not be seen."""
    return {"marker": "o", "markersize": 3.5, "clip_on": False} if len(run.epochs) <= 12 else {}


def _edges(run: RunLog) -> NDArray[np.float64]:
    """(2, E): where each epoch begins and ends, in epochs."""
    starts = np.array([record.epoch for record in run.epochs], dtype=np.float64)
    return np.stack([starts, starts + 1])


def _times(run: RunLog) -> NDArray[np.float64]:
    """(2, E): when each epoch began and ended, in seconds since the run began."""
    ends = np.array([record.elapsed for record in run.epochs])
    return np.stack([np.concatenate([[0.0], ends[:-1]]), ends])


def _time_unit(seconds: float) -> tuple[float, str]:
    return next(((length, name) for length, name in _UNITS if seconds >= 2 * length), _UNITS[-1])


def _colour(place: int) -> str:
    return PALETTE[place % len(PALETTE)]


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:21]}..."
