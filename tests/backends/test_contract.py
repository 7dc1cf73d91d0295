"""What every backend must do, whatever decodes underneath."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from respipe.backends.base import Backend
from respipe.backends.registry import make_backend
from respipe.backends.routing import route
from respipe.errors import CorruptImageError
from respipe.planning.batch import BatchPlan
from respipe.sampling import SamplingPolicy, plan_epoch
from respipe.schedules import MultiCrop, View
from respipe.schedules.step import Step
from respipe.storage.dataset import Dataset
from respipe.storage.open import open_dataset
from tests import plans
from tests.backends import sources
from tests.engines import needs_dali, needs_ffcv
from tests.memory_dataset import MemoryDataset
from tests.plans import BoxRule, make_nested_plan, make_plan
from tests.small_pages import convert_small

CPU = torch.device("cpu")

BACKENDS = [
    "reference",
    "tiles",
    pytest.param("ffcv", marks=needs_ffcv),
    pytest.param("dali", marks=needs_dali),
    pytest.param("dali-gpu", marks=[needs_dali, pytest.mark.gpu]),
]

# Largest accepted mean, 99th percentile and maximum of |pixel - oracle| in grey levels over a batch, each with the
# largest measured on a CPU. FFCV's decoder and DALI's do exactly what Pillow's does. Where DALI's resizing filter
# reaches beyond the crop it repeats the crop's border, while Pillow's ignores what is not there. That shows on black
# borders of images that are made much smaller.
TOLERANCES = {
    "reference": (0.0, 0.0, 0.0),
    "tiles": (0.4, 2.0, 6.0),  # 0.35, 1, 5
    "ffcv": (0.3, 1.0, 1.0),  # 0.18, 1, 1
    "dali": (0.3, 3.0, 8.0),  # 0.21, 2, 5
    "dali, over the edge": (1.2, 20.0, 32.0),  # 0.95, 16, 26
    "dali-gpu": (1.5, 6.0, 16.0),  # another JPEG decoder
    "dali-gpu, over the edge": (2.4, 24.0, 40.0),
}

CROPS: dict[str, tuple[BoxRule, tuple[int, ...]]] = {
    "random-resized": (plans.random_resized, (32,)),
    "random-resized, larger than the image": (plans.random_resized, (160,)),
    "evaluation": (plans.evaluation, (28,)),
    "whole": (plans.whole, (24,)),
    "one pixel": (plans.one_pixel, (8,)),
    "enlarged": (plans.small, (40,)),
    "over the edge": (plans.over_the_edge, (32,)),
    "outside": (plans.outside, (16,)),
    "several sizes": (plans.random_resized, (48, 32, 20)),
    "several sizes over the edge": (plans.over_the_edge, (24, 64)),
}


@pytest.fixture(scope="session")
def ffcv_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ffcv")
    return {mode: sources.write_ffcv(folder / f"{mode}.beton", mode=mode) for mode in ("jpg", "raw")}


@pytest.fixture(scope="session")
def converted(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "small.beton"
    convert_small(jpeg_folder, target)
    return target


SOURCES = [
    "jpeg_folder",
    "converted",
    "pyramid",
    "tiled",
    "tiled_kinds",
    "grayscale",
    pytest.param("jpg", marks=needs_ffcv),
    pytest.param("raw", marks=needs_ffcv),
]


@pytest.fixture
def dataset(source: str, request: pytest.FixtureRequest) -> Iterator[Dataset]:
    if source in ("jpeg_folder", "converted"):
        opened = open_dataset(request.getfixturevalue(source))
    elif source in ("pyramid", "tiled", "tiled_kinds", "grayscale"):
        opened = getattr(sources, source)()
    else:
        opened = open_dataset(request.getfixturevalue("ffcv_files")[source])
    with closing(opened):
        yield opened


@pytest.fixture
def pyramid(name: str) -> MemoryDataset:
    return sources.pyramid() if name == "reference" else sources.tiled()


def make(name: str, dataset: Dataset, *, num_threads: int = 2) -> Backend:
    device = torch.device("cuda") if name == "dali-gpu" else CPU
    return make_backend(name.removesuffix("-gpu"), dataset, device=device, num_threads=num_threads)


def decode(
    backend: Backend, dataset: Dataset, batches: Sequence[BatchPlan], *, depth: int = 1, **options: Any
) -> list[tuple[torch.Tensor, ...]]:
    """The pixels of all batches, with ``depth`` of them in flight."""
    collected = []
    for number, plan in enumerate(batches, start=1):
        backend.submit(route(dataset, plan, **options))
        if number >= depth:
            collected.append(backend.collect())
    while len(collected) < len(batches):
        collected.append(backend.collect())
    return collected


def decode_with(
    name: str, dataset: Dataset, batches: Sequence[BatchPlan], *, num_threads: int = 2, **options: Any
) -> list[tuple[torch.Tensor, ...]]:
    with closing(make(name, dataset, num_threads=num_threads)) as backend:
        return decode(backend, dataset, batches, **options)


def tolerance(name: str, dataset: Dataset, plan: BatchPlan) -> tuple[float, float, float]:
    image = np.stack([side[plan.indices] for side in (dataset.levels[0].heights, dataset.levels[0].widths)], axis=1)
    start, stop = plan.boxes[:, :2], plan.boxes[:, :2] + plan.boxes[:, 2:]
    if name.startswith("dali") and ((start < 0) | (stop > image + 1e-6)).any():
        return TOLERANCES[f"{name}, over the edge"]
    return TOLERANCES[name]


def assert_close_to_oracle(
    name: str, dataset: Dataset, plan: BatchPlan, pixels: tuple[torch.Tensor, ...], **options: Any
) -> None:
    (expected,) = decode_with("reference", dataset, [plan], **options)
    assert [tuple(tensor.shape) for tensor in pixels] == [(len(plan), size, size, 3) for size in plan.step.sizes]
    for found, wanted in zip(pixels, expected, strict=True):
        assert found.dtype == torch.uint8
        assert found.is_contiguous()
        difference = np.abs(found.cpu().numpy().astype(int) - wanted.numpy())
        measured = difference.mean(), np.percentile(difference, 99), difference.max()
        accepted = np.array(tolerance(name, dataset, plan))
        if options.get("interpolation") == "bicubic":  # Pillow 13 chooses the order of its passes, which shows
            accepted[2] = max(accepted[2], 3)
        assert all(np.array(measured) <= accepted), measured


def assert_equal(found: Sequence[tuple[torch.Tensor, ...]], expected: Sequence[tuple[torch.Tensor, ...]]) -> None:
    for some, others in zip(found, expected, strict=True):
        for one, other in zip(some, others, strict=True):
            assert torch.equal(one, other)


def varied_batches(dataset: Dataset) -> list[BatchPlan]:
    """Batches whose size, number of images, number of sizes and need of padding change at every step."""
    steps: list[tuple[BoxRule, tuple[int, ...], list[int]]] = [
        (plans.random_resized, (32,), [0, 1, 2]),
        (plans.over_the_edge, (24,), [3]),
        (plans.evaluation, (48, 16), [4, 5, 6, 0]),
        (plans.random_resized, (20,), [6, 5, 4, 3, 2, 1, 0]),
        (plans.over_the_edge, (16, 40), [1, 1]),
        (plans.random_resized, (33,), [2]),
    ]
    return [
        make_plan(dataset, rule, sizes=sizes, indices=indices, seed=seed)
        for seed, (rule, sizes, indices) in enumerate(steps)
    ]


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", BACKENDS)
def test_pixels_are_those_of_the_oracle(name: str, source: str, crop: str, dataset: Dataset) -> None:
    unread = {("ffcv", "jpeg_folder"), ("dali", "raw"), ("dali-gpu", "raw")}
    if (name, source) in unread or (name == "tiles" and not dataset.tiled):
        pytest.skip(f"{name} does not read this kind of data")
    if (name, source) in {("dali-gpu", like_another) for like_another in ("converted", "pyramid", "jpg")}:
        pytest.skip("a GPU is given the same kinds of JPEG as from tiled and jpeg_folder")
    rule, sizes = CROPS[crop]
    plan = make_plan(dataset, rule, sizes=sizes)
    (pixels,) = decode_with(name, dataset, [plan])
    assert_close_to_oracle(name, dataset, plan, pixels)


@pytest.mark.parametrize("rule", [plans.evaluation, plans.random_resized, plans.over_the_edge])
@pytest.mark.parametrize("name", BACKENDS)
def test_sizes_cropped_each_in_its_own_way_get_the_pixels_of_each_alone(name: str, rule: BoxRule) -> None:
    dataset = MemoryDataset(sources.SHAPES, tiled=name == "tiles")  # of one level, which serves every size
    plan = make_nested_plan(dataset, rule, sizes=(40, 32, 20))
    assert plan.size_boxes is not None
    alone = [
        plan.replace(step=Step((size,), len(plan)), boxes=plan.size_boxes[:, number], size_boxes=None)
        for number, size in enumerate(plan.step.sizes)
    ]
    (pixels,) = decode_with(name, dataset, [plan])
    assert_equal([pixels], [tuple(one for (one,) in decode_with(name, dataset, alone))])
    assert_close_to_oracle(name, dataset, plan, pixels)


@pytest.mark.parametrize("name", BACKENDS)
def test_crops_drawn_apart_have_the_pixels_of_the_oracle(name: str, pyramid: MemoryDataset) -> None:
    schedule = MultiCrop([View(40, 2, scale=(0.32, 1.0)), View(16, 8, scale=(0.05, 0.32))])
    level = pyramid.levels[0]
    planned = plan_epoch(
        schedule, SamplingPolicy(), epoch=0, heights=level.heights, widths=level.widths, batch_size=len(pyramid)
    )
    views = planned[0].views
    for view, pixels in zip(views, decode_with(name, pyramid, views, depth=2), strict=True):
        assert_close_to_oracle(name, pyramid, view, pixels)


@pytest.mark.parametrize("crop", ["random-resized", "enlarged", "evaluation", "one pixel", "outside", "several sizes"])
@pytest.mark.parametrize("name", BACKENDS)
def test_bicubic_pixels_are_those_of_the_oracle(name: str, crop: str, pyramid: MemoryDataset) -> None:
    rule, sizes = CROPS[crop]
    plan = make_plan(pyramid, rule, sizes=sizes)
    (pixels,) = decode_with(name, pyramid, [plan], interpolation="bicubic")
    (linear,) = decode_with(name, pyramid, [plan])
    assert_close_to_oracle(name, pyramid, plan, pixels, interpolation="bicubic")
    assert crop in ("one pixel", "outside") or not torch.equal(pixels[0], linear[0])


@pytest.mark.parametrize("name", BACKENDS)
def test_a_crop_with_context_is_a_part_of_the_resized_image(name: str) -> None:
    dataset = MemoryDataset([(128, 96)] * 3, tiled=name == "tiles")
    whole = make_plan(dataset, plans.whole, sizes=(64,))
    part = whole.replace(step=Step((32,), 3), boxes=np.tile([32.0, 24.0, 64.0, 48.0], (3, 1)))
    part.flips[:] = whole.flips[:] = False
    ((wanted,),) = decode_with("reference", dataset, [whole], interpolation="bicubic")
    ((found,),) = decode_with(name, dataset, [part.replace(context=True)], interpolation="bicubic")
    difference = (found.cpu().int() - wanted[:, 16:48, 16:48].int()).abs().float()
    assert difference.quantile(0.99) <= TOLERANCES[name][1]
    assert difference.max() <= TOLERANCES[name][2]


@pytest.mark.parametrize("name", BACKENDS)
def test_level_margin_is_followed(name: str, pyramid: MemoryDataset) -> None:
    plan = make_plan(pyramid, plans.whole, sizes=(16,))
    (near,), (far,) = (decode_with(name, pyramid, [plan], margin=margin) for margin in (1, 8))
    assert not torch.equal(near[0], far[0])
    assert_close_to_oracle(name, pyramid, plan, far, margin=8)


@pytest.mark.parametrize("name", BACKENDS)
def test_batches_that_change_at_every_step_come_back_in_order(name: str, pyramid: MemoryDataset) -> None:
    batches = varied_batches(pyramid)
    for plan, pixels in zip(batches, decode_with(name, pyramid, batches, depth=3), strict=True):
        assert_close_to_oracle(name, pyramid, plan, pixels)


@pytest.mark.parametrize("name", BACKENDS)
def test_samples_in_several_files_have_the_pixels_of_those_in_one(name: str, pyramid: MemoryDataset) -> None:
    parts = sources.split(pyramid)
    batches = varied_batches(pyramid)
    assert_equal(decode_with(name, parts, batches), decode_with(name, pyramid, batches))
    parts.damage(5)
    with closing(make(name, parts)) as backend:
        backend.submit(route(parts, make_plan(parts, plans.whole, sizes=(150,))))
        with pytest.raises(CorruptImageError, match="sample 5"):
            backend.collect()


@pytest.mark.parametrize("name", BACKENDS)
def test_stored_bytes_are_checked_where_they_are_decoded_and_once(name: str, pyramid: MemoryDataset) -> None:
    threads = list[str]()
    check = pyramid.check

    def count(index: int, level: int = 0) -> None:
        threads.append(threading.current_thread().name)
        check(index, level)

    pyramid.check = count  # type: ignore[method-assign]
    job = route(pyramid, make_plan(pyramid, plans.whole, sizes=(24,)))
    job.unchecked[:] = True
    with closing(make(name, pyramid)) as backend:
        for _ in range(2):
            backend.submit(job)
            backend.collect()
    assert len(threads) == len(pyramid)
    assert all(thread.startswith("respipe-") for thread in threads)


@pytest.mark.parametrize("name", BACKENDS)
def test_depth_and_threads_do_not_change_a_pixel(name: str, pyramid: MemoryDataset) -> None:
    batches = varied_batches(pyramid)
    expected = decode_with(name, pyramid, batches, depth=1, num_threads=1)
    # Pipelines take long to build on a GPU, and this builds all of them anew.
    others = [(2, 3), (6, 1)] if name == "dali-gpu" else itertools.product((1, 2, 6), (1, 3))
    for depth, num_threads in others:
        assert_equal(decode_with(name, pyramid, batches, depth=depth, num_threads=num_threads), expected)


@pytest.mark.parametrize("name", BACKENDS)
def test_other_images_of_the_batch_do_not_change_a_pixel(name: str, pyramid: MemoryDataset) -> None:
    together = make_plan(pyramid, plans.over_the_edge, sizes=(32,))
    together.boxes[::2] = make_plan(pyramid, plans.random_resized, sizes=(32,)).boxes[::2]
    alone = [
        BatchPlan(
            step=together.step,
            epoch=0,
            number=0,
            indices=together.indices[row : row + 1],
            boxes=together.boxes[row : row + 1],
            flips=together.flips[row : row + 1],
        )
        for row in range(len(together))
    ]
    ((expected,),) = decode_with(name, pyramid, [together])
    assert torch.equal(torch.cat([pixels for (pixels,) in decode_with(name, pyramid, alone, depth=2)]), expected)


@pytest.mark.parametrize("name", BACKENDS)
def test_collected_pixels_are_never_overwritten(name: str, pyramid: MemoryDataset) -> None:
    plan = make_plan(pyramid, plans.whole, sizes=(32, 24))
    others = [make_plan(pyramid, plans.random_resized, sizes=(32, 24), seed=seed) for seed in range(6)]
    with closing(make(name, pyramid)) as backend:
        (kept,) = decode(backend, pyramid, [plan])
        copy = tuple(tensor.clone() for tensor in kept)
        decode(backend, pyramid, others, depth=2)
    assert_equal([kept], [copy])


@pytest.mark.parametrize("name", BACKENDS)
def test_reset_forgets_what_was_not_collected(name: str, pyramid: MemoryDataset) -> None:
    first, *others = varied_batches(pyramid)
    with closing(make(name, pyramid)) as backend:
        for plan in others:
            backend.submit(route(pyramid, plan))
        backend.collect()
        backend.reset()
        (pixels,) = decode(backend, pyramid, [first])
    assert_equal([pixels], decode_with(name, pyramid, [first]))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_batch_may_be_empty(name: str, pyramid: MemoryDataset) -> None:
    empty = make_plan(pyramid, plans.whole, sizes=(32, 24), indices=[])
    full = make_plan(pyramid, plans.whole, sizes=(32, 24))
    nothing, something = decode_with(name, pyramid, [empty, full], depth=2)
    assert [tuple(tensor.shape) for tensor in nothing] == [(0, 32, 32, 3), (0, 24, 24, 3)]
    assert_close_to_oracle(name, pyramid, full, something)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("num_ahead", [0, 2])
def test_a_damaged_image_is_named_and_reset_repairs_the_backend(
    name: str, num_ahead: int, pyramid: MemoryDataset
) -> None:
    batches = varied_batches(pyramid)
    expected = decode_with(name, pyramid, batches)
    for level in range(3):
        pyramid.damage(4, level)
    whole = [plan for plan in batches if 4 not in plan.indices]
    damaged = make_plan(pyramid, plans.random_resized, sizes=(32,))
    with closing(make(name, pyramid)) as backend:
        decode(backend, pyramid, whole[:1])
        for _ in range(2):
            backend.submit(route(pyramid, damaged))
            for plan in whole[:num_ahead]:
                backend.submit(route(pyramid, plan))
            with pytest.raises(CorruptImageError, match=r"memory\.beton: sample 4 \(folder/4\.jpg") as caught:
                backend.collect()
            assert caught.value.index == 4
            backend.reset()
            sound = [pixels for plan, pixels in zip(batches, expected, strict=True) if 4 not in plan.indices]
            assert_equal(decode(backend, pyramid, whole, depth=2), sound)


@pytest.mark.parametrize("name", BACKENDS)
def test_reset_forgets_damage_that_was_not_collected(name: str, pyramid: MemoryDataset) -> None:
    sound = make_plan(pyramid, plans.whole, sizes=(16,), indices=[0, 1])
    expected = decode_with(name, pyramid, [sound])
    pyramid.damage(4)
    damaged = make_plan(pyramid, plans.whole, sizes=(150,))
    with closing(make(name, pyramid)) as backend:
        backend.submit(route(pyramid, sound))
        backend.submit(route(pyramid, damaged))
        backend.submit(route(pyramid, sound))
        backend.reset()
        assert_equal(decode(backend, pyramid, [sound]), expected)


@pytest.mark.parametrize("name", BACKENDS)
def test_closing_ends_every_thread_and_may_be_repeated(name: str, pyramid: MemoryDataset) -> None:
    batches = varied_batches(pyramid)

    def use() -> None:
        backend = make(name, pyramid)
        decode(backend, pyramid, batches[:2])
        for plan in batches:
            backend.submit(route(pyramid, plan))
        backend.close()
        backend.close()

    use()  # engines may start a thread of their own once
    before = num_threads()
    times = 4 if name == "dali-gpu" else 10
    for _ in range(times):
        use()
    # Less than one a time: the system takes a moment to remove the last threads.
    assert num_threads() < before + times


def num_threads() -> int:
    """Threads of this process, native ones included."""
    return len(list(Path("/proc/self/task").iterdir()))
