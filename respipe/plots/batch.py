"""A picture of batches as the model sees them, each image at its true relative size."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from respipe.plots.style import new_figure, save, styled

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    Images = torch.Tensor | NDArray[np.uint8]

_LABEL_WIDTH = 64
_PIXELS_PER_INCH = 100
# Width and height of a character of captions in pixels.
_CHARACTER = 5, 9


def plot_batch(
    batches: Sequence[Images],
    path: str | os.PathLike[str],
    *,
    num_images: int = 8,
    captions: Sequence[Sequence[str]] = (),
) -> None:
    """Draw one row of images per batch, all at the same scale, so that a 112 px image is half as wide as a 224 px one.

    Args:
        batches: (B, 3, S, S) tensors on any device, or (B, S, S, 3) uint8 tensors or arrays. Floating-point values
            within 0..1 are shown as they are; others, such as normalised ones, are stretched per batch so that
            their smallest value is black and their largest white.
        path: where the picture goes; the suffix decides the format.
        num_images: images shown of each batch.
        captions: what to write below each image of each batch, such as
            :meth:`respipe.sampling.BatchPlan.captions` says; nothing where left out.

    Raises:
        ValueError: there is no batch, or one has another shape.
        MissingBackendError: matplotlib is not installed.
    """
    save(batch_figure(batches, num_images=num_images, captions=captions), path)


@styled
def batch_figure(batches: Sequence[Images], *, num_images: int = 8, captions: Sequence[Sequence[str]] = ()) -> Figure:
    """The figure that :func:`plot_batch` writes, one pixel of it for each pixel of the images or a multiple."""
    rows = [_pixels(batch)[:num_images] for batch in batches]
    if not rows:
        raise ValueError("`batches` must hold at least one batch; got none. Pass a sequence of image tensors.")
    zoom = max(1, round(900 / compose(rows)[0].shape[1]))
    texts = [
        [textwrap.fill(text, max(8, zoom * row.shape[1] // _CHARACTER[0])) for text in some[:num_images]]
        for row, some in zip(rows, captions or [()] * len(rows), strict=True)
    ]
    lines = max((text.count("\n") + 1 for some in texts for text in some if text), default=0)
    canvas, tops = compose(rows, below=-(-lines * _CHARACTER[1] // zoom))
    height, width = canvas.shape[:2]
    inches = zoom / _PIXELS_PER_INCH
    figure = new_figure((width + _LABEL_WIDTH / zoom) * inches, height * inches, dpi=_PIXELS_PER_INCH)
    figure.set_layout_engine("none")
    left = _LABEL_WIDTH / zoom / (width + _LABEL_WIDTH / zoom)
    axes = figure.add_axes((left, 0.0, 1.0 - left, 1.0))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for row, top in zip(rows, tops, strict=True):
        axes.annotate(
            f"{row.shape[1]} px",
            xy=(0, top + row.shape[1] / 2),
            xytext=(-8, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            annotation_clip=False,
        )
    for row, top, some in zip(rows, tops, texts, strict=True):
        for place, text in enumerate(some):
            left = _gap(rows) + place * (row.shape[2] + _gap(rows))
            axes.text(left, top + row.shape[1], text, fontsize=6, va="top", family="monospace", linespacing=1.0)
    return figure


def _gap(rows: Sequence[NDArray[np.uint8]]) -> int:
    return max(2, max(row.shape[1] for row in rows) // 32)


def compose(rows: Sequence[NDArray[np.uint8]], *, below: int = 0) -> tuple[NDArray[np.uint8], list[int]]:
    """Lay rows of (n, S, S, 3) images out on one white canvas, with so many white pixels below each of them.

    Returns:
        the (H, W, 3) canvas and the y of each row's upper edge.
    """
    gap = _gap(rows)
    width = max(len(row) * (row.shape[2] + gap) for row in rows) + gap
    height = sum(row.shape[1] + below + gap for row in rows) + gap
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    tops: list[int] = []
    top = gap
    for row in rows:
        size = row.shape[1]
        for place, image in enumerate(row):
            left = gap + place * (size + gap)
            canvas[top : top + size, left : left + size] = image
        tops.append(top)
        top += size + below + gap
    return canvas, tops


def _pixels(batch: Images) -> NDArray[np.uint8]:
    """(B, S, S, 3) uint8 pixels of a batch in any of the accepted forms."""
    array = _as_array(batch)
    if array.ndim == 4 and array.shape[1] == 3 and array.shape[2] == array.shape[3]:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] != 3 or array.shape[1] != array.shape[2] or not len(array):
        raise ValueError(
            f"`batches` must hold (B, 3, S, S) or (B, S, S, 3) images; got shape {tuple(array.shape)}. "
            "Pass the images of each batch, not (images, labels)."
        )
    if array.dtype == np.uint8:
        return array
    low, high = float(array.min()), float(array.max())
    if low < 0.0 or high > 1.0:
        array = (array - low) / max(high - low, 1e-12)
    return np.rint(array * 255).astype(np.uint8)


def _as_array(batch: Images) -> NDArray[Any]:
    if isinstance(batch, np.ndarray):
        return batch
    import torch

    tensor = batch.detach().cpu()
    return (tensor if tensor.dtype == torch.uint8 else tensor.float()).numpy()
