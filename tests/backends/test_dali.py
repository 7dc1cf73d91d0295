"""What is particular to the DALI backend: formats, files that go missing, damage that only DALI sees."""

from __future__ import annotations

import ctypes
import io
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from respipe.backends.dali import hardware
from respipe.backends.dali import pipeline as dali_pipeline
from respipe.backends.dali.backend import DaliBackend
from respipe.backends.dali.pipeline import DaliPipeline, Variant
from respipe.backends.reference import crop_and_resize
from respipe.backends.registry import make_backend
from respipe.backends.routing import hull, route
from respipe.errors import CorruptImageError
from respipe.storage.dataset import Dataset
from respipe.storage.folder import FolderDataset
from respipe.storage.upright import decode
from tests import plans
from tests.backends import sources
from tests.engines import needs_dali
from tests.memory_dataset import smooth_image
from tests.plans import BoxRule, make_plan

CPU = torch.device("cpu")
PICTURE = smooth_image(61, 83, seed=1)
TRANSPARENT = PICTURE.copy()
TRANSPARENT.putalpha(smooth_image(61, 83, seed=2).convert("L"))
WIDE = Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257)
INK = Image.merge("CMYK", [smooth_image(61, 83, seed=seed).convert("L") for seed in range(4)])


def encode(image: Image.Image, kind: str, *, orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    if orientation > 1:
        exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


FORMATS = {
    **{f"JPEG turned {way}": encode(PICTURE, "JPEG", orientation=way) for way in range(2, 9)},
    "PNG turned": encode(PICTURE, "PNG", orientation=6),
    "grayscale JPEG": encode(PICTURE.convert("L"), "JPEG"),
    "CMYK JPEG": encode(INK, "JPEG"),
    "progressive JPEG": encode(PICTURE, "JPEG", progressive=True),
    "JPEG 4:4:4": encode(PICTURE, "JPEG", subsampling=0),
    "JPEG with RGB channels": encode(PICTURE, "JPEG", keep_rgb=True),
    "PNG": encode(PICTURE, "PNG"),
    "PNG with alpha": encode(TRANSPARENT, "PNG"),
    "grayscale PNG with alpha": encode(TRANSPARENT.convert("LA"), "PNG"),
    "palette PNG": encode(PICTURE.quantize(64), "PNG"),
    "transparent palette PNG": encode(PICTURE.quantize(64), "PNG", transparency=3),
    "1-bit PNG": encode(PICTURE.convert("1"), "PNG"),
    "16-bit PNG": encode(WIDE, "PNG"),
    "WebP": encode(PICTURE, "WEBP"),
    "WebP with alpha": encode(TRANSPARENT, "WEBP", lossless=True),
    "BMP": encode(PICTURE, "BMP"),
    "GIF": encode(PICTURE, "GIF"),
}


def folder_of(path: Path, *files: bytes) -> FolderDataset:
    (path / "class").mkdir()
    for number, data in enumerate(files):
        # Extensions lie in real datasets, too.
        (path / "class" / f"{number}.jpg").write_bytes(data)
    return FolderDataset(path)


def make(dataset: Dataset, device: torch.device = CPU) -> DaliBackend:
    return DaliBackend(dataset, num_threads=2, device=device)


@needs_dali
@pytest.mark.parametrize("rule", [plans.whole, plans.evaluation, plans.over_the_edge])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_upright_rgb(kind: str, rule: BoxRule, tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, FORMATS[kind])
    plan = make_plan(dataset, rule, sizes=(64,))
    with closing(make(dataset)) as backend:
        backend.submit(route(dataset, plan))
        ((found,),) = backend.collect()
    upright = decode(FORMATS[kind]).image
    expected = crop_and_resize(upright, plan.boxes[0], hull(plan.boxes)[0], size=64, flip=False)
    difference = np.abs(found.numpy().astype(int) - expected)
    assert difference.mean() < 1.0
    assert difference.max() <= 8


@needs_dali
def test_a_file_that_is_gone_is_reported_in_its_turn(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, *[FORMATS["PNG"]] * 3)
    (tmp_path / "class" / "1.jpg").unlink()
    first, second, third = (make_plan(dataset, plans.whole, sizes=(16,), indices=[index]) for index in range(3))
    with closing(make(dataset)) as backend:
        for plan in (first, second, third):
            backend.submit(route(dataset, plan))
        (before,) = backend.collect()
        with pytest.raises(CorruptImageError, match="sample 1"):
            backend.collect()
        backend.reset()
        backend.submit(route(dataset, third))
        (after,) = backend.collect()
    assert torch.equal(before, after)  # the same picture


@needs_dali
@pytest.mark.parametrize("data", [b"\0", FORMATS["PNG"][:100], FORMATS["progressive JPEG"][:300]])
def test_a_file_cut_off_at_its_head_is_corrupt(data: bytes, tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, FORMATS["PNG"], FORMATS["BMP"])
    (tmp_path / "class" / "0.jpg").write_bytes(data)
    with closing(make(dataset)) as backend:
        backend.submit(route(dataset, make_plan(dataset, plans.whole, sizes=(16,))))
        with pytest.raises(CorruptImageError, match="sample 0"):
            backend.collect()


@needs_dali
def test_an_image_smaller_than_recorded_is_corrupt(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, FORMATS["PNG"], FORMATS["BMP"])
    (tmp_path / "class" / "0.jpg").write_bytes(encode(PICTURE.resize((20, 20)), "PNG"))
    with closing(make(dataset)) as backend:
        backend.submit(route(dataset, make_plan(dataset, plans.whole, sizes=(16,))))
        with pytest.raises(CorruptImageError, match=r"sample 0 .*another size.*20 x 20"):
            backend.collect()


@needs_dali
def test_a_failure_that_no_image_causes_is_not_blamed_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    collect = DaliPipeline.collect

    def fail_on_batches(pipeline: DaliPipeline) -> tuple[torch.Tensor, ...]:
        pixels = collect(pipeline)
        if pipeline.max_batch_size > 1:
            raise RuntimeError("out of memory")
        return pixels

    dataset = sources.pyramid()
    with closing(make(dataset)) as backend:
        backend.submit(route(dataset, make_plan(dataset, plans.whole, sizes=(16,))))
        monkeypatch.setattr(DaliPipeline, "collect", fail_on_batches)
        with pytest.raises(RuntimeError, match="out of memory"):
            backend.collect()


@needs_dali
@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("Error in mixed operator: CUDA runtime API error cudaErrorMemoryAllocation (2): out of memory"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Error in CPU operator: std::bad_alloc"),
        MemoryError(),
    ],
)
def test_errors_of_memory_and_cuda_are_never_blamed_on_an_image(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: DaliPipeline) -> None:
        raise error

    dataset = sources.pyramid()
    plan = make_plan(dataset, plans.whole, sizes=(16,))
    with closing(make(dataset)) as backend:
        backend.submit(route(dataset, plan))
        with monkeypatch.context() as patch:
            # On a machine that has no memory left, each image fails alone, too.
            patch.setattr(DaliPipeline, "collect", fail)
            with pytest.raises(type(error)) as caught:
                backend.collect()
        assert caught.value is error
        backend.reset()
        backend.submit(route(dataset, plan))
        assert len(backend.collect()[0]) == len(plan)


