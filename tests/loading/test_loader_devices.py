"""Loaders that place batches on the CPU or on a GPU: values, streams, memory, damage and resuming.

What holds on a GPU holds on a CPU too, so that these checks are themselves checked where there is no GPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import respipe
from respipe.errors import CorruptImageError
from respipe.loading.loader import Loader
from respipe.loading.placement import HandOver, Placement
from respipe.schedules import Constant, MixSize
from tests.engines import needs_dali, needs_ffcv
from tests.loaders import SCHEDULE, InTurn, Mixed, make
from tests.memory_dataset import MemoryDataset

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BACKENDS = ["reference", "tiles", pytest.param("ffcv", marks=needs_ffcv), pytest.param("dali", marks=needs_dali)]
SHAPES = [(90 + 30 * i % 70, 160 - 50 * i % 70) for i in range(24)]

# Largest accepted mean and 99th percentile of the difference between nvJPEG's pixels and libjpeg-turbo's, in grey
# levels. Both decoders may round every coefficient's share and the upsampled chroma differently; a wrong crop, order or
# channel costs these images tens of levels.
NVJPEG = (1.5, 6.0)


def make_loader(schedule: Any = SCHEDULE, **options: Any) -> Loader:
    return make(MemoryDataset(SHAPES, fractions=(0.5,), tiled=True), schedule, stall_timeout=60, **options)


def tensors(images: Any) -> tuple[torch.Tensor, ...]:
    return images if isinstance(images, tuple) else (images,)


# Values


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_raw_pixels_are_those_of_the_cpu(backend: str, device: str) -> None:
    options: dict[str, Any] = {"backend": backend, "dtype": torch.uint8, "normalize": None}
    with make_loader(Mixed(), **options) as host, make_loader(Mixed(), device=device, **options) as loader:
        # Kept, so that memory handed back too early would show.
        for (expected, labels, plan), (images, placed_labels, placed_plan) in zip(
            list(host), list(loader), strict=True
        ):
            assert placed_plan.indices.tolist() == plan.indices.tolist()
            assert placed_labels.device.type == device
            assert torch.equal(placed_labels.cpu(), labels)
            for found, wanted in zip(tensors(images), tensors(expected), strict=True):
                assert found.device.type == device
                assert found.is_contiguous(memory_format=torch.channels_last)
                if (backend, device) != ("dali", "cuda"):
                    assert torch.equal(found.cpu(), wanted)
                    continue
                difference = np.abs(found.cpu().numpy().astype(int) - wanted.numpy())
                measured = difference.mean(), np.percentile(difference, 99)
                assert all(np.array(measured) <= NVJPEG), measured


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_short_floats_are_the_rounded_long_ones(backend: str, device: str) -> None:
    # DALI's own pixels on the same device, since its decoders differ; everyone else's are those of the CPU.
    expected_device = device if backend == "dali" else "cpu"
    with make_loader(backend=backend, device=expected_device) as loader:
        expected = [images.cpu() for images, _, _ in loader]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with make_loader(backend=backend, device=device, dtype=dtype) as loader:
            for (images, _, _), wanted in zip(loader, expected, strict=True):
                assert (images.dtype, images.device.type) == (dtype, device)
                assert images.is_contiguous(memory_format=torch.channels_last)
                torch.testing.assert_close(images.cpu().float(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-6)


# Streams


def sleep(device: str) -> None:
    """Keep the current stream, or the CPU, busy for some milliseconds."""
    if device == "cuda":
        torch.cuda._sleep(10_000_000)
    else:
        time.sleep(0.002)


def copies(loader: Iterable[Any], device: str, *, slow: bool) -> list[tuple[torch.Tensor, ...]]:
    """What the current stream reads of each batch when it comes to it, which may be long after it was dropped."""
    found: list[tuple[torch.Tensor, ...]] = []
    for images, labels, _ in loader:
        if slow:
            sleep(device)
        found.append(tuple(tensor.clone() for tensor in (*tensors(images), labels)))
    return found


def synchronised(loader: Iterable[Any], device: str) -> Iterator[Any]:
    """The batches, each once the whole GPU has nothing more to do."""
    for batch in loader:
        if device == "cuda":
            torch.cuda.synchronize()
        yield batch


def assert_same(found: list[tuple[torch.Tensor, ...]], expected: list[tuple[torch.Tensor, ...]]) -> None:
    for number, (batch, wanted) in enumerate(zip(found, expected, strict=True)):
        for one, other in zip(batch, wanted, strict=True):
            assert torch.equal(one, other), f"batch {number} at {tuple(one.shape)}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_pace_and_no_stream_changes_a_batch(backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Placement.images

    def place_slowly(*arguments: Any) -> torch.Tensor:
        sleep(device)
        return place(*arguments)

    side_stream = torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext()
    # Raw pixels are what backends hand out, and might use again. DALI has copied its own before they are placed, so
    # that only what is computed from them might be read too early.
    options: dict[str, Any] = {} if backend == "dali" else {"dtype": torch.uint8, "normalize": None}
    with make_loader(Mixed(), backend=backend, device=device, **options) as loader:
        expected = copies(synchronised(loader, device), device, slow=False)
        loader.set_epoch(0)
        assert_same(copies(loader, device, slow=True), expected)
        with side_stream:
            loader.set_epoch(0)
            slow = copies(loader, device, slow=True)
            with monkeypatch.context() as patch:
                patch.setattr(Placement, "images", place_slowly)
                loader.set_epoch(0)
                fast = copies(loader, device, slow=False)
            if device == "cuda":
                torch.cuda.current_stream().synchronize()
        assert_same(slow, expected)
        assert_same(fast, expected)
        loader.set_epoch(0)
        kept = [(*tensors(images), labels) for images, labels, _ in loader]
        list(loader)  # another epoch must not write over them
        assert_same(kept, expected)


# Memory


def used_mib(device: str) -> float:
    """Memory in use on the GPU by whatever, or resident on the host."""
    if device == "cuda":
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGESIZE / 2**20


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["tiles", pytest.param("dali", marks=needs_dali)])
def test_memory_stays_flat_over_size_changes(backend: str, device: str) -> None:
    schedule = MixSize({160: 0.3, 128: 0.4, 96: 0.3}, base_size=128, grow="both", weighting="steps")
    options: dict[str, Any] = {"batch_size": 8, "backend": backend, "device": device, "dtype": torch.bfloat16}
    used: list[float] = []
    with make_loader(schedule, **options) as loader:
        for _ in range(100):
            for images, _, _ in loader:
                images.float().mean()
            used.append(used_mib(device))
    # An allocator that kept the memory of every epoch apart would ask for 20 MiB or more each time.
    assert max(used[10:]) - max(used[:10]) < 128, used


def test_a_backend_is_told_of_the_largest_batch_of_all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr("respipe.backends.pool.PooledBackend.prepare", lambda _, number: told.append(number()))
    schedule = MixSize({64: 0.5, 32: 0.5}, base_size=64, grow="both", weighting="steps")
    with make_loader(schedule, backend="reference", batch_size=4) as loader:
        lengths = {len(labels) for _ in range(8) for _, labels, _ in loader}
    assert told == [max(lengths)] * 8
    assert len(lengths) > 1


@pytest.mark.gpu
def test_memory_is_bounded_however_far_the_host_runs_ahead() -> None:
    size, batch = 160, 2
    options: dict[str, Any] = {"batch_size": batch, "backend": "tiles", "device": "cuda", "num_prefetch": 2}
    peaks: list[int] = []
    with make_loader(Constant(size), **options) as loader:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(10):
            for images, _, _ in loader:
                torch.cuda._sleep(20_000_000)  # some 10 ms of work that take the host none
                images.mean()
            peaks.append(torch.cuda.max_memory_allocated() - before)
    # Those that wait, one in the thread's hands with what it is computed from, and those in use.
    bound = (2 + 2 + HandOver().most + 1) * batch * 3 * size**2 * 4
    assert max(peaks) <= bound, (peaks, bound)


# Damage


def damaged_dataset(kind: str) -> MemoryDataset:
    """Without checksums, so that only the decoder can notice."""
    dataset = MemoryDataset(SHAPES, checksums=False)
    stored = dataset.encoded(3)
    if kind == "header":
        dataset.damage(3)
    elif kind == "cut off":
        stored[len(stored) // 2 :] = 0
    elif kind == "scan":
        middle = slice(len(stored) // 2, len(stored) // 2 + 200)
        stored[middle] = np.random.default_rng(0).integers(0, 256, 200)
    return dataset


def pixels_by_sample(dataset: MemoryDataset, device: str) -> tuple[dict[int, torch.Tensor], list[int]]:
    """An evaluation's images by sample, and the samples left out."""
    with make(
        dataset,
        Constant(32),
        backend="dali",
        device=device,
        training=False,
        on_corrupt="quarantine",
        stall_timeout=60,
    ) as loader:
        found = {
            sample: pixels
            for images, _, plan in loader
            for sample, pixels in zip(plan.indices.tolist(), images.cpu(), strict=True)
        }
        return found, sorted(loader.quarantined)


