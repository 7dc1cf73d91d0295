from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from respipe.model.resnet_cifar import ResNetCifar


def multiply_adds(model: nn.Module, size: int = 32) -> int:
    """Convolutions and the linear layer."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


def meta(*args: object, **kwargs: object) -> ResNetCifar:
    with torch.device("meta"):
        return ResNetCifar(*args, **kwargs)  # type: ignore[arg-type]


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "stated", "exact"),
    [
        (20, 0.27e6, 272_474),
        (32, 0.46e6, 466_906),
        (44, 0.66e6, 661_338),
        (56, 0.85e6, 855_770),
        (110, 1.7e6, 1_730_714),
    ],
)
def test_basic_networks_have_the_papers_parameters(depth: int, stated: float, exact: int) -> None:
    # He et al. 2015, Table 6; the projections of two shortcuts are 2,752 of the exact numbers.
    counted = num_parameters(meta(depth))
    assert counted == pytest.approx(stated, rel=0.02)
    assert counted == exact


def test_bottleneck_resnet164_has_the_papers_parameters() -> None:
    # He et al. 2016, Table 4: 1.7 M.
    assert num_parameters(meta(164, block="bottleneck")) == pytest.approx(1.7e6, rel=0.01)


def test_resnet20_has_the_operations_usually_given() -> None:
    assert multiply_adds(meta(20)) == pytest.approx(40.8e6, rel=1e-3)


def test_bottleneck_resnet110_has_the_operations_that_trd_states() -> None:
    # TRD counts 173.3 M; convolutions, linear layer and two operations per output of BatchNorm make 171.9 M.
    model = meta(110, block="bottleneck")
    norms = 0

    def count(_: nn.Module, __: object, output: torch.Tensor) -> None:
        nonlocal norms
        norms += 2 * output.numel()

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(count)
    total = multiply_adds(model) + norms
    assert total == pytest.approx(171.9e6, rel=1e-3)
    assert total == pytest.approx(173.3e6, rel=0.01)


def test_bottleneck_resnet56_has_the_operations_that_trd_states() -> None:
    assert multiply_adds(meta(56, block="bottleneck")) == pytest.approx(90.34e6, rel=0.04)


def test_half_the_side_takes_a_quarter_of_the_operations() -> None:
    model = meta(56, block="bottleneck")
    linear = 256 * 10
    assert multiply_adds(model, 16) - linear == (multiply_adds(model) - linear) / 4


@pytest.mark.parametrize(("block", "depth", "convolutions"), [("basic", 20, 19), ("bottleneck", 56, 55)])
def test_depth_counts_weighted_layers_without_shortcuts(block: str, depth: int, convolutions: int) -> None:
    model = meta(depth, block=block)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert sum("shortcut" not in name for name in names) == convolutions


def test_width_and_stem_stride_scale_the_network() -> None:
    wide, strided = meta(20, width=32), meta(20, stem_stride=2)
    assert wide.head.in_features == 128
    assert multiply_adds(strided, 64) - 64 * 10 == pytest.approx(multiply_adds(meta(20)) - 64 * 10, rel=0.05)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model = ResNetCifar(11, block="bottleneck", num_classes=4, width=4)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(("block", "depth"), [("basic", 14), ("bottleneck", 20)])
def test_blocks_initialised_to_zero_pass_their_input_on(block: str, depth: int) -> None:
    torch.manual_seed(0)
    model = ResNetCifar(depth, block=block, width=4, zero_init_residual=True)
    features = torch.rand(2, model.stages[0][0].channels, 8, 8)
    torch.testing.assert_close(model.stages[0][1](features), features)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert sum(not norm.weight.any() for norm in norms) == 6  # one in each block
    with torch.no_grad():
        assert model(torch.randn(2, 3, 8, 8)).any()
    plain = ResNetCifar(depth, block=block, width=4)
    assert all(module.weight.all() for module in plain.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 21}, r"`depth` must be 6n \+ 2 for basic blocks; got 21. Use 20"),
        ({"depth": 2}, r"`depth` must be 6n \+ 2 .* Use 8"),
        ({"depth": 20, "block": "bottleneck"}, None),
        ({"depth": 44, "block": "bottleneck"}, r"`depth` must be 9n \+ 2 .* Use 47"),
        ({"depth": 20, "block": "dense"}, "`block` must be one of"),
        ({"depth": 20, "width": 0}, "`width` must be at least 1; got 0"),
    ],
)
def test_impossible_networks_are_refused(arguments: dict[str, object], message: str | None) -> None:
    if message is None:
        meta(**arguments)
        return
    with pytest.raises(ValueError, match=message):
        meta(**arguments)