@needs_dali
def test_a_pipeline_is_built_once_for_the_largest_batch_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    build = dali_pipeline._build

    def count(variant: Variant, max_batch_size: int, *others: Any) -> Any:
        built.append(max_batch_size)
        return build(variant, max_batch_size, *others)

    monkeypatch.setattr(dali_pipeline, "_build", count)
    dataset = sources.pyramid()
    with closing(make(dataset)) as backend:
        backend.prepare(lambda: 7)
        for length in (1, 4, 7, 2):
            backend.submit(route(dataset, make_plan(dataset, plans.whole, sizes=(16,), indices=list(range(length)))))
            assert len(backend.collect()[0]) == length
    assert built == [7]


def test_a_gpu_has_one_pipeline_for_crops_inside_and_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    variants: list[Variant] = []

    def build(variant: Variant, **_: object) -> Any:
        variants.append(variant)
        return SimpleNamespace(max_batch_size=100, submit=lambda *_: None, collect=lambda: (), close=lambda: None)

    monkeypatch.setattr("respipe.backends.dali.backend.DaliPipeline", build)
    monkeypatch.setattr("respipe.backends.dali.backend.import_dali", lambda: None)
    dataset = sources.pyramid()
    with closing(make(dataset, torch.device("cuda", 0))) as backend:
        for rule in (plans.whole, plans.over_the_edge, plans.whole):
            backend.submit(route(dataset, make_plan(dataset, rule, sizes=(16,))))
    assert len(variants) == 1


