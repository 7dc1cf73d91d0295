"""The picture of a crop shows what loading it decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from respipe.plots import plot_crop
from respipe.plots.crop import crop_figure
from respipe.storage.open import open_dataset
from tests.memory_dataset import smooth_image
from tests.small_pages import convert_small


def test_smaller_crops_are_read_from_smaller_levels_and_only_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    smooth_image(256, 320, seed=1).save(tmp_path / "images" / "a" / "1.jpg")
    convert_small(tmp_path / "images", tmp_path / "x.beton", levels=(320, 80))
    dataset = open_dataset(tmp_path / "x.beton")
    large, small = crop_figure(dataset, sizes=(96, 16), seed=3).axes
    assert "of the 320 px level" in large.get_title(loc="left")
    assert "of the 80 px level" in small.get_title(loc="left")
    (box,) = large.patches
    shown = np.asarray(large.images[0].get_array())
    faint = shown.min(axis=2) >= 255 * 0.6
    top, left, height, width = (int(value) for value in (box.get_y(), box.get_x(), box.get_height(), box.get_width()))
    assert faint.any()
    assert not faint[top : top + height, left : left + width].all()
    with pytest.raises(ValueError, match=r"`sample` must be in 0\.\.0; got 1"):
        crop_figure(dataset, sizes=(96,), sample=1)
    dataset.close()
    plot_crop(tmp_path / "x.beton", tmp_path / "crop.png", sizes=(96, 16))
    assert (tmp_path / "crop.png").stat().st_size > 1000