@needs_dali
@pytest.mark.parametrize("device", DEVICES)
def test_damage_that_the_decoder_finds_is_raised_with_its_name(device: str) -> None:
    with (
        make(damaged_dataset("header"), Constant(32), backend="dali", device=device, stall_timeout=60) as loader,
        pytest.raises(CorruptImageError, match="sample 3") as caught,
    ):
        list(loader)
    assert caught.value.index == 3


@needs_dali
@pytest.mark.parametrize("device", DEVICES)
def test_damage_neither_hangs_nor_reaches_other_samples(device: str) -> None:
    expected, none = pixels_by_sample(damaged_dataset("none"), device)
    assert (len(expected), none) == (len(SHAPES), [])
    for kind in ("header", "cut off", "scan"):
        found, quarantined = pixels_by_sample(damaged_dataset(kind), device)
        # A decoder may take what is left of a damaged scan for an image; checksums are what finds that.
        assert quarantined in ([[3]] if kind == "header" else [[], [3]])
        assert sorted(found) == [sample for sample in range(len(SHAPES)) if sample not in quarantined]
        for sample in found.keys() - {3}:
            assert torch.equal(found[sample], expected[sample]), f"{kind}: sample {sample}"


# Resuming


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tiles", pytest.param("dali", marks=needs_dali)])
def test_loaders_on_a_gpu_resume_exactly(backend: str) -> None:
    loader = partial(make_loader, InTurn(), backend=backend, device="cuda", dtype=torch.bfloat16)
    respipe.testing.assert_resumes_exactly(loader, num_epochs=len(InTurn.schedules), steps=(1, 8, 21), tail=6)
