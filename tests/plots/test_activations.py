from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from respipe.evaluation import Activations
from respipe.plots import plot_activations
from respipe.plots.evaluation import activations_figure


def activations(size: int, zeros: float) -> Activations:
    quantiles = np.maximum(np.linspace(-zeros, 1 - zeros, 201), 0) * 100 / size
    return Activations(size=size, zeros=zeros, mean=0.4, std=0.2, quantiles=tuple(quantiles.tolist()), num_images=9)


def test_distribution_and_zeros_are_drawn_from_small_to_large() -> None:
    measured = [activations(224, 0.01), activations(64, 0.3)]
    distribution, zeros = activations_figure(measured, train_size=224).axes
    small, large = distribution.lines
    assert (small.get_label(), large.get_label()) == ("64 px", "224 px, trained at")
    np.testing.assert_allclose(np.asarray(small.get_xdata()), measured[1].quantiles)
    np.testing.assert_allclose(np.asarray(small.get_ydata())[[0, 100, 200]], [0, 50, 100])
    np.testing.assert_allclose(np.asarray(zeros.lines[0].get_ydata()), [30, 1])
    assert np.asarray(zeros.lines[1].get_xdata()).tolist() == [224, 224]


def test_picture_is_written(tmp_path: Path) -> None:
    plot_activations([activations(32, 0.5)], tmp_path / "activations.png")
    with Image.open(tmp_path / "activations.png") as picture:
        assert picture.width > 1000


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="`activations` must be of at least one size"):
        activations_figure([])