def test_the_host_waits_for_no_batch_on_the_gpu_but_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    stream = object()  # has nothing to wait with

    class Event:
        count = 0

        def __init__(self, *, blocking: bool) -> None:
            self.number, Event.count = Event.count, Event.count + 1

        def record(self, on: object) -> None:
            assert on is stream
            log.append(f"copies {self.number}")

        def synchronize(self) -> None:
            log.append(f"wait {self.number}")

    class Pipe:
        theirs = torch.arange(3, dtype=torch.uint8)

        def outputs(self, on: object) -> Any:
            assert on is stream, "without a stream, DALI waits for the GPU"
            return [SimpleNamespace(as_tensor=lambda: self.theirs)]

        def _shutdown(self) -> None:
            log.append("end")

    pipe = Pipe()
    monkeypatch.setattr(dali_pipeline, "_build", lambda *_: pipe)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    pipeline = DaliPipeline(Variant(1, padded=True), max_batch_size=4, num_threads=1, device=torch.device("cuda", 0))
    pipeline._in_flight.extend([[], [], []])
    found = [pipeline.collect() for _ in range(3)]
    pipeline.close()
    assert log == ["copies 0", "copies 1", "wait 0", "copies 2", "wait 1", "wait 2", "end"]
    assert all(torch.equal(copy, pipe.theirs) and copy.data_ptr() != pipe.theirs.data_ptr() for (copy,) in found)


@needs_dali
def test_a_gpu_that_has_failed_is_not_blamed_on_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    dataset = sources.pyramid()
    with closing(make(dataset)) as backend:
        backend.submit(route(dataset, make_plan(dataset, plans.whole, sizes=(16,))))
        monkeypatch.setattr(DaliPipeline, "collect", fail)
        monkeypatch.setattr(torch.cuda, "synchronize", fail)
        monkeypatch.setattr(backend, "_device", torch.device("cuda", 0))
        with pytest.raises(RuntimeError, match="illegal memory access") as caught:
            backend.collect()
        assert not isinstance(caught.value, CorruptImageError)
        monkeypatch.undo()


@needs_dali
def test_pixels_outlive_the_backend() -> None:
    dataset = sources.tiled()
    backend = make(dataset)
    backend.submit(route(dataset, make_plan(dataset, plans.whole, sizes=(32,))))
    (pixels,) = backend.collect()
    copy = pixels.clone()
    backend.close()
    del backend
    assert torch.equal(pixels, copy)


@needs_dali
def test_a_backend_dropped_with_batches_in_flight_ends_cleanly() -> None:
    for _ in range(5):
        dataset = sources.tiled()
        backend = make(dataset)
        for size in (16, 24, 32):
            backend.submit(route(dataset, make_plan(dataset, plans.random_resized, sizes=(size,))))
        del backend, dataset


@needs_dali
def test_raw_pixels_are_refused_with_the_remedy() -> None:
    dataset = sources.pyramid()
    dataset.levels[1].raw[3] = True
    with pytest.raises(ValueError, match=r"`backend`.*raw pixels.*'ffcv' or 'reference'"):
        make_backend("dali", dataset, device=CPU, num_threads=1)


