from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from respipe.conversion.pyramid import build_pyramid, encode
from respipe.conversion.settings import ConversionSettings
from respipe.jpeg.header import read_header
from respipe.jpeg.index import read_index
from respipe.jpeg.quantization import quantization_tables
from tests.memory_dataset import jpeg_bytes, smooth_image


def source(height: int, width: int, quality: int = 90) -> bytes:
    return jpeg_bytes(smooth_image(height, width, seed=height), quality=quality).tobytes()


@pytest.mark.parametrize(
    ("shape", "sizes", "distinct"),
    [
        ((375, 500), [(375, 500), (192, 256), (96, 128)], 3),
        ((600, 400), [(512, 341), (256, 171), (128, 85)], 3),
        ((200, 256), [(200, 256), (200, 256), (100, 128)], 2),
        ((90, 128), [(90, 128)] * 3, 1),
        ((3, 2), [(3, 2)] * 3, 1),
        ((1, 1000), [(1, 512), (1, 256), (1, 128)], 3),
    ],
)
def test_levels_fit_their_side_and_are_never_enlarged(
    shape: tuple[int, int], sizes: list[tuple[int, int]], distinct: int
) -> None:
    pyramid = build_pyramid(source(*shape), ConversionSettings(levels=(512, 256, 128)))
    assert [(image.height, image.width) for image in pyramid.images] == sizes
    assert len({id(image) for image in pyramid.images}) == distinct
    for image in pyramid.images:
        assert image.checksum == zlib.crc32(image.data)
        with Image.open(io.BytesIO(image.data)) as opened:
            assert opened.size == (image.width, image.height)
        assert image.tiled


@pytest.mark.parametrize("restart_interval", [0, 1, 2, 3, 5, 100])
def test_restart_intervals_divide_the_rows_of_mcus(restart_interval: int) -> None:
    settings = ConversionSettings(levels=(512, 256, 128), restart_interval=restart_interval)
    images = build_pyramid(source(200, 340), settings).images
    headers = [read_header(image.data) for image in images]
    # 340, 256 and 128 pixels are 22, 16 and 8 MCUs.
    expected = {0: [0, 0, 0], 1: [1, 1, 1], 2: [2, 2, 2], 3: [2, 2, 2], 5: [2, 4, 4], 100: [22, 16, 8]}
    assert [header.restart_interval for header in headers] == expected[restart_interval]
    for image, header in zip(images, headers, strict=True):
        assert image.tiled is (restart_interval > 0)
        offsets = read_index(image.data)
        assert (offsets is None) is (restart_interval == 0)
        if offsets is not None:
            assert len(offsets) == header.num_intervals + 1


def test_source_bytes_are_kept_on_demand_where_they_fit() -> None:
    data = source(100, 90)
    assert not build_pyramid(data, ConversionSettings()).kept
    kept = build_pyramid(data, ConversionSettings(keep="bytes"))
    assert kept.kept
    assert kept.images[0].data is data
    assert not kept.images[0].tiled
    large = build_pyramid(data, ConversionSettings(levels=(64,), keep="bytes"))
    assert not large.kept
    assert large.images[0].tiled
    assert large.traits == ("larger than 64 px",)


def test_jpeg_that_is_mostly_metadata_is_not_kept() -> None:
    data = source(20, 20)
    comments = b"".join(b"\xff\xfe\x80\x02" + bytes(0x8000) for _ in range(3))
    pyramid = build_pyramid(data[:2] + comments + data[2:], ConversionSettings(keep="bytes"))
    assert not pyramid.kept
    assert len(pyramid.images[0].data) < 4000


def quality_tables(data: bytes) -> tuple[tuple[int, ...], ...]:
    with Image.open(io.BytesIO(data)) as opened:
        tables: dict[int, list[int]] = opened.quantization  # pyright: ignore[reportAttributeAccessIssue]
        return tuple(tuple(table) for table in tables.values())


