"""What respipe encodes is a standard JPEG: every decoder makes the same of it with and without restart markers."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from respipe.conversion.pyramid import encode
from respipe.conversion.settings import ConversionSettings, Subsampling
from respipe.jpeg.header import read_header, segments
from respipe.jpeg.huffman import AC_CHROMA, AC_LUMA, DC_CHROMA, DC_LUMA
from respipe.jpeg.quantization import quantization_tables
from tests.engines import needs_dali
from tests.memory_dataset import smooth_image


def with_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def with_simplejpeg(data: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(data)


def with_opencv(data: bytes) -> np.ndarray:
    cv2: Any = pytest.importorskip("cv2")
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def with_dali(data: bytes) -> np.ndarray:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def decoding() -> Any:
        return fn.decoders.image(fn.external_source([[np.frombuffer(data, np.uint8)]]), device="cpu")

    pipeline: Any = decoding()
    pipeline.build()
    return np.asarray(pipeline.run()[0].at(0))


@pytest.mark.parametrize(
    "decode", [with_pillow, with_simplejpeg, with_opencv, pytest.param(with_dali, marks=needs_dali)]
)
@pytest.mark.parametrize("subsampling", get_args(Subsampling))
def test_decoders_make_the_same_of_it_as_without_restart_markers(
    decode: Callable[[bytes], np.ndarray], subsampling: Subsampling
) -> None:
    image = smooth_image(75, 130, seed=1)
    plain, tiled = (
        encode(image, ConversionSettings(subsampling=subsampling, restart_interval=interval))[0] for interval in (0, 2)
    )
    assert read_header(tiled).restart_interval > 0
    assert len(tiled) > len(plain)
    np.testing.assert_array_equal(decode(tiled), decode(plain))


@pytest.mark.parametrize("subsampling", get_args(Subsampling))
@pytest.mark.parametrize("quality", [1, 50, 90, 100])
def test_huffman_tables_are_the_standard_ones(subsampling: Subsampling, quality: int) -> None:
    data, tiled = encode(smooth_image(40, 60, seed=2), ConversionSettings(subsampling=subsampling, quality=quality))
    assert tiled
    found = b"".join(data[start:end] for marker, start, end in segments(data) if marker == 0xC4)
    tables = {0x00: DC_LUMA, 0x10: AC_LUMA, 0x01: DC_CHROMA, 0x11: AC_CHROMA}
    expected = [bytes([key]) + b"".join(part.tobytes() for part in table) for key, table in tables.items()]
    assert len(found) == sum(map(len, expected))
    assert all(table in found for table in expected)


def test_without_restart_markers_nothing_is_added() -> None:
    image = smooth_image(40, 60, seed=3)
    data, tiled = encode(image, ConversionSettings(restart_interval=0, quality=90))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", qtables=quantization_tables(90), subsampling="4:2:0")
    assert data == buffer.getvalue()
    assert not tiled
