"""Which stored level each crop is read from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from respipe.backends.routing import route
from respipe.planning.batch import BatchPlan
from respipe.schedules.step import Step
from respipe.storage.folder import FolderDataset
from tests.memory_dataset import MemoryDataset

# Two images with levels of 64 x 96 and 100 x 80, half of that, and a quarter.
SHAPES = [(64, 96), (100, 80)]


def plan_of(boxes: list[tuple[float, float, float, float]], *, size: int) -> BatchPlan:
    count = len(boxes)
    return BatchPlan(
        step=Step((size,), count),
        epoch=0,
        number=0,
        indices=np.arange(count) % len(SHAPES),
        boxes=np.array(boxes, np.float64),
        flips=np.zeros(count, np.bool_),
    )


def test_the_smallest_level_serves_on_which_the_crop_has_enough_pixels_on_both_sides() -> None:
    dataset = MemoryDataset(SHAPES, fractions=(0.5, 0.25))
    boxes = [(0, 0, 64, 96), (0, 0, 64, 64), (0, 0, 63, 96), (0, 0, 32, 32), (0, 0, 31, 80), (0, 0, 10, 10)]
    job = route(dataset, plan_of([box for box in boxes for _ in range(2)], size=16))
    assert job.levels.tolist() == [*(2, 2), *(2, 2), *(1, 1), *(1, 1), *(0, 0), *(0, 0)]


def test_a_margin_asks_for_more_pixels() -> None:
    dataset = MemoryDataset(SHAPES, fractions=(0.5, 0.25))
    plan = plan_of([(0, 0, 64, 80)], size=16)
    levels = [route(dataset, plan, margin=margin).levels.item() for margin in (0.5, 1.0, 1.01, 2.0, 2.01)]
    assert levels == [2, 2, 1, 1, 0]


def test_images_to_be_decimated_are_read_at_the_size_that_is_decoded() -> None:
    dataset = MemoryDataset(SHAPES, fractions=(0.5, 0.25))
    plan = plan_of([(0, 0, 64, 80)], size=16)
    job = route(dataset, plan.replace(step=Step((16,), 1, decimation=2)))
    assert (job.sizes, job.levels.tolist()) == ((32,), [1])


def test_a_job_names_the_stored_images_and_has_boxes_in_their_pixels() -> None:
    dataset = MemoryDataset(SHAPES, fractions=(0.5, 0.25))
    job = route(dataset, plan_of([(0, 0, 64, 96), (20, 8, 40, 40)], size=16))
    assert job.levels.tolist() == [2, 1]
    assert job.rows[["height", "width"]].tolist() == [(16, 24), (50, 40)]
    np.testing.assert_allclose(job.boxes[:, 0], [(0, 0, 16, 24), (10, 4, 20, 20)])
    assert job.covers.tolist() == [[0, 0, 16, 24], [10, 4, 20, 20]]
    for row, index, level in zip(job.rows, job.indices, job.levels, strict=True):
        stored = dataset.buffers[0][row["offset"] :][: row["length"]]
        assert stored.tobytes() == dataset.encoded(index, level).tobytes()


def test_files_of_a_folder_have_no_buffer(jpeg_folder: Path) -> None:
    dataset = FolderDataset(jpeg_folder)
    assert (route(dataset, plan_of([(0, 0, 64, 96)], size=16)).rows["buffer"] == -1).all()
