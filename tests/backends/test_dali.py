"""What is particular to the DALI backend: formats, files that go missing, damage that only DALI sees."""

from __future__ import annotations

import io
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from respipe.backends.dali.backend import DaliBackend
from respipe.backends.dali.pipeline import DaliPipeline
from respipe.backends.reference import crop_and_resize
from respipe.errors import CorruptImageError, MissingBackendError
from respipe.planning.boxes import hull
from respipe.storage.dataset import Dataset
from respipe.storage.folder import FolderDataset
from respipe.storage.upright import upright_rgb
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
        backend.submit(plan)
        ((found,),) = backend.collect()
    upright = upright_rgb(Image.open(io.BytesIO(FORMATS[kind])))
    expected = crop_and_resize(upright, plan.boxes[0], hull(plan.boxes)[0], size=64, flip=False)
    difference = np.abs(found.numpy().astype(int) - expected)
    assert difference.mean() < 1.0
    assert difference.max() <= 8


@needs_dali
def test_a_format_that_dali_does_not_know_names_the_sample(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, FORMATS["PNG"], encode(PICTURE, "GIF"), FORMATS["BMP"])
    with closing(make(dataset)) as backend:
        backend.submit(make_plan(dataset, plans.whole, sizes=(16,)))
        with pytest.raises(CorruptImageError, match=r"sample 1 .*backend='reference'") as caught:
            backend.collect()
    assert caught.value.index == 1


@needs_dali
def test_a_file_that_is_gone_is_reported_in_its_turn(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, *[FORMATS["PNG"]] * 3)
    (tmp_path / "class" / "1.jpg").unlink()
    first, second, third = (make_plan(dataset, plans.whole, sizes=(16,), indices=[index]) for index in range(3))
    with closing(make(dataset)) as backend:
        for plan in (first, second, third):
            backend.submit(plan)
        (before,) = backend.collect()
        with pytest.raises(CorruptImageError, match="sample 1"):
            backend.collect()
        backend.reset()
        backend.submit(third)
        (after,) = backend.collect()
    assert torch.equal(before, after)  # the same picture


@needs_dali
@pytest.mark.parametrize("data", [b"\0", FORMATS["PNG"][:100], FORMATS["progressive JPEG"][:300]])
def test_a_file_cut_off_at_its_head_is_corrupt(data: bytes, tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, FORMATS["PNG"], FORMATS["BMP"])
    (tmp_path / "class" / "0.jpg").write_bytes(data)
    with closing(make(dataset)) as backend:
        backend.submit(make_plan(dataset, plans.whole, sizes=(16,)))
        with pytest.raises(CorruptImageError, match="sample 0"):
            backend.collect()


@needs_dali
def test_an_image_smaller_than_recorded_is_corrupt(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, FORMATS["PNG"], FORMATS["BMP"])
    (tmp_path / "class" / "0.jpg").write_bytes(encode(PICTURE.resize((20, 20)), "PNG"))
    with closing(make(dataset)) as backend:
        backend.submit(make_plan(dataset, plans.whole, sizes=(16,)))
        with pytest.raises(CorruptImageError, match=r"sample 0 .* 20 x 20 pixels where 83 x 61"):
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
        backend.submit(make_plan(dataset, plans.whole, sizes=(16,)))
        monkeypatch.setattr(DaliPipeline, "collect", fail_on_batches)
        with pytest.raises(RuntimeError, match="out of memory"):
            backend.collect()


@needs_dali
def test_a_gpu_that_has_failed_is_not_blamed_on_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    dataset = sources.pyramid()
    with closing(make(dataset)) as backend:
        backend.submit(make_plan(dataset, plans.whole, sizes=(16,)))
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
    backend.submit(make_plan(dataset, plans.whole, sizes=(32,)))
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
            backend.submit(make_plan(dataset, plans.random_resized, sizes=(size,)))
        del backend, dataset


@needs_dali
def test_raw_pixels_are_refused_with_the_remedy() -> None:
    dataset = sources.pyramid()
    dataset.levels[1].raw[3] = True
    with pytest.raises(ValueError, match=r"`backend`.*raw pixels.*'ffcv' or 'reference'"):
        make(dataset)


def test_missing_dali_is_reported_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(MissingBackendError, match=r"pip install 'respipe\[dali-cuda1[23]\]'$"):
        make(sources.pyramid())


@needs_dali
@pytest.mark.gpu
def test_gpu_pixels_lie_on_the_gpu_and_are_safe_to_drop() -> None:
    device = torch.device("cuda")
    dataset = sources.tiled()
    batches = [make_plan(dataset, plans.random_resized, sizes=(64,), seed=seed) for seed in range(8)]
    with closing(make(dataset, device)) as backend:
        expected = []
        for plan in batches:
            backend.submit(plan)
            expected.append(backend.collect()[0].cpu())
        found = []
        for plan in batches:
            backend.submit(plan)
        for _ in batches:
            (pixels,) = backend.collect()
            assert pixels.device.type == "cuda"
            torch.cuda._sleep(10_000_000)
            found.append(pixels.float())
            del pixels
    assert all(torch.equal(some.cpu().byte(), other) for some, other in zip(found, expected, strict=True))
