from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from respipe.jpeg.quantization import quantization_tables
from tests.memory_dataset import jpeg_bytes, smooth_image


def standard_tables(quality: int) -> list[np.ndarray]:
    with Image.open(io.BytesIO(jpeg_bytes(smooth_image(8, 8, seed=0), quality=quality))) as image:
        tables: dict[int, list[int]] = image.quantization  # pyright: ignore[reportAttributeAccessIssue]
        return [np.array(table) for table in tables.values()]


@pytest.mark.parametrize("quality", range(1, 101))
def test_steps_fit_a_baseline_jpeg(quality: int) -> None:
    for table in quantization_tables(quality):
        assert len(table) == 64
        assert all(1 <= step <= 255 for step in table)


def test_the_best_quality_only_rounds() -> None:
    assert quantization_tables(100) == ((1,) * 64, (1,) * 64)


def test_better_quality_has_smaller_steps() -> None:
    for worse in range(1, 100):
        for larger, smaller in zip(quantization_tables(worse), quantization_tables(worse + 1), strict=True):
            assert np.all(np.array(larger) >= smaller)
        assert worse < 10 or sum(quantization_tables(worse)[0]) > sum(quantization_tables(worse + 1)[0])


@pytest.mark.parametrize("quality", [50, 80, 90])
def test_luma_lies_between_the_standard_table_and_a_flat_one(quality: int) -> None:
    luma = np.array(quantization_tables(quality)[0])
    standard = standard_tables(quality)[0]
    assert luma.max() / luma.min() < standard.max() / standard.min()
    assert np.all((luma - luma[0]) * (standard - standard[0]) >= 0)


@pytest.mark.parametrize("quality", [50, 80, 90])
def test_chroma_is_finer_than_the_standard_at_all_but_the_lowest_frequencies_and_alike_at_all(quality: int) -> None:
    chroma = np.array(quantization_tables(quality)[1])
    assert len(set(chroma.tolist())) == 1
    assert np.mean(chroma < standard_tables(quality)[1]) > 0.8


def noisy_image(seed: int) -> Image.Image:
    """Something with detail in brightness and colour at all frequencies, less at high ones, as photographs have."""
    rng = np.random.default_rng(seed)
    pixels = np.full((192, 256, 3), 128.0)
    for side in (4, 8, 16, 32, 64, 128):
        coarse = Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8))
        pixels += (np.asarray(coarse.resize((256, 192), Image.Resampling.BICUBIC), float) - 128) * 4 / side**0.9
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("seed", range(3))
def test_a_quality_is_worth_at_least_that_of_the_standard_tables_in_psnr(seed: int) -> None:
    image = noisy_image(seed)

    def error(**options: object) -> float:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", subsampling="4:2:0", **options)
        with Image.open(buffer) as opened:
            return float(np.square(np.asarray(opened, float) - np.asarray(image, float)).mean())

    assert error(qtables=quantization_tables(80)) <= 1.1 * error(quality=80)
