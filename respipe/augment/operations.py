"""Planned operations carried out on pixels: on a CPU by compiled loops, on a GPU on all images of an operation at once.

Given its parameters, each operation is torchvision's functional of that name on that image (uint8, up to 1 of 255).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from respipe.planning.augmentation import FILL_MEAN, FILL_NONE, Augmentation, Op

# What is a whole number of pixels up to the rounding of a float64 must not be one less.
_SLACK = 1e-6


class Resolved(NamedTuple):
    """Operations in pixels of images of one size.

    Args:
        operations: (B, L) uint8. Geometric operations are all ``SHEAR_X``; ``CUT`` is ``ERASE``.
        values: (B, L, 10) float64. Of geometric ones: the matrix in 0 to 5 (output to input, from the centre), whether
            bilinear in 6, fill in 7 to 9, negative for none. Of ``ERASE``: top, left, bottom and right in 0 to 3, fill
            likewise. Of ``BLUR``: standard deviation in pixels. Of others as planned.
    """

    operations: NDArray[np.uint8]
    values: NDArray[np.float64]

    def augment(self, images: NDArray[np.uint8], start: int, stop: int) -> None:
        """Augment rows ``start`` to ``stop`` of (B, S, S, 3) uint8 in place, on this thread, without the GIL."""
        from respipe.augment.kernel import augment_images  # numba, which a GPU does without

        part = slice(start, stop)
        augment_images(images[part], self.operations[part], self.values[part])


def resolve(augmentation: Augmentation, size: int, mean: tuple[float, ...]) -> Resolved:
    """A plan in pixels of images of side ``size``; ``mean`` is the mean colour, three values in 0..1."""
    codes, planned = augmentation.operations, augmentation.values
    operations, values = codes.copy(), np.zeros((*codes.shape, 10))
    values[..., 0] = planned[..., 0]
    values[codes == Op.BLUR, 0] *= size
    for op, matrix in _MATRICES.items():
        chosen = codes == op
        amount = planned[chosen, 0]
        if amount.size:
            values[chosen, :6] = np.stack(np.broadcast_arrays(*matrix(amount, size)), axis=-1)
            values[chosen, 6] = planned[chosen, 1]
            values[chosen, 7:] = _colours(planned[chosen, 2], mean)
            operations[chosen] = Op.SHEAR_X
    for op, rectangle in ((Op.ERASE, _erased), (Op.CUT, _cut)):
        chosen = codes == op
        if chosen.any():
            values[chosen, :4] = rectangle(planned[chosen], size)
            values[chosen, 7:] = _colours(planned[chosen, 4 if op == Op.ERASE else 3], mean).clip(min=0)
            operations[chosen] = Op.ERASE
    return Resolved(operations, values)


def _whole(share: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.trunc(share * size + np.copysign(_SLACK, share))


# Output to input, in pixels from the image's centre; shears leave its upper left corner where it is.
_MATRICES: dict[Op, Callable[[NDArray[np.float64], int], tuple[NDArray[np.float64] | float, ...]]] = {
    Op.SHEAR_X: lambda amount, size: (1.0, amount, amount * size / 2, 0.0, 1.0, 0.0),
    Op.SHEAR_Y: lambda amount, size: (1.0, 0.0, 0.0, amount, 1.0, amount * size / 2),
    Op.TRANSLATE_X: lambda amount, size: (1.0, 0.0, -_whole(amount, size), 0.0, 1.0, 0.0),
    Op.TRANSLATE_Y: lambda amount, size: (1.0, 0.0, 0.0, 0.0, 1.0, -_whole(amount, size)),
    Op.ROTATE: lambda amount, size: (
        np.cos(np.radians(amount)), -np.sin(np.radians(amount)), 0.0,
        np.sin(np.radians(amount)), np.cos(np.radians(amount)), 0.0,
    ),
}  # fmt: skip


def _erased(planned: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    sides = np.minimum(np.rint(planned[:, :2] * size), size)
    start = np.floor(planned[:, 2:4] * (size - sides + 1))
    return np.concatenate([start, start + sides], axis=1)


def _cut(planned: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    side = np.rint(planned[:, 2:3] * size)
    start = np.floor(planned[:, :2] * size) - side // 2
    return np.concatenate([start, start + side], axis=1).clip(0, size)


def _colours(fill: NDArray[np.float64], mean: tuple[float, ...]) -> NDArray[np.float64]:
    """(N, 3) values in 0..255 from codes; -1 for none."""
    packed = np.maximum(fill, 0).astype(np.int64)
    colours = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1).astype(np.float64)
    colours[fill == FILL_MEAN] = np.rint(255 * np.array(mean))
    colours[fill == FILL_NONE] = -1
    return colours


def augment_tensor(images: torch.Tensor, resolved: Resolved) -> None:
    """Augment (B, S, S, 3) uint8 on any device in place, the images of each operation together."""
    planes = images.permute(0, 3, 1, 2)
    kept = total = torch.empty(0)
    if (resolved.operations == Op.MIX_BEGIN).any():
        kept, total = torch.empty_like(planes), torch.empty_like(planes, dtype=torch.float32)
    for place in range(resolved.operations.shape[1]):
        codes = resolved.operations[:, place]
        for code in np.unique(codes[codes != Op.IDENTITY]).tolist():
            chosen = np.flatnonzero(codes == code)
            rows = torch.from_numpy(chosen).to(images.device, non_blocking=True)
            values = torch.from_numpy(resolved.values[chosen, place].astype(np.float32))
            values = values.to(images.device, non_blocking=True)
            if code == Op.MIX_BEGIN:
                kept[rows], total[rows] = planes[rows], planes[rows] * _factor(values)
            elif code == Op.MIX_ADD:
                total[rows] += planes[rows] * _factor(values)
                planes[rows] = kept[rows]
            elif code == Op.MIX_END:
                planes[rows] = total[rows].to(torch.uint8)
            elif code == Op.BLUR:  # its kernel's size is known on the host
                planes[rows] = _blur(planes[rows], values, resolved.values[chosen, place, 0].max())
            else:
                planes[rows] = _FUNCTIONS[code](planes[rows], values)


def _finished(values: torch.Tensor) -> torch.Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _factor(values: torch.Tensor) -> torch.Tensor:
    return values[:, 0].view(-1, 1, 1, 1)


def _grey(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = images.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_().unsqueeze(1)


def _blended(images: torch.Tensor, others: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    factor = _factor(values)
    return _finished(images * factor + others * (1 - factor))


def _sharpness(images: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if images.shape[-1] <= 2:
        return images
    floats = images.float()
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    blurred = F.conv2d(floats, kernel / 13, groups=3).round_()
    inside = floats[..., 1:-1, 1:-1]
    inside += (blurred - inside) * (1 - _factor(values))
    return _finished(floats)


def _hue(images: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """See the compiled loop of the same name."""
    floats = images.float() / 255
    high, chroma = floats.amax(1), floats.amax(1) - floats.amin(1)
    red, green, blue = floats.unbind(1)
    sextant = torch.where(high == green, 2 + (blue - red) / chroma, 4 + (red - green) / chroma)
    sextant = torch.where(high == red, (green - blue) / chroma, sextant)
    k = torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1)
    k = (k + sextant.unsqueeze(1) + 6 * _factor(values)) % 6
    part = torch.minimum(k, 4 - k).clamp_(0, 1)
    shifted = (high.unsqueeze(1) - chroma.unsqueeze(1) * part) * 255.999
    return torch.where(chroma.unsqueeze(1) == 0, images, shifted.nan_to_num_(0).to(torch.uint8))


def _posterize(images: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    step = torch.pow(2, 8 - _factor(values))
    return (images // step * step).to(torch.uint8)


def _blur(images: torch.Tensor, values: torch.Tensor, largest: float) -> torch.Tensor:
    sigma = values[:, :1].repeat_interleave(3, dim=0)
    radius = min(math.ceil(4 * largest), images.shape[-1] - 1)
    if radius <= 0:
        return images
    places = torch.arange(-radius, radius + 1, device=images.device)
    # A standard deviation of 0 leaves an image as it is.
    weights = torch.softmax(-(places / sigma.clamp(min=1e-3)).square() / 2, dim=1)
    flat = images.reshape(1, -1, *images.shape[2:]).float()
    flat = F.pad(flat, (radius, radius, radius, radius), mode="reflect")
    flat = F.conv2d(flat, weights[:, None, None, :], groups=len(weights))
    flat = F.conv2d(flat, weights[:, None, :, None], groups=len(weights))
    return flat.round_().to(torch.uint8).view(images.shape)


def _erase(images: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    line = torch.arange(images.shape[-1], device=images.device)
    top, left, bottom, right = (values[:, number, None] for number in range(4))
    rows, columns = (line >= top) & (line < bottom), (line >= left) & (line < right)
    hole = (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)
    return torch.where(hole, values[:, 7:, None, None].to(torch.uint8), images)


def _affine(images: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    count, _, height, width = images.shape
    line = torch.arange(width, device=images.device) - (width - 1) / 2
    base = torch.stack(
        [*torch.meshgrid(line, line, indexing="xy"), torch.ones(height, width, device=images.device)], -1
    )
    theta = values[:, :6].reshape(count, 2, 3).transpose(1, 2) / (0.5 * width)
    grid = (base.view(1, -1, 3).expand(count, -1, 3) @ theta).view(count, height, width, 2)
    floats = torch.cat([images.float(), torch.ones(count, 1, height, width, device=images.device)], dim=1)
    fill = values[:, 7:, None, None]
    results: list[torch.Tensor] = []
    for mode in ("nearest", "bilinear"):
        sampled = F.grid_sample(floats, grid, mode=mode, align_corners=False)
        colour, covered = sampled[:, :3], sampled[:, 3:]
        filled = torch.where(covered < 0.5, fill, colour) if mode == "nearest" else (colour - fill) * covered + fill
        results.append(torch.where(fill >= 0, filled, colour))
    nearest = values[:, 6].view(-1, 1, 1, 1) == 0
    return torch.where(nearest, results[0], results[1]).round_().to(torch.uint8)


_FUNCTIONS: dict[int, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    Op.SHEAR_X: _affine,
    Op.BRIGHTNESS: lambda images, values: _finished(images * _factor(values)),
    Op.SATURATION: lambda images, values: _blended(images, _grey(images), values),
    Op.CONTRAST: lambda images, values: _blended(images, _grey(images).mean((1, 2, 3), keepdim=True), values),
    Op.SHARPNESS: _sharpness,
    Op.HUE: _hue,
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: lambda images, values: torch.where(images >= _factor(values), 255 - images, images),
    Op.AUTOCONTRAST: lambda images, _: tv.autocontrast(images),
    Op.EQUALIZE: lambda images, _: tv.equalize(images),
    Op.INVERT: lambda images, _: 255 - images,
    Op.GRAYSCALE: lambda images, _: _grey(images).to(torch.uint8).expand(images.shape),
    Op.ERASE: _erase,
}
