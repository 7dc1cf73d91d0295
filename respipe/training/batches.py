"""What is done to whole batches: colour jitter, a flip for each size, means over the copies of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from respipe.checks import check_number
from respipe.normalization import Normalize, mean_and_std

Images = torch.Tensor | tuple[torch.Tensor, ...]

# Of red, green and blue in grey, as in torchvision.
_LUMA = (0.2989, 0.587, 0.114)

_CPU_VALUES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Changes brightness, contrast and saturation of images, each image by factors and in an order of its own.

    A ``batch_transform`` of :class:`respipe.Loader`. Computes what torchvision's ``v2.ColorJitter`` computes for one
    image, which draws one set of factors for a whole batch. Each factor is uniform in [max(0, 1 - x), 1 + x]. Values
    are brought back into 0..1 for it and clipped there after each change; copies of a sample in several sizes are
    changed alike. FixRes (arXiv 1906.06423) trains with 0.3 for each and tunes with 0.05 ("test DA2")::

        jitter = respipe.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, normalize="imagenet")
        loader = respipe.Loader("train.beton", schedule, batch_size=512, normalize="imagenet", batch_transform=jitter)

    Numbers come from torch's global CPU generator, which the loader seeds for each step and rank.

    Args:
        brightness, contrast, saturation: how far each may change, at least 0; 0 leaves it.
        normalize: what the loader was told, so that it can be undone meanwhile.

    Raises:
        ValueError, TypeError: an argument is out of range.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    normalize: Normalize = "imagenet"

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            object.__setattr__(self, name, check_number(name, getattr(self, name), least=0))
        mean_and_std(self.normalize)

    def __call__(self, images: Images, labels: torch.Tensor) -> tuple[Images, torch.Tensor]:
        """Jitter a batch.

        Args:
            images: (B, 3, S, S), normalised; uint8 where ``normalize`` is None; or a tuple of such tensors.
            labels: of the batch.

        Returns:
            new images of the same dtype and memory format, and ``labels``.

        Raises:
            ValueError: images of dtype uint8 are said to be normalised.
        """
        several = images if isinstance(images, tuple) else (images,)
        if several[0].dtype == torch.uint8 and self.normalize is not None:
            raise ValueError(
                f"`normalize` must be None for uint8 images; got {self.normalize!r}. Pass what the loader was told."
            )
        # On the CPU, so that a batch is the same on every device.
        factors, order = self._draw(len(several[0]))
        jittered = tuple(self._jitter(one, factors, order) for one in several)
        return (jittered if isinstance(images, tuple) else jittered[0]), labels

    def _draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors (B, 3) float32 of brightness, contrast and saturation; and which of them comes when, (B, 3) int64."""
        reach = torch.tensor([self.brightness, self.contrast, self.saturation])
        lowest, highest = (1 - reach).clamp(min=0), 1 + reach
        return torch.lerp(lowest, highest, torch.rand(count, 3)), torch.rand(count, 3).argsort(dim=1)

    def _jitter(self, images: torch.Tensor, factors: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(images)
        # A GPU is fastest on the whole batch, a CPU on as much as its cache holds.
        length = max(1, _CPU_VALUES // images[0].numel()) if images.device.type == "cpu" else len(images)
        factors = factors.gather(1, order)
        for start in range(0, len(images), length):
            rows = slice(start, start + length)
            drawn = (tensor[rows].to(images.device) for tensor in (factors, order))
            self._jitter_part(result[rows], images[rows], *drawn)
        return result

    def _jitter_part(
        self, result: torch.Tensor, images: torch.Tensor, factors: torch.Tensor, order: torch.Tensor
    ) -> None:
        """Write jittered ``images`` to ``result``; factors (B, 3) are in the order (B, 3) in which they come."""
        scale = 255 if images.dtype == torch.uint8 else 1
        mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in mean_and_std(self.normalize))
        # float32, because half precision is coarser than pixels; by planes, which are read one by one.
        pixels = torch.empty(images.shape, device=images.device)
        pixels.copy_(images).mul_(std / scale).add_(mean / scale)
        for place in range(3):
            change, factor = (tensor[:, place].view(-1, 1, 1) for tensor in (order, factors))
            red, green, blue = pixels.unbind(1)
            grey = torch.mul(red, _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
            # Each change mixes an image with black, with its mean grey, or with its own grey.
            average = grey.mean((1, 2), keepdim=True)
            other = grey.mul_((1 - factor) * (change == 2)).add_(average * (1 - factor) * (change == 1))
            pixels.mul_(factor.unsqueeze(1)).add_(other.unsqueeze(1)).clamp_(0, 1)
        pixels.mul_(scale / std).sub_(mean / std)
        result.copy_(pixels.round_() if images.dtype == torch.uint8 else pixels)


def flip_each_size(
    images: torch.Tensor | Sequence[torch.Tensor], labels: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Mirror every image left to right with probability 1/2, on its own at every size.

    RSNet shows the same crop, mirrored alike, at all sizes. The released code of RS-Nets (arXiv 2007.09558) draws the
    flip for each size; as ``batch_transform`` of :class:`respipe.Loader`, which seeds it for each step and rank, this
    does the same::

        respipe.Loader(
            data, RSNet((224, 160)), batch_size=256, flip_probability=0.0, batch_transform=respipe.flip_each_size
        )

    Draws from torch's random state on the device of the images.

    Args:
        images: (N, C, S, S) tensors of any dtype, one for each size.
        labels: handed on.

    Returns:
        new images, in the memory format that they had, and ``labels``.
    """
    sizes = (images,) if isinstance(images, torch.Tensor) else images
    return tuple(_flipped(one) for one in sizes), labels


def _flipped(images: torch.Tensor) -> torch.Tensor:
    is_flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(is_flipped, images.flip(-1), images)


def average_duplicates(values: torch.Tensor, duplicates: int) -> torch.Tensor:
    """Average what belongs to the copies of each sample: losses in training, outputs in evaluation.

    The plain mean of a batch's losses is already the mean of these averages, so a criterion with its usual
    ``reduction="mean"`` needs no help. To weight or select samples::

        losses = cross_entropy(model(images), labels, reduction="none")          # (B * D,)
        loss = (weights * average_duplicates(losses, plan.step.duplicates)).sum()  # with_spec=True yields the plan

    Args:
        values: (B * D, ...) floating, sample-major: the copies of a sample are adjacent, as :class:`respipe.Loader`
            yields them.
        duplicates: D, copies of each sample: ``plan.step.duplicates`` of the batch's plan.

    Returns:
        (B, ...), of the dtype and on the device of ``values``.

    Raises:
        ValueError: ``duplicates`` is less than 1 or does not divide the length of ``values``.
    """
    if duplicates < 1:
        raise ValueError(f"`duplicates` must be at least 1; got {duplicates}. Pass the step's `duplicates`.")
    if values.ndim == 0 or len(values) % duplicates:
        raise ValueError(
            f"`values` must hold {duplicates} copies of each sample; got shape {tuple(values.shape)}. Pass one value "
            'per image (reduction="none") and the `duplicates` of the same step.'
        )
    return values.reshape(len(values) // duplicates, duplicates, *values.shape[1:]).mean(dim=1)
