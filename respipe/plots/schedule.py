"""A picture of a schedule: which sizes are used when, and what that saves."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from respipe.cost.usage import Usage, usage
from respipe.plots.style import GREY, PALETTE, label_ends, new_figure, save, shade, styled
from respipe.schedules.step import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOUR = PALETTE[0]


def plot_schedule(
    schedule: Schedule,
    *,
    num_epochs: int,
    path: str | os.PathLike[str],
    num_samples: int,
    batch_size: int,
) -> None:
    """Draw the sizes of every epoch and, below, the cumulative cost beside that of a run at the base size.

    Args:
        schedule: any schedule.
        num_epochs: length of the run, at least 1.
        path: where the picture goes; the suffix decides the format.
        num_samples: samples in the dataset.
        batch_size: global batch size at the schedule's base size.

    Raises:
        ValueError: there is no epoch, the dataset holds less than one batch, or the format is unknown.
        MissingBackendError: matplotlib is not installed.
    """
    save(schedule_figure(schedule, num_epochs=num_epochs, num_samples=num_samples, batch_size=batch_size), path)


@styled
def schedule_figure(schedule: Schedule, *, num_epochs: int, num_samples: int, batch_size: int) -> Figure:
    """The figure that :func:`plot_schedule` writes: axes of the sizes, then axes of the cost."""
    used = usage(schedule, num_epochs=num_epochs, num_samples=num_samples, batch_size=batch_size)
    images_per_epoch = num_samples // batch_size * batch_size
    figure = new_figure(9.0, 4.6)
    size_axes, cost_axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    size_axes.set_title(textwrap.fill(repr(schedule), 110))
    _draw_sizes(size_axes, used)
    _mark_milestones(size_axes, [epoch for epoch in getattr(schedule, "milestones", ()) if epoch < num_epochs])
    _draw_cost(cost_axes, used.area(schedule.base_size) / images_per_epoch, schedule.base_size)
    cost_axes.set_xlim(0, num_epochs)
    cost_axes.set_xlabel("epoch")
    figure.align_ylabels()
    return figure


def _draw_sizes(axes: Axes, used: Usage) -> None:
    """One lane per size at its true height; the darker an epoch's bar, the more of its images have that size."""
    shares = used.images / used.images.sum(axis=1, keepdims=True)
    low, high = min(used.sizes), max(used.sizes)
    thickness = 0.06 * (high - low) if high > low else 0.02 * high
    for column, size in enumerate(used.sizes):
        epochs = np.flatnonzero(shares[:, column])
        axes.bar(
            epochs,
            thickness,
            width=1.0,
            bottom=size - thickness / 2,
            align="edge",
            color=[shade(_COLOUR, 0.15 + 0.85 * share) for share in shares[epochs, column].tolist()],
        )
    axes.set_ylim(low - 2 * thickness, high + 2 * thickness)
    axes.set_yticks(used.sizes)
    axes.set_ylabel("image side (px)")
    totals = used.images.sum(axis=0) / used.images.sum()
    label_ends(
        axes, [(size, f"{share:.0%} of images", _COLOUR) for size, share in zip(used.sizes, totals, strict=True)]
    )


def _mark_milestones(axes: Axes, milestones: list[int]) -> None:
    for milestone in milestones:
        axes.axvline(milestone, color=GREY, linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
    if milestones:
        axes.annotate(
            "learning rate drops",
            xy=(milestones[0], 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            color=GREY,
            va="top",
            fontsize="small",
        )


def _draw_cost(axes: Axes, per_epoch: NDArray[np.float64], base_size: int) -> None:
    """Cumulative cost by area; ``per_epoch`` is each epoch's cost in epochs at ``base_size``."""
    epochs = np.arange(len(per_epoch) + 1)
    cumulative = np.concatenate([[0.0], np.cumsum(per_epoch)])
    axes.plot(epochs, epochs, color=GREY, linewidth=1.2)
    axes.plot(epochs, cumulative, color=_COLOUR)
    axes.fill_between(epochs, cumulative, epochs, color=_COLOUR, alpha=0.08, linewidth=0)
    axes.set_ylim(0, max(epochs[-1], cumulative[-1]) * 1.05)
    axes.set_ylabel(f"cost by area\n(epochs at {base_size} px)")
    total = float(cumulative[-1])
    label_ends(
        axes,
        [
            (float(epochs[-1]), f"fixed {base_size} px: {epochs[-1]}", GREY),
            (total, f"schedule: {total:.4g} ({total / epochs[-1]:.0%})", _COLOUR),
        ],
        gap=0.12,
    )
