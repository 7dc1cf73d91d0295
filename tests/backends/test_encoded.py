"""Encoded images of a batch, cut to their crops."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from respipe.backends.encoded import CropReader
from respipe.backends.routing import route
from respipe.errors import CorruptImageError
from respipe.jpeg.cut import cut
from respipe.planning.boxes import hull
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
    routed = route(dataset.levels, plan)
    with closing(CropReader(dataset, num_threads=num_threads)) as reader:
        encoded = reader.read(plan, routed)
    for row, box in enumerate(hull(routed.boxes)[:, 0].tolist()):
        stored = dataset.encoded(int(plan.indices[row]), int(routed.levels[row]))
        small, (top, left, _, _) = cut(stored.tobytes(), tuple(box))
        assert encoded.images[row].tobytes() == small
        np.testing.assert_array_equal(encoded.boxes[row], routed.boxes[row] - [top, left, 0, 0])
        np.testing.assert_array_equal(encoded.hulls[row, 0], np.array(box) - [top, left, 0, 0])
        np.testing.assert_array_equal(encoded.covers[row], encoded.hulls[row, 0])


def test_images_that_cannot_be_cut_are_not_copied() -> None:
    dataset = sources.pyramid()
    plan = make_plan(dataset, plans.small, sizes=(24,))
    with closing(CropReader(dataset, num_threads=2)) as reader:
        encoded = reader.read(plan, route(dataset.levels, plan))
    assert all(np.shares_memory(image, dataset.buffers[0]) for image in encoded.images)


def test_files_are_read_whole(jpeg_folder: Path) -> None:
    dataset: Dataset = FolderDataset(jpeg_folder)
    plan = make_plan(dataset, plans.small, sizes=(24,))
    with closing(CropReader(dataset, num_threads=2)) as reader:
        encoded = reader.read(plan, route(dataset.levels, plan))
    for index, image in zip(plan.indices.tolist(), encoded.images, strict=True):
        np.testing.assert_array_equal(image, dataset.encoded(index))
    np.testing.assert_array_equal(encoded.boxes[:, 0], plan.boxes)


def test_one_image_is_taken_out_with_its_crop() -> None:
    dataset = sources.tiled()
    plan = make_plan(dataset, plans.random_resized, sizes=(24,))
    with closing(CropReader(dataset, num_threads=2)) as reader:
        encoded = reader.read(plan, route(dataset.levels, plan))
    alone = encoded.row(3)
    assert len(alone.images) == 1
    assert alone.images[0] is encoded.images[3]
    np.testing.assert_array_equal(alone.boxes, encoded.boxes[3:4])
    np.testing.assert_array_equal(alone.hulls, encoded.hulls[3:4])
    np.testing.assert_array_equal(alone.covers, encoded.covers[3:4])


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
        reader.read(plan, route(dataset.levels, plan))
    assert caught.value.index == 5
