from __future__ import annotations

import builtins
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from respipe.errors import MissingBackendError
from respipe.plots import plot_accuracy, plot_batch, plot_runs, plot_schedule, plot_throughput
from respipe.plots.batch import batch_figure, compose
from respipe.plots.evaluation import accuracy_figure
from respipe.plots.runs import runs_figure
from respipe.plots.schedule import schedule_figure
from respipe.plots.style import spread
from respipe.plots.throughput import throughput_figure
from respipe.runs import read_run
from respipe.schedules import TRD, Constant

ALTERNATE = TRD(32, 16, 0.5, draw="alternate", milestones=(3,), guard=(0, 1))


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def write_run(folder: Path, epochs: Sequence[Mapping[str, Any]], tail: str = "") -> Path:
    folder.mkdir()
    events = [{"event": "start", "recipe": {}, "schedule": "Constant(size=32)"}, *epochs, {"event": "end"}]
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + tail, encoding="utf-8")
    return folder


def epoch_event(epoch: int, *, size: int = 32, elapsed: float | None = None, top1: float = 0.5) -> dict[str, Any]:
    return {
        "event": "epoch",
        "epoch": epoch,
        "seconds": 10.0,
        "elapsed": 10.0 * (epoch + 1) if elapsed is None else elapsed,
        "train_loss": 2.0 / (epoch + 1),
        "lr": 0.1,
        "sizes": {str(size): {"steps": 5, "images": 40, "seconds": 9.0, "wait_seconds": 1.0}},
        "eval": {"32": {"top1": top1, "top5": 0.9, "loss": 1.0}, "24": {"top1": top1 - 0.1, "top5": 0.9, "loss": 1.0}},
    }


# Schedules


def test_schedule_figure_has_a_bar_at_its_size_for_every_epoch() -> None:
    axes = schedule_figure(ALTERNATE, num_epochs=4, num_samples=64, batch_size=8).axes[0]
    drawn = {(bar.get_x(), round(bar.get_y() + bar.get_height() / 2)) for bar in bars(axes)}
    assert drawn == {(0, 16), (1, 32), (2, 16), (3, 32)}
    assert axes.get_yticks().tolist() == [32, 16]
    assert "50% of images" in texts(axes)
    assert "learning rate drops" in texts(axes)


def test_schedule_figure_shows_cumulative_cost_beside_the_fixed_size() -> None:
    axes = schedule_figure(ALTERNATE, num_epochs=4, num_samples=64, batch_size=8).axes[1]
    fixed, cumulative = (np.asarray(line.get_ydata()) for line in axes.lines)
    np.testing.assert_allclose(fixed, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(cumulative, [0, 0.25, 1.25, 1.5, 2.5])
    assert texts(axes) == ["schedule: 2.5 (62%)", "fixed 32 px: 4"]


def test_mixed_epochs_are_drawn_lighter_than_pure_ones() -> None:
    mixed = schedule_figure(TRD(32, 16, 0.5, unit="step", draw="quota"), num_epochs=1, num_samples=80, batch_size=8)
    pure = schedule_figure(Constant(32), num_epochs=1, num_samples=80, batch_size=8)
    lightness = [sum(bar.get_facecolor()[:3]) for figure in (mixed, pure) for bar in bars(figure.axes[0])]
    assert len(lightness) == 3
    assert lightness[0] == pytest.approx(lightness[1])
    assert lightness[0] > lightness[2]


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_schedule_is_written_in_the_format_of_the_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"schedule.{suffix}"
    plot_schedule(ALTERNATE, num_epochs=4, path=path, num_samples=64, batch_size=8)
    assert path.read_bytes().startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix])


def test_unknown_picture_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        plot_schedule(ALTERNATE, num_epochs=4, path=tmp_path / "a.nonsense", num_samples=64, batch_size=8)


# Runs


def test_runs_figure_draws_loss_and_accuracy_by_epoch_and_by_time(tmp_path: Path) -> None:
    slow = write_run(tmp_path / "slow", [epoch_event(0, elapsed=100), epoch_event(1, elapsed=240, top1=0.7)])
    fast = write_run(tmp_path / "fast", [epoch_event(0, size=16, elapsed=30), epoch_event(1, elapsed=90)])
    figure = runs_figure([read_run(slow), read_run(fast)])
    loss, loss_by_time, accuracy, _, _, sizes_by_time = figure.axes
    assert list(loss.lines[0].get_xdata()) == [1, 2]
    assert [list(line.get_ydata()) for line in loss.lines] == [[2.0, 1.0], [2.0, 1.0]]
    assert [list(line.get_xdata()) for line in loss_by_time.lines] == [
        pytest.approx([100 / 60, 4]),
        pytest.approx([0.5, 1.5]),
    ]
    assert sizes_by_time.get_xlabel() == "wall time (minutes)"
    assert [list(line.get_ydata()) for line in accuracy.lines] == [
        pytest.approx(values) for values in ([50, 70], [40, 60], [50, 50], [40, 40])
    ]
    assert "slow  70.0% at 32 px" in texts(figure.axes[3])


