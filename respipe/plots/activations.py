"""A picture of what a model's global pooling gives at each test size, as figure 3 of FixRes (arXiv 1906.06423)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from respipe.evaluation.activations import Activations
from respipe.plots.style import GREY, PALETTE, label_ends, new_figure, save, size_shades, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