@needs_dali
@pytest.mark.gpu
def test_gpu_pixels_lie_on_the_gpu_and_are_safe_to_drop() -> None:
    device = torch.device("cuda")
    dataset = sources.tiled()
    batches = [make_plan(dataset, plans.random_resized, sizes=(64,), seed=seed) for seed in range(8)]
    with closing(make(dataset, device)) as backend:
        expected = []
        for plan in batches:
            backend.submit(route(dataset, plan))
            expected.append(backend.collect()[0].cpu())
        found = []
        for plan in batches:
            backend.submit(route(dataset, plan))
        for _ in batches:
            (pixels,) = backend.collect()
            assert pixels.device.type == "cuda"
            torch.cuda._sleep(10_000_000)
            found.append(pixels.float())
            del pixels
    assert all(torch.equal(some.cpu().byte(), other) for some, other in zip(found, expected, strict=True))


@needs_dali
@pytest.mark.gpu
@pytest.mark.parametrize("load", [0.0, 1.0])
def test_a_busy_gpu_changes_no_pixel(load: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hardware engine that began before its stream had reached it would write over, or be written over."""
    device = torch.device("cuda")
    monkeypatch.setattr(dali_pipeline, "HW_DECODER_LOAD", load)
    dataset = sources.tiled()
    batches = [
        make_plan(dataset, plans.random_resized, sizes=(64,), seed=seed, indices=[*range(len(dataset))] * 8)
        for seed in range(200)
    ]
    side, factor = torch.cuda.Stream(), torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    with closing(make(dataset, device)) as backend:
        backend.prepare(lambda: len(batches[0]))
        quiet = []
        for plan in batches:
            backend.submit(route(dataset, plan))
            quiet.append(backend.collect()[0].cpu())
            torch.cuda.synchronize()
        for number, plan in enumerate(batches):
            if number % 2 == 0:
                with torch.cuda.stream(side):
                    for _ in range(8):  # fills all multiprocessors for some milliseconds
                        factor @ factor
            backend.submit(route(dataset, plan))
            if number:
                assert torch.equal(backend.collect()[0].cpu(), quiet[number - 1]), number - 1
        assert torch.equal(backend.collect()[0].cpu(), quiet[-1])
        torch.cuda.synchronize()


# What a GPU has for JPEGs


class Nvjpeg:
    """nvJPEG as far as engines are concerned."""

    def __init__(self, engines: int, *, create: int = 0, info: int = 0) -> None:
        self.engines, self.statuses, self.open = engines, (create, info), 0

    def nvjpegCreateEx(self, backend: int, _dev: None, _host: None, flags: int, handle: Any) -> int:  # noqa: N802
        assert (backend, flags) == (3, 0)
        self.open += self.statuses[0] == 0
        return self.statuses[0]

    def nvjpegGetHardwareDecoderInfo(self, _handle: Any, engines: Any, _cores: Any) -> int:  # noqa: N802
        ctypes.cast(engines, ctypes.POINTER(ctypes.c_uint))[0] = self.engines
        return self.statuses[1]

    def nvjpegDestroy(self, _handle: Any) -> int:  # noqa: N802
        self.open -= 1
        return 0


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        (Nvjpeg(5), 5),
        (Nvjpeg(0), 0),  # a slice of a GPU that has engines
        (Nvjpeg(5, create=7), 0),  # an architecture without
        (Nvjpeg(5, create=1), None),
        (Nvjpeg(5, info=6), None),
        (None, None),
    ],
)
def test_engines_are_counted_by_nvjpeg(
    library: Nvjpeg | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_nvjpeg", lambda: library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert hardware.jpeg_engines.__wrapped__(torch.device("cuda", 0)) == expected
    assert library is None or library.open == 0


@needs_dali
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no CUDA")
def test_nvjpeg_is_found_where_dali_is_installed() -> None:
    assert all(hasattr(hardware._nvjpeg(), name) for name in ("nvjpegCreateEx", "nvjpegGetHardwareDecoderInfo"))


@pytest.mark.gpu
def test_engines_of_this_gpu_can_be_counted() -> None:
    assert hardware.jpeg_engines(torch.device("cuda", 0)) in {None, *range(17)}
