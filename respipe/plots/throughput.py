"""A picture of a loader benchmark: how fast, and how faithful, each loader is at each image size."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from respipe.plots.style import PALETTE, label_ends, new_figure, save, shade, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

_GAP = 0.055


def plot_throughput(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw images per second against image size, one line per loader, and beside it PSNR where it was measured.

    Args:
        results: ``{"results": [row, ...]}``; each row has ``loader`` (name), ``size`` (px), ``images_per_second`` and,
            where measured, ``psnr`` (dB) and ``bytes_per_image``.
        path: where the picture goes; the suffix decides the format.

    Raises:
        ValueError: there is no row, or a row lacks one of the first three fields.
        MissingBackendError: matplotlib is not installed.
    """
    save(throughput_figure(results), path)


@styled
def throughput_figure(results: Mapping[str, Any]) -> Figure:
    """The figure that :func:`plot_throughput` writes: axes of the throughput, then, if measured, of the PSNR."""
    rows = _checked(results)
    loaders = list(dict.fromkeys(str(row["loader"]) for row in rows))
    has_psnr = any(row.get("psnr") is not None for row in rows)
    figure = new_figure(11.0 if has_psnr else 7.5, 4.2)
    panels: list[Axes] = list(figure.subplots(1, 1 + has_psnr, squeeze=False)[0])
    panels[0].set_title("Throughput (images/s)")
    ends = _draw_lines(panels[0], rows, loaders, "images_per_second")
    panels[0].set_ylim(bottom=0)
    panels[0].yaxis.set_major_formatter("{x:,.0f}")
    label_ends(panels[0], [(y, _with_bytes(loader, rows), colour) for y, loader, colour in ends], gap=_GAP)
    if has_psnr:
        panels[1].set_title("Fidelity (PSNR, dB)")
        label_ends(panels[1], _draw_lines(panels[1], rows, loaders, "psnr"), gap=_GAP)
    sizes = sorted({int(row["size"]) for row in rows})
    for axes in panels:
        axes.set_xticks(sizes)
        axes.set_xlabel("image side (px)")
    return figure


def _draw_lines(axes: Axes, rows: Sequence[Row], loaders: Sequence[str], field: str) -> list[tuple[float, str, str]]:
    """Draw one line per loader that has the field; returns each line's last y, loader and colour."""
    ends: list[tuple[float, str, str]] = []
    for place, loader in enumerate(loaders):
        measured = [row for row in rows if row["loader"] == loader and row.get(field) is not None]
        points = sorted((int(row["size"]), float(row[field])) for row in measured)
        if points:
            colour = _colour(place)
            axes.plot([size for size, _ in points], [y for _, y in points], color=colour, marker="o", markersize=4)
            ends.append((points[-1][1], loader, colour))
    return ends


def _colour(place: int) -> str:
    """A colour of the palette, and a lighter one once they are used up."""
    from matplotlib.colors import to_hex

    again, number = divmod(place, len(PALETTE))
    return to_hex(shade(PALETTE[number], 0.5**again))


def _with_bytes(loader: str, rows: Sequence[Row]) -> str:
    sizes = [float(row["bytes_per_image"]) for row in rows if row["loader"] == loader and row.get("bytes_per_image")]
    return f"{loader}, {sizes[0] / 1000:.0f} KB" if sizes else loader


def _checked(results: Mapping[str, Any]) -> Sequence[Row]:
    rows = cast(object, results.get("results"))
    if not isinstance(rows, list) or not rows:
        raise ValueError(
            "`results` must be a list with at least one row; got none. Pass what `respipe bench --json` wrote."
        )
    for number, row in enumerate(cast(list[Row], rows)):
        for field in ("loader", "size", "images_per_second"):
            if field not in row:
                raise ValueError(f"`results[{number}]` must have the field {field!r}; got {sorted(row)}.")
    return cast(list[Row], rows)
