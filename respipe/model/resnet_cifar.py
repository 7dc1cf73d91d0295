"""The ResNets for 32 px images that the papers train on CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import nn

Block = Literal["basic", "bottleneck"]


class ResNetCifar(nn.Module):
    """Residual network with one 3 x 3 stem and three stages of ``width``, ``2 * width`` and ``4 * width`` channels.

    He et al., "Deep Residual Learning for Image Recognition", section 4.2, with projection shortcuts where the shape
    changes. The bottleneck form (He et al., "Identity Mappings in Deep Residual Networks", section 4, with ReLU after
    the addition) is what TRD calls ResNet-56 and ResNet-110: 87 and 167 million multiply-adds at 32 px as
    :func:`respipe.cost.counted` counts them; its paper says 90 and 173, which is about what BatchNorm adds.
    It pools adaptively, so that it takes images of every size from 4 * ``stem_stride`` px on.

    Args:
        depth: number of weighted layers: 6n + 2 for "basic" (20, 44, 56, ...), 9n + 2 for "bottleneck" (56, 110, ...).
        num_classes: length of the output.
        block: kind of residual block.
        width: channels of the stem.
        stem_stride: stride of the stem; 2 or more for images larger than CIFAR's.
        zero_init_residual: begin with residual blocks that pass their input on, by a weight of 0 in the last BatchNorm
            of each; MixSize does.

    Raises:
        ValueError: no network of this kind has ``depth`` layers, or a field is out of range.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int = 10,
        block: Block = "basic",
        width: int = 16,
        stem_stride: int = 1,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if block not in _LAYERS:
            raise ValueError(f"`block` must be one of {tuple(_LAYERS)}; got {block!r}.")
        layers = 3 * _LAYERS[block]
        if depth < layers + 2 or (depth - 2) % layers:
            raise ValueError(
                f"`depth` must be {layers}n + 2 for {block} blocks; got {depth}. "
                f"Use {layers * max(1, round((depth - 2) / layers)) + 2}."
            )
        for name, value in (("num_classes", num_classes), ("width", width), ("stem_stride", stem_stride)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        num_blocks = (depth - 2) // layers
        self.stem = _conv_bn(3, width, kernel=3, stride=stem_stride)
        self.relu = nn.ReLU(inplace=True)
        channels, stages = width, list[nn.Module]()
        for stage in range(3):
            blocks = list[nn.Module]()
            for number in range(num_blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                residual = _ResidualBlock(channels, width * 2**stage, stride=stride, block=block)
                channels = residual.channels
                blocks.append(residual)
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, _ResidualBlock):
                nn.init.zeros_(_last_norm(module).weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Turn (N, 3, S, S) normalised images into (N, num_classes) logits."""
        features = self.stages(self.relu(self.stem(images)))
        return self.head(self.pool(features).flatten(1))


def make_stem_small(model: nn.Module) -> nn.Module:
    """Give an ImageNet ResNet the stem of one for 32 px images, in place: 3 x 3 and stride 1 instead of 7 x 7 and 2.

    Its max-pooling stays, so that images of 32 px have maps of 16 px in the first stage. The new weights are drawn as
    torchvision does.

    Args:
        model: a ResNet of torchvision, or of the same build: its first layer is ``conv1``, 7 x 7 without bias.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: the model has no such layer.
    """
    stem = getattr(model, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or stem.kernel_size != (7, 7) or stem.bias is not None:
        raise ValueError(
            "`model` must be a ResNet whose first layer is `conv1`, 7 x 7 without bias; got "
            f"{type(model).__name__} with {stem}. Leave its stem as it is."
        )
    small = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False, device=stem.weight.device)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = small
    return model


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int, *, stride: int, block: Block) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        if block == "basic":
            self.channels = width
            layers = [_conv_bn(channels, width, kernel=3, stride=stride), relu, _conv_bn(width, width, kernel=3)]
        else:
            self.channels = 4 * width
            layers = [_conv_bn(channels, width, kernel=1), relu, _conv_bn(width, width, kernel=3, stride=stride), relu,
                      _conv_bn(width, self.channels, kernel=1)]  # fmt: skip
        self.residual = nn.Sequential(*layers)
        same = stride == 1 and channels == self.channels
        self.shortcut = nn.Identity() if same else _conv_bn(channels, self.channels, kernel=1, stride=stride)
        self.relu = relu

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.relu(self.residual(features) + self.shortcut(features))


def _last_norm(block: _ResidualBlock) -> nn.BatchNorm2d:
    _, norm = cast(nn.Sequential, block.residual[-1])
    return cast(nn.BatchNorm2d, norm)


def _conv_bn(channels_in: int, channels_out: int, *, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


_LAYERS: dict[Block, int] = {"basic": 2, "bottleneck": 3}