def test_runs_figure_shows_in_lanes_which_sizes_were_trained_at(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "trd", [epoch_event(0, size=32), epoch_event(1, size=16)]))
    figure = runs_figure([run])
    seen = [(bar.get_x(), bar.get_width(), round(bar.get_height(), 6)) for bar in bars(figure.axes[4])]
    assert [bar for bar in seen if bar[2]] == [(0, 1, 0.7), (1, 1, 0.7)]
    assert texts(figure.axes[5]) == ["32 px dark to 16 px light"]
    assert [label.get_text() for label in figure.axes[4].get_yticklabels()] == ["trd"]


def test_runs_are_written_as_a_picture(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a $strange$ name", [epoch_event(0)])
    plot_runs([run], tmp_path / "runs.png")
    with Image.open(tmp_path / "runs.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000


def test_torn_lines_of_a_killed_run_are_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path / "killed", [epoch_event(0)], tail='{"event": "epoch", "epo')
    with caplog.at_level(logging.WARNING):
        assert [record.epoch for record in read_run(run).epochs] == [0]
    assert "log.jsonl:4" in caplog.text


def test_epoch_logged_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "resumed", [epoch_event(0), epoch_event(1, top1=0.2), epoch_event(1, top1=0.6)])
    assert [(record.epoch, record.top1[32]) for record in read_run(run).epochs] == [(0, 0.5), (1, 0.6)]


def test_epochs_without_evaluation_are_drawn_without_accuracy(tmp_path: Path) -> None:
    events = [{**epoch_event(0), "eval": {}}, epoch_event(1), {**epoch_event(2), "eval": None}]
    figure = runs_figure([read_run(write_run(tmp_path / "sparse", events))])
    assert [list(line.get_xdata()) for line in figure.axes[2].lines] == [[2], [2]]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"event": "epoch", "epoch": 0}, r"log.jsonl: an epoch must have the field 'sizes'"),
        ({**epoch_event(0), "train_loss": None}, r"log.jsonl: a field of the epoch has the wrong type"),
        ({**epoch_event(0), "sizes": [1]}, r"log.jsonl: a field of the epoch has the wrong type"),
        ({"event": "note"}, r"must hold the log of at least one epoch"),
    ],
)
def test_log_that_is_no_runs_log_is_refused_naming_the_line(
    tmp_path: Path, event: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_run(write_run(tmp_path / "odd", [event]))


def test_no_run_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="`run_dirs` must name at least one run"):
        runs_figure([])


# Batches


def test_images_are_composed_pixel_for_pixel_at_one_scale() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 255, (2, size, size, 3), dtype=np.uint8) for size in (64, 16)]
    canvas, tops = compose(rows)
    assert tops == [2, 68]
    np.testing.assert_array_equal(canvas[2:66, 2:66], rows[0][0])
    np.testing.assert_array_equal(canvas[68:84, 20:36], rows[1][1])
    assert (canvas[:2] == 255).all()


def test_every_form_of_a_batch_gives_the_same_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    pixels[0, 0, 0] = 0
    pixels[0, 0, 1] = 255
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    forms = [
        pixels,
        torch.from_numpy(pixels),
        channels_first,
        channels_first.float() / 255,
        (channels_first.float() / 255 - 0.5) / 0.25,
    ]
    pictures = [np.asarray(batch_figure([form]).axes[0].images[0].get_array()) for form in forms]
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


def test_batch_picture_has_a_whole_number_of_pixels_per_image_pixel(tmp_path: Path) -> None:
    red, blue = (200, 10, 20), (10, 20, 200)
    rows = [np.full((3, size, size, 3), colour, dtype=np.uint8) for size, colour in ((112, red), (56, blue))]
    plot_batch(rows, tmp_path / "batch.png")
    with Image.open(tmp_path / "batch.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    num_red, num_blue = ((pixels == colour).all(axis=2).sum() for colour in (red, blue))
    assert num_red == 4 * num_blue
    assert num_blue % (3 * 56 * 56) == 0


def test_number_of_images_shown_is_limited() -> None:
    figure = batch_figure([np.zeros((50, 8, 8, 3), dtype=np.uint8)], num_images=4)
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == (12, 42, 3)


def test_captions_stand_below_their_images() -> None:
    rows = [np.zeros((2, size, size, 3), np.uint8) for size in (64, 32)]
    figure = batch_figure(rows, captions=[["rotate(12.5) equalize", ""], ["solarize(128)", "blur(0.01)"]], num_images=2)
    axes = figure.axes[0]
    shown = {
        text.get_text().replace("\n", " "): text.get_position() for text in axes.texts if "px" not in text.get_text()
    }
    assert shown["rotate(12.5) equalize"] == (2, 66)
    assert shown["solarize(128)"][0] == 2 < shown["blur(0.01)"][0] == 36
    plain = np.asarray(batch_figure(rows).axes[0].images[0].get_array())
    assert np.asarray(axes.images[0].get_array()).shape[0] > plain.shape[0]


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 8, 8), (2, 3, 8, 9), (0, 3, 8, 8)])
def test_batch_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`batches` must hold"):
        batch_figure([torch.zeros(shape)])


