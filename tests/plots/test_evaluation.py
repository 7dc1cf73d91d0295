from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from respipe.plots import plot_evaluation
from respipe.plots.evaluation import evaluation_figure


def run(name: str, *, macs: float | None = 4e9) -> dict[str, Any]:
    rows = [
        {"size": size, "top1": top1, "macs": macs and macs * size**2 / 224**2}
        for size, top1 in ((448, 0.76), (224, 0.77), (288, 0.78))
    ]
    return {"name": name, "results": rows}


def test_accuracy_is_drawn_against_size_and_against_cost() -> None:
    by_size, by_cost = evaluation_figure({"train_size": 224, "runs": [run("as trained"), run("fine-tuned")]}).axes
    assert [np.asarray(line.get_xdata()).tolist() for line in by_size.lines[:2]] == [[224, 288, 448]] * 2
    np.testing.assert_allclose(np.asarray(by_size.lines[0].get_ydata()), [77, 78, 76])
    np.testing.assert_allclose(np.asarray(by_cost.lines[1].get_xdata()), [4, 4 * (288 / 224) ** 2, 16])
    assert by_cost.get_xlabel().startswith("billion multiply-adds")
    assert [text.get_text() for text in by_cost.texts][-2:] == ["as trained", "fine-tuned"]


def test_training_size_is_marked_in_both_panels_also_where_it_was_not_evaluated() -> None:
    by_size, by_cost = evaluation_figure({"train_size": 224, "runs": [run("as trained")]}).axes
    assert np.asarray(by_size.lines[-1].get_xdata()).tolist() == [224, 224]
    assert np.asarray(by_cost.lines[-1].get_xdata()).tolist() == pytest.approx([4, 4])
    assert [text.get_text() for text in by_size.texts] == ["trained at 224 px"]
    by_size, by_cost = evaluation_figure({"train_size": 160, "runs": [run("as trained")]}).axes
    assert np.asarray(by_size.lines[-1].get_xdata()).tolist() == [160, 160]
    assert len(by_cost.lines) == 1


def test_without_known_cost_or_training_size_accuracy_is_drawn_alone() -> None:
    (axes,) = evaluation_figure({"runs": [run("as trained", macs=None)]}).axes
    assert len(axes.lines) == 1


def test_small_models_are_counted_in_millions() -> None:
    assert evaluation_figure({"runs": [run("small", macs=4e6)]}).axes[1].get_xlabel().startswith("million")


def test_picture_is_written(tmp_path: Path) -> None:
    plot_evaluation({"runs": [run("as trained")]}, tmp_path / "evaluation.png")
    with Image.open(tmp_path / "evaluation.png") as picture:
        assert picture.width > 1000


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"runs": []}, "at least one run; got none"),
        ({"runs": [{"name": "a", "results": []}]}, r"`report.runs\[0\]` must have a name and results"),
        ({"runs": [{"name": "a", "results": [{"size": 16, "top1": 0.5}]}]}, "with size, top1 and macs"),
    ],
)
def test_reports_that_cannot_be_drawn_are_refused(report: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation_figure(report)
