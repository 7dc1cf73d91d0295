"""What all figures share: the look, the colours, labels at the ends of lines, and the only import of matplotlib."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, ParamSpec

from respipe.errors import MissingBackendError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

# Okabe and Ito's colours, which stay apart for colour-blind readers; yellow is left out because it fades on white.
# Grey and violet are added for the benchmark's eight loaders.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444", "#8C6BB1")
GREY = "#8A8A8A"
INK = "#222222"

_STYLE: dict[str, object] = {
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,  # names of runs and files may hold dollar signs
    "axes.labelcolor": "#444444",
    "axes.edgecolor": "#AAAAAA",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titlepad": 8.0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.8,
    "xtick.color": "#AAAAAA",
    "ytick.color": "#AAAAAA",
    "xtick.labelcolor": "#444444",
    "ytick.labelcolor": "#444444",
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.dpi": 160,
    "savefig.dpi": "figure",
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw a figure in the common style, whatever style the caller has set.

    Raises:
        MissingBackendError: matplotlib is not installed.
    """

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _matplotlib().rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float, *, dpi: float | None = None) -> Figure:
    """An empty figure of ``width`` x ``height`` inches that touches neither pyplot nor a display."""
    _matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure; the format follows the path's suffix.

    Raises:
        ValueError: matplotlib knows no such format.
        OSError: the file cannot be written.
    """
    with _matplotlib().rc_context(_STYLE):
        figure.savefig(os.fspath(path), facecolor="white")


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], *, gap: float = 0.075) -> None:
    """Write labels right of the axes at the height where their lines end, moved apart where they would overlap.

    Args:
        axes: with its final y limits and a linear y axis.
        ends: (y in data units, text, colour) of each line.
        gap: least distance between two labels as a share of the axes' height.
    """
    low, high = axes.get_ylim()
    ordered = sorted(ends)
    heights = spread([(y - low) / (high - low) for y, _, _ in ordered], gap=gap)
    for height, (_, text, colour) in zip(heights, ordered, strict=True):
        axes.annotate(
            text,
            xy=(1.0, height),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def spread(positions: Sequence[float], *, gap: float) -> list[float]:
    """Ascending positions in 0..1 moved apart to at least ``gap``, each group staying centred where it was.

    Positions that do not fit between 0 and 1 at that distance run over at the top.
    """
    groups: list[list[float]] = []
    for position in positions:
        groups.append([position])
        while len(groups) > 1 and _start(groups[-1], gap) < _start(groups[-2], gap) + gap * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    return [_start(group, gap) + gap * place for group in groups for place in range(len(group))]


def _start(group: Sequence[float], gap: float) -> float:
    """Where the first of a group of positions goes when they are set ``gap`` apart."""
    length = gap * (len(group) - 1)
    return max(0.0, min(sum(group) / len(group) - length / 2, 1.0 - length))


def shade(colour: str, strength: float) -> tuple[float, float, float]:
    """``colour`` mixed with white; 1 leaves it as it is, 0 gives white."""
    _matplotlib()
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return 1 - strength * (1 - red), 1 - strength * (1 - green), 1 - strength * (1 - blue)


def size_shades(colour: str, sizes: Sequence[int]) -> dict[int, tuple[float, float, float]]:
    """A shade of ``colour`` for each image size, in full for the largest and lighter for smaller ones."""
    ordered = sorted(set(sizes), reverse=True)
    return {size: shade(colour, 1 - 0.75 * place / max(1, len(ordered) - 1)) for place, size in enumerate(ordered)}


def _matplotlib() -> ModuleType:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingBackendError(
            "Plots need matplotlib, which is not installed. Run: pip install 'respipe[plots]'"
        ) from error
    return matplotlib