def test_no_batch_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="`batches` must hold at least one batch"):
        batch_figure([])


# Benchmarks


def throughput_rows(**fields: Any) -> dict[str, Any]:
    return {
        "results": [
            {"loader": loader, "size": size, "images_per_second": speed / size, **fields}
            for loader, speed in (("a", 1000.0), ("b", 3000.0))
            for size in (224, 112)
        ]
    }


def test_throughput_figure_has_a_line_per_loader_from_small_to_large() -> None:
    (axes,) = throughput_figure(throughput_rows(bytes_per_image=54_321.0)).axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[112, 224], [112, 224]]
    assert list(axes.lines[1].get_ydata()) == pytest.approx([3000 / 112, 3000 / 224])
    assert sorted(texts(axes)) == ["a, 54 KB", "b, 54 KB"]
    assert axes.get_ylim()[0] == 0


def test_fidelity_gets_its_own_axes_where_it_was_measured() -> None:
    figure = throughput_figure(throughput_rows(psnr=39.5))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Throughput (images/s)", "Fidelity (PSNR, dB)"]
    assert list(figure.axes[1].lines[0].get_ydata()) == [39.5, 39.5]


def test_throughput_is_written_as_a_picture(tmp_path: Path) -> None:
    plot_throughput(throughput_rows(), tmp_path / "throughput.png")
    with Image.open(tmp_path / "throughput.png") as picture:
        picture.load()


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, "`results` must be a list with at least one row"),
        ({"results": []}, "`results` must be a list with at least one row"),
        ({"results": [{"loader": "a", "size": 3}]}, r"`results\[0\]` must have the field 'images_per_second'"),
    ],
)
def test_results_without_what_is_drawn_are_refused(results: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        throughput_figure(results)


# Accuracy


def accuracies(name: str, before: float, after: float) -> dict[str, Any]:
    rows = [{"size": size, "before": before - place / 10, "after": after} for place, size in enumerate((40, 16, 24))]
    return {"name": name, "accuracy": rows}


def test_accuracy_figure_has_a_dashed_and_a_solid_line_per_run_from_small_to_large() -> None:
    axes = accuracy_figure({"runs": [accuracies("fixed", 0.7, 0.8), accuracies("B+", 0.5, 0.9)]}).axes[0]
    assert [np.asarray(line.get_xdata()).tolist() for line in axes.lines] == [[16, 24, 40]] * 4
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), [60, 50, 70])
    np.testing.assert_allclose(np.asarray(axes.lines[3].get_ydata()), [90, 90, 90])
    assert [line.get_linestyle() for line in axes.lines] == ["--", "-", "--", "-"]
    assert texts(axes)[:2] == ["fixed", "B+"]


def test_accuracy_is_written_as_a_picture(tmp_path: Path) -> None:
    plot_accuracy({"runs": [accuracies("fixed", 0.7, 0.8)]}, tmp_path / "accuracy.png")
    with Image.open(tmp_path / "accuracy.png") as picture:
        assert picture.width > 800


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"runs": []}, "at least one run; got none"),
        ({"runs": [{"name": "fixed", "accuracy": []}]}, r"`results.runs\[0\]` must have a name and accuracy"),
        ({"runs": [{"name": "fixed", "accuracy": [{"size": 16, "after": 0.5}]}]}, "size, before and after"),
    ],
)
def test_accuracies_that_cannot_be_drawn_are_refused(results: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy_figure(results)


# Style


def test_labels_that_would_overlap_are_moved_apart_and_stay_in_order() -> None:
    assert spread([0.2, 0.8], gap=0.1) == pytest.approx([0.2, 0.8])
    assert spread([0.5, 0.5, 0.5], gap=0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert spread([0.99, 1.0], gap=0.1) == pytest.approx([0.9, 1.0])
    assert spread([0.0, 0.05, 0.12], gap=0.1) == pytest.approx([0.0, 0.1, 0.2])


def test_missing_matplotlib_is_reported_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real_import = builtins.__import__

    def without_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(MissingBackendError, match=r"pip install 'respipe\[plots\]'"):
        plot_schedule(Constant(8), num_epochs=1, path=tmp_path / "a.png", num_samples=8, batch_size=8)


def test_figures_use_the_house_style_whatever_style_is_set() -> None:
    import matplotlib as mpl

    with mpl.rc_context({"axes.spines.top": True}):
        figure: Figure = schedule_figure(Constant(8), num_epochs=1, num_samples=8, batch_size=8)
    assert not figure.axes[0].spines["top"].get_visible()
