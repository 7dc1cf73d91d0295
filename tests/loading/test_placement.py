"""Placement of decoded pixels: values, dtype, layout, and combinations that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from respipe.loading.placement import Placement, check_device
from respipe.normalization import mean_and_std

CPU = torch.device("cpu")


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalised_values_equal_torchvisions(dtype: torch.dtype) -> None:
    placed = Placement(device=CPU, dtype=dtype, normalize="imagenet").images(pixels())
    scaled = F.to_dtype(pixels().permute(0, 3, 1, 2), torch.float32, scale=True)
    expected = F.normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(placed, expected.to(dtype), rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 2e-2)
    assert placed.dtype == dtype
    assert placed.is_contiguous(memory_format=torch.channels_last)


def test_without_normalisation_floats_span_zero_to_one() -> None:
    placed = Placement(device=CPU, dtype=torch.float32, normalize=None).images(pixels())
    torch.testing.assert_close(placed, pixels().permute(0, 3, 1, 2) / 255)


def test_uint8_pixels_pass_through_unchanged() -> None:
    placed = Placement(device=CPU, dtype=torch.uint8, normalize=None).images(pixels())
    assert torch.equal(placed, pixels().permute(0, 3, 1, 2))
    assert placed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": torch.uint8, "normalize": "imagenet"}, ValueError, "normalize=None"),
        ({"dtype": torch.int64, "normalize": None}, TypeError, "`dtype`"),
        ({"normalize": "imagnet"}, ValueError, "'imagnet'"),
        ({"normalize": ((0.5, 0.5), (0.2, 0.2))}, ValueError, "three numbers"),
        ({"normalize": ((0.5, 0.5, 0.5), (0.2, 0.0, 0.2))}, ValueError, "std > 0"),
    ],
)
def test_senseless_combinations_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Placement(**{"device": CPU, "dtype": torch.float32, "normalize": None} | arguments)


def test_a_plain_cuda_is_the_current_device_of_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert check_device("cuda") == torch.device("cuda", 2)
    assert check_device("cuda:1") == torch.device("cuda", 1)
    assert check_device("cpu") == CPU


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("decimation", [1, 2])
def test_placing_does_not_wait_for_the_gpu(decimation: int) -> None:
    placement = Placement(device=check_device("cuda"), dtype=torch.bfloat16, normalize="imagenet")
    expected = Placement(device=CPU, dtype=torch.bfloat16, normalize="imagenet").images(pixels(), decimation)
    placement.images(pixels(), decimation)  # libraries may wait the first time
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(placement.stream):
            torch.cuda._sleep(100_000_000)  # some 50 ms
            placed = placement.images(pixels(), decimation)
            ready = torch.cuda.current_stream().record_event()
        assert not ready.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ready.synchronize()
    # Convolutions may round to TF32's ten bits, which is a sixteenth of a grey level.
    torch.testing.assert_close(placed.cpu(), expected, rtol=2**-7, atol=2e-3)


@pytest.mark.parametrize("shape", [(2, 5, 5, 3), (0, 4, 4, 3), (3, 1, 1, 3)])
@pytest.mark.parametrize("normalize", ["cifar10", None])
def test_values_on_a_cpu_are_those_of_torch_to_the_last_bit(shape: tuple[int, ...], normalize: str | None) -> None:
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in mean_and_std(normalize))
    expected = pixels.permute(0, 3, 1, 2).float().sub(mean * 255).mul(1 / (std * 255))
    images = Placement(device=CPU, dtype=torch.float32, normalize=normalize).images(pixels)
    assert torch.equal(images, expected)
    assert images.is_contiguous(memory_format=torch.channels_last)