@pytest.mark.parametrize(("subsampling", "factors"), [("4:2:0", (2, 2)), ("4:2:2", (2, 1)), ("4:4:4", (1, 1))])
def test_reencoded_levels_follow_the_settings(subsampling: str, factors: tuple[int, int]) -> None:
    data = source(100, 140)
    settings = ConversionSettings(levels=(128, 64), quality=80, subsampling=subsampling)  # pyright: ignore[reportArgumentType]
    for image in build_pyramid(data, settings).images:
        header = read_header(image.data)
        assert header.sampling[0] == factors
        assert header.plain
        assert quality_tables(image.data) == quantization_tables(80)


@pytest.mark.parametrize(
    ("quality", "expected"), [(70, [70, 70, 70]), ((60, 80), [60, 80, 80]), ((60, 70, 80), [60, 70, 80])]
)
def test_each_level_has_its_quality(quality: int | tuple[int, ...], expected: list[int]) -> None:
    images = build_pyramid(source(200, 140), ConversionSettings(levels=(128, 64, 32), quality=quality)).images
    for image, wanted in zip(images, expected, strict=True):
        assert quality_tables(image.data) == quantization_tables(wanted)


@pytest.mark.parametrize(
    ("levels", "expected"), [((512, 344, 96), (80, 89, 89)), ((600, 400), 80), ((384, 64), 89), ((32,), 89)]
)
def test_large_levels_need_less_quality(levels: tuple[int, ...], expected: int | tuple[int, ...]) -> None:
    assert ConversionSettings(levels=levels).quality == expected


def test_small_images_have_the_quality_of_small_levels() -> None:
    settings = ConversionSettings(levels=(128, 64, 32), quality=(60, 70, 80))
    assert [settings.quality_of(side) for side in (128, 65, 64, 33, 32, 7)] == [60, 60, 70, 70, 80, 80]
    (first, *others) = build_pyramid(source(20, 30), settings).images
    assert others == [first, first]
    assert first.data == encode(Image.open(io.BytesIO(source(20, 30))), ConversionSettings(quality=80))[0]


def test_smaller_levels_are_as_sharp_as_lanczos_of_the_original() -> None:
    original = smooth_image(300, 400, seed=8)
    buffer = io.BytesIO()
    original.save(buffer, "PNG")
    settings = ConversionSettings(levels=(256, 64), quality=95, subsampling="4:4:4")
    small = build_pyramid(buffer.getvalue(), settings).images[1]
    with Image.open(io.BytesIO(small.data)) as opened:
        pixels = np.asarray(opened, np.float64)

    def error(resample: Image.Resampling) -> float:
        return float(np.abs(pixels - np.asarray(original.resize((64, 48), resample), np.float64)).mean())

    assert error(Image.Resampling.LANCZOS) < error(Image.Resampling.BICUBIC)
    assert error(Image.Resampling.LANCZOS) < error(Image.Resampling.BOX)


def test_largest_sample_fits_into_a_page() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    settings = ConversionSettings(levels=(512, 511, 510), quality=100, subsampling="4:4:4")
    images = build_pyramid(buffer.getvalue(), settings).images
    assert sum(len(image.data) for image in images) <= settings.page_size
    assert settings.page_size == 8 << 20
    assert ConversionSettings(levels=(4096,)).page_size == 128 << 20


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_pixels_that_no_jpeg_has_are_kept_at_fifty_decibels(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (28, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    pyramid = build_pyramid(buffer.getvalue(), ConversionSettings(levels=(64, 32, 16), keep="pixels"))
    assert "stored at quality 100" in pyramid.traits
    assert pyramid.images[0].tiled
    assert pyramid.images[1] is pyramid.images[0]
    with Image.open(io.BytesIO(pyramid.images[0].data)) as opened:
        error = ((np.asarray(opened, np.float64) - noise) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 50
    with Image.open(io.BytesIO(pyramid.images[2].data)) as opened:
        assert max(opened.size) == 16
