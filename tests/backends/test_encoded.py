"""Encoded images of a batch, cut to their crops."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from respipe.backends.encoded import CropReader
from respipe.backends.routing import hull, route
from respipe.errors import CorruptImageError
from respipe.jpeg.cut import cut
from respipe.storage.dataset import Dataset
from respipe.storage.folder import FolderDataset
from tests import plans
from tests.backends import sources
from tests.plans import BoxRule, make_plan

RULES = [plans.random_resized, plans.evaluation, plans.small, plans.over_the_edge, plans.outside]


@pytest.mark.parametrize("num_threads", [1, 3, 20])
@pytest.mark.parametrize("rule", RULES)
def test_every_image_of_a_memory_map_is_cut(rule: BoxRule, num_threads: int) -> None:
    dataset = sources.tiled()
    plan = make_plan(dataset, rule, sizes=(24,))
    routed = route(dataset, plan)
    with closing(CropReader(dataset, num_threads=num_threads)) as reader:
        images, job = reader.read(routed)
    for row, box in enumerate(hull(routed.boxes)[:, 0].tolist()):
        stored = dataset.encoded(int(plan.indices[row]), int(routed.levels[row]))
        small, (top, left, _, _) = cut(stored.tobytes(), tuple(box))
        assert images[row].tobytes() == small
        np.testing.assert_array_equal(job.boxes[row], routed.boxes[row] - [top, left, 0, 0])
        np.testing.assert_array_equal(job.hulls[row, 0], np.array(box) - [top, left, 0, 0])
        np.testing.assert_array_equal(job.covers[row], job.hulls[row, 0])


def test_images_that_cannot_be_cut_are_not_copied() -> None:
    dataset = sources.pyramid()
    plan = make_plan(dataset, plans.small, sizes=(24,))
    with closing(CropReader(dataset, num_threads=2)) as reader:
        images, _ = reader.read(route(dataset, plan))
    assert all(np.shares_memory(image, dataset.buffers[0]) for image in images)


def test_files_are_read_whole(jpeg_folder: Path) -> None:
    dataset: Dataset = FolderDataset(jpeg_folder)
    plan = make_plan(dataset, plans.small, sizes=(24,))
    with closing(CropReader(dataset, num_threads=2)) as reader:
        images, job = reader.read(route(dataset, plan))
    for index, image in zip(plan.indices.tolist(), images, strict=True):
        np.testing.assert_array_equal(image, dataset.encoded(index))
    np.testing.assert_array_equal(job.boxes[:, 0], plan.boxes)


def test_the_job_of_one_image_has_its_crop_alone() -> None:
    dataset = sources.tiled()
    job = route(dataset, make_plan(dataset, plans.random_resized, sizes=(24, 16)))
    alone = job.row(3)
    assert (len(alone), alone.sizes, alone.indices.tolist()) == (1, (24, 16), [3])
    np.testing.assert_array_equal(alone.boxes, job.boxes[3:4])
    np.testing.assert_array_equal(alone.rows, job.rows[3:4])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_damaged_restart_markers_name_the_sample(num_threads: int) -> None:
    dataset = sources.tiled()
    stored = dataset.encoded(5)
    stored[np.flatnonzero((stored[:-1] == 0xFF) & (stored[1:] == 0xD0))] = 0
    plan = make_plan(dataset, plans.evaluation, sizes=(70,))
    with (
        closing(CropReader(dataset, num_threads=num_threads)) as reader,
        pytest.raises(CorruptImageError, match=r"sample 5 .*restart markers") as caught,
    ):
        reader.read(route(dataset, plan))
    assert caught.value.index == 5
