from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from respipe.model._routing import Route
from respipe.model.lowmode import PooledConv2d, pool_kernel, pooled_side, pooling_matrix


def pooled(weight: torch.Tensor, ratio: float, **options: Any) -> torch.Tensor:
    height, width = (pooling_matrix(side, ratio, **options).float() for side in weight.shape)
    return height @ weight @ width.T


def convolution(low: bool, /, *sizes: Any, ratio: float = 2, reduce: Any = "mean", **options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    conv = nn.Conv2d(*sizes, **options).double()
    route = Route()
    route.enter(16 if low else 32)
    pool_kernel(conv, {16: ratio}, reduce=reduce, route=route)
    assert isinstance(conv, PooledConv2d)
    return conv


@pytest.mark.parametrize(
    ("kernel", "ratio", "expected"),
    [(1, 2, 1), (3, 2, 1), (5, 2, 3), (7, 2, 3), (9, 2, 5), (11, 2, 5), (3, 4, 1), (5, 4, 1), (7, 4, 1), (3, 1.4, 3)],
)
def test_pooled_side_is_the_largest_odd_number_up_to_the_ratio(kernel: int, ratio: float, expected: int) -> None:
    assert pooled_side(kernel, ratio) == expected
    assert pooling_matrix(kernel, ratio).shape == (expected, kernel)


def test_five_taps_are_pooled_in_twos_and_the_last_alone() -> None:
    weight = torch.arange(25.0).reshape(5, 5)
    torch.testing.assert_close(pooled(weight, 2), torch.tensor([[3, 5, 6.5], [13, 15, 16.5], [20.5, 22.5, 24]]))
    sums = torch.tensor([[12, 20, 13], [52, 60, 33], [41, 45, 24.0]])
    torch.testing.assert_close(pooled(weight, 2, reduce="sum"), sums)


def test_seven_taps_are_pooled_adaptively() -> None:
    weight = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pooled(weight, 2), F.adaptive_avg_pool2d(weight[None], 3)[0])


@pytest.mark.parametrize(("kernel", "ratio"), [(3, 2), (5, 2), (7, 2), (9, 4), (11, 2), (5, 1.5)])
def test_means_keep_an_even_kernel_and_sums_keep_its_total(kernel: int, ratio: float) -> None:
    weight = torch.randn(kernel, kernel, generator=torch.Generator().manual_seed(0))
    side = pooled_side(kernel, ratio)
    torch.testing.assert_close(pooled(torch.ones(kernel, kernel), ratio), torch.ones(side, side))
    torch.testing.assert_close(pooled(weight, ratio, reduce="sum").sum(), weight.sum())


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation"),
    [(3, 1, 1), (5, 2, 1), (7, 3, 1), (3, 0, 1), (5, 0, 1), (3, 2, 2), (5, 1, 1), ((1, 5), (0, 2), 1), ((3, 1), 0, 1),
     (3, "valid", 1), ((7, 3), (3, 0), 1)],
)  # fmt: skip
def test_maps_keep_their_size(kernel: Any, padding: Any, dilation: int) -> None:
    for height, stride in itertools.product((7, 8, 9, 12), (1, 2, 3, 4)):
        images = torch.randn(1, 2, height, 11, dtype=torch.float64)
        options = {"padding": padding, "dilation": dilation, "stride": stride}
        assert convolution(True, 2, 3, kernel, **options)(images).shape == convolution(
            False, 2, 3, kernel, **options
        )(images).shape  # fmt: skip


def test_padding_that_keeps_the_size_keeps_it() -> None:
    images = torch.randn(1, 2, 9, 8, dtype=torch.float64)
    assert convolution(True, 2, 3, 5, padding="same", dilation=2)(images).shape == (1, 3, 9, 8)


def test_kernel_stays_centred() -> None:
    """A pooled kernel of one tap sees the middle of what the full kernel sees."""
    images = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for padding, mode in ((1, "zeros"), (0, "zeros"), (1, "reflect"), (1, "circular")):
        conv = convolution(True, 2, 3, 3, stride=2, padding=padding, padding_mode=mode, bias=False)
        middle = images[:, :, ::2, ::2] if padding else images[:, :, 1:-1:2, 1:-1:2]
        expected = F.conv2d(middle, conv.weight.mean((2, 3), keepdim=True))
        torch.testing.assert_close(conv(images), expected)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_kinds_of_padding_are_kept(mode: str) -> None:
    images = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    conv = convolution(True, 2, 3, 5, padding=2, padding_mode=mode)
    weight = F.avg_pool2d(conv.weight, 2, ceil_mode=True)
    expected = F.conv2d(F.pad(images, (1, 1, 1, 1), mode=mode), weight, conv.bias)
    torch.testing.assert_close(conv(images), expected)


def test_full_kernel_gets_the_gradient_of_the_pooled_one_in_equal_parts() -> None:
    images = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    conv = convolution(True, 4, 6, 3, padding=1, groups=2)
    conv(images).square().sum().backward()
    weight = conv.weight.detach().mean((2, 3), keepdim=True).requires_grad_()
    F.conv2d(images, weight, conv.bias, groups=2).square().sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(conv.weight.grad, (weight.grad / 9).expand(6, 2, 3, 3))
    assert conv.bias is not None
    assert conv.bias.grad is not None


def test_sum_answers_even_images_as_the_full_kernel_and_mean_with_a_ninth() -> None:
    images = torch.ones(1, 2, 8, 8, dtype=torch.float64)
    full = convolution(False, 2, 3, 3, bias=False)(images)
    torch.testing.assert_close(convolution(True, 2, 3, 3, bias=False, reduce="sum")(images), full)
    torch.testing.assert_close(convolution(True, 2, 3, 3, bias=False)(images), full / 9)


def test_batchnorm_removes_the_difference_between_mean_and_sum() -> None:
    images = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs, gradients = list[torch.Tensor](), list[torch.Tensor | None]()
    for reduce in ("mean", "sum"):
        conv = convolution(True, 2, 3, 3, padding=1, bias=False, reduce=reduce)
        outputs.append(nn.BatchNorm2d(3, eps=1e-14).double()(conv(images)))
        outputs[-1].pow(3).sum().backward()
        gradients.append(conv.weight.grad)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)
