"""A picture of what loading one crop touches: the stored level it is read from, and the tiles that are decoded."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from respipe.backends.routing import route
from respipe.jpeg.cut import cut
from respipe.jpeg.header import read_header
from respipe.planning.policy import SamplingPolicy
from respipe.planning.run import RunPlan
from respipe.plots.style import PALETTE, new_figure, save, styled
from respipe.schedules.constant import Constant
from respipe.storage.dataset import Dataset
from respipe.storage.open import open_dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = 7.0
_VEIL = 0.65  # how much white lies over what is not decoded


def plot_crop(
    data: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    sizes: Sequence[int] = (224, 128, 64),
    sample: int = 0,
    seed: int = 0,
) -> None:
    """Draw the same random crop of an image as it is loaded at several sizes.

    Each panel is the stored level that serves the size, the levels at one scale. The crop is outlined, what is not
    decoded is faint, and lines divide the tiles.

    Args:
        data: a file of :func:`respipe.convert`.
        path: where the picture goes; the suffix decides the format.
        sizes: sides of the crop in pixels.
        sample: number of the image.
        seed: seed of the crop, drawn as for epoch 0.

    Raises:
        StorageError: the data cannot be opened.
        ValueError: it has no tiles, or no such sample.
        MissingBackendError: matplotlib is not installed.
    """
    dataset = open_dataset(data, on_demand=True)
    try:
        save(crop_figure(dataset, sizes=sizes, sample=sample, seed=seed), path)
    finally:
        dataset.close()


@styled
def crop_figure(dataset: Dataset, *, sizes: Sequence[int], sample: int = 0, seed: int = 0) -> Figure:
    """The figure that :func:`plot_crop` writes."""
    if not dataset.tiled:
        raise ValueError(f"`data` must hold tiles; {dataset.path} has none. Convert it with `respipe convert`.")
    if not 0 <= sample < len(dataset):
        raise ValueError(f"`sample` must be in 0..{len(dataset) - 1}; got {sample}.")
    policy = SamplingPolicy(seed=seed, indices=np.array([sample]), flip_probability=0.0)
    panels = [_panel(dataset, policy, size) for size in sizes]
    widths = [panel.pixels.shape[1] for panel in panels]
    scale = _INCHES / sum(widths)
    figure = new_figure(_INCHES, max(panel.pixels.shape[0] for panel in panels) * scale + 0.5)
    for panel, axes in zip(panels, figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0], strict=True):
        _draw(panel, axes)
    return figure


class _Panel(NamedTuple):
    """What is read for one size.

    Args:
        title: what it says.
        pixels: (H, W, 3) uint8, the stored level.
        tile: height and width in pixels of a tile.
        decoded: top, left, height and width of the part that is decoded.
        box: the same of the crop.
    """

    title: str
    pixels: NDArray[np.uint8]
    tile: tuple[int, int]
    decoded: tuple[int, int, int, int]
    box: tuple[float, float, float, float]


def _panel(dataset: Dataset, policy: SamplingPolicy, size: int) -> _Panel:
    from PIL import Image

    plan = next(RunPlan(Constant(size), dataset, policy, batch_size=1).local_batches(0, 0, rank=0, world_size=1))
    job = route(dataset, plan)
    data = dataset.encoded(int(job.indices[0]), int(job.levels[0])).tobytes()
    part, decoded = cut(data, job.covers[0].tolist())
    header = read_header(data)
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.array(image.convert("RGB"))
    return _Panel(
        title=f"crop of {size} px\n{len(part) / len(data):.0%} of the {max(pixels.shape)} px level",
        pixels=pixels,
        tile=(8 * header.mcu[0], 8 * header.mcu[1] * header.restart_interval),
        decoded=decoded,
        box=tuple(job.boxes[0, 0].tolist()),
    )


def _draw(panel: _Panel, axes: Any) -> None:
    from matplotlib.patches import Rectangle

    (height, width), (top, left, rows, columns) = panel.pixels.shape[:2], panel.decoded
    shown = 255 - (1 - _VEIL) * (255 - panel.pixels.astype(np.float32))
    shown[top : top + rows, left : left + columns] = panel.pixels[top : top + rows, left : left + columns]
    axes.imshow(shown.astype(np.uint8), extent=(0, width, height, 0))
    axes.hlines(np.arange(0, height, panel.tile[0]), 0, width, colors="white", linewidth=0.4)
    axes.vlines(np.arange(0, width, panel.tile[1]), 0, height, colors="white", linewidth=0.4)
    y, x, crop_height, crop_width = panel.box
    axes.add_patch(Rectangle((x, y), crop_width, crop_height, fill=False, edgecolor=PALETTE[1], linewidth=1.8))
    axes.set_axis_off()
    axes.set_title(panel.title, fontsize=8.0)
