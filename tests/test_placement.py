"""Placement of decoded pixels: values, dtype, layout, and combinations that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from respipe.placement import Placement

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
