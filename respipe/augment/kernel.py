"""Augmentation on the CPU: a compiled loop over images that holds no GIL, for the threads that decode them.

Arithmetic is float32 and follows torchvision's functionals step by step, so that results are theirs up to the rounding
of the last bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from respipe.jpeg.compilation import compiled
from respipe.planning.augmentation import Op

Image = NDArray[np.uint8]

_AFFINE, _BRIGHTNESS, _SATURATION, _CONTRAST = int(Op.SHEAR_X), int(Op.BRIGHTNESS), int(Op.SATURATION), int(Op.CONTRAST)
_SHARPNESS, _HUE, _POSTERIZE, _SOLARIZE = int(Op.SHARPNESS), int(Op.HUE), int(Op.POSTERIZE), int(Op.SOLARIZE)
_AUTOCONTRAST, _EQUALIZE, _INVERT, _GRAYSCALE = (
    int(Op.AUTOCONTRAST),
    int(Op.EQUALIZE),
    int(Op.INVERT),
    int(Op.GRAYSCALE),
)
_BLUR, _ERASE = int(Op.BLUR), int(Op.ERASE)
_MIX_BEGIN, _MIX_ADD = int(Op.MIX_BEGIN), int(Op.MIX_ADD)


@compiled
def augment_images(images: NDArray[np.uint8], operations: NDArray[np.uint8], values: NDArray[np.float64]) -> None:
    """Carry out operations in place.

    Args:
        images: (B, S, S, 3) uint8.
        operations, values: (B, L) uint8 and (B, L, 10) float64, see :func:`respipe.augment.operations.resolve`.
    """
    shape = images.shape[1:]
    source, kept = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
    total = np.empty(shape[0] * shape[1] * shape[2], np.float32)
    for i in range(len(images)):
        for j in range(operations.shape[1]):
            code, value = operations[i, j], values[i, j]
            if code in (_AFFINE, _SHARPNESS, _BLUR, _ERASE):
                _change_places(images[i], code, value, source, total)
            elif code >= _MIX_BEGIN:
                _mix(images[i], code, np.float32(value[0]), kept, total)
            elif code > 0:
                _change_values(images[i].reshape(-1), code, value[0])
                _change_colours(images[i], code, np.float32(value[0]))


@compiled
def _change_values(pixels: NDArray[np.uint8], code: int, amount: float) -> None:
    """Operations on one value at a time."""
    if code == _BRIGHTNESS:
        pixels[:] = np.minimum(pixels * np.float32(amount), np.float32(255)).astype(np.uint8)
    elif code == _POSTERIZE:
        pixels &= np.uint8(256 - (1 << (8 - int(amount))))
    elif code == _SOLARIZE:
        pixels[:] = np.where(pixels >= np.uint8(np.ceil(amount)), ~pixels, pixels)
    elif code == _INVERT:
        pixels[:] = ~pixels


@compiled
def _change_colours(image: Image, code: int, amount: np.float32) -> None:
    """Operations on one pixel at a time, some of which know all of the image's colours."""
    if code == _SATURATION:
        _saturate(image, amount)
    elif code == _CONTRAST:
        _contrast(image, amount)
    elif code == _HUE:
        _shift_hue(image, amount)
    elif code == _AUTOCONTRAST:
        _autocontrast(image)
    elif code == _EQUALIZE:
        _equalize(image)
    elif code == _GRAYSCALE:
        for y in range(image.shape[0]):
            for x in range(image.shape[1]):
                image[y, x] = np.uint8(_grey(image, y, x))


@compiled
def _change_places(
    image: Image, code: int, value: NDArray[np.float64], source: Image, total: NDArray[np.float32]
) -> None:
    """Operations that depend on where a pixel is; ``source`` and ``total`` are scratch memory of the image's size."""
    if code == _ERASE:
        for channel in range(3):
            image[int(value[0]) : int(value[2]), int(value[1]) : int(value[3]), channel] = value[7 + channel]
    elif code == _BLUR:
        _blur(image, np.float32(value[0]), total)
    else:
        source[:] = image
        if code == _AFFINE:
            _affine(source, value, image)
        else:
            _sharpen(source, np.float32(value[0]), image)


@compiled
def _mix(image: Image, code: int, weight: np.float32, kept: Image, total: NDArray[np.float32]) -> None:
    pixels = image.reshape(-1)
    if code == _MIX_BEGIN:
        kept[:] = image
        total[:] = pixels * weight
    elif code == _MIX_ADD:
        total += pixels * weight
        image[:] = kept
    else:
        pixels[:] = total.astype(np.uint8)


@compiled
def _grey(image: Image, y: int, x: int) -> np.float32:
    red, green, blue = np.float32(image[y, x, 0]), np.float32(image[y, x, 1]), np.float32(image[y, x, 2])
    return red * np.float32(0.2989) + green * np.float32(0.587) + blue * np.float32(0.114)


@compiled
def _clamped(value: np.float32) -> np.uint8:
    return np.uint8(min(max(value, np.float32(0)), np.float32(255)))


@compiled
def _saturate(image: Image, factor: np.float32) -> None:
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            rest = np.floor(_grey(image, y, x)) * (np.float32(1) - factor)
            for channel in range(3):
                image[y, x, channel] = _clamped(np.float32(image[y, x, channel]) * factor + rest)


@compiled
def _contrast(image: Image, factor: np.float32) -> None:
    total = 0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            total += int(_grey(image, y, x))
    rest = np.float32(total / (image.shape[0] * image.shape[1])) * (np.float32(1) - factor)
    pixels = image.reshape(-1)
    for k in range(pixels.size):
        pixels[k] = _clamped(np.float32(pixels[k]) * factor + rest)


@compiled
def _sharpen(source: Image, factor: np.float32, image: Image) -> None:
    """Mix the inside with its blur by (1, 1, 1; 1, 5, 1; 1, 1, 1) / 13, which is never halfway between integers."""
    stride = 3 * image.shape[1]
    before, after = source.reshape(-1), image.reshape(-1)
    sums = np.empty(stride, np.int32)
    for y in range(1, image.shape[0] - 1):
        above, line, below = before[(y - 1) * stride :], before[y * stride :], before[(y + 1) * stride :]
        for k in range(stride):
            sums[k] = np.int32(above[k]) + np.int32(line[k]) + np.int32(below[k])
        for k in range(3, stride - 3):
            value = np.float32(line[k])
            near = np.float32(sums[k - 3] + sums[k] + sums[k + 3]) + np.float32(4) * value
            blurred = np.rint(near * np.float32(1 / 13))
            after[y * stride + k] = _clamped(value + (blurred - value) * (np.float32(1) - factor))


@compiled
def _shift_hue(image: Image, shift: np.float32) -> None:
    """By the hexagonal model: channel = value - chroma * clamp(min(k, 4 - k), 0, 1), k = (n + 6 hue) mod 6."""
    scale = np.float32(1 / 255)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            red, green, blue = image[y, x, 0] * scale, image[y, x, 1] * scale, image[y, x, 2] * scale
            high, low = max(red, green, blue), min(red, green, blue)
            chroma = high - low
            if chroma == 0:
                continue
            if high == red:
                sextant = (green - blue) / chroma
            elif high == green:
                sextant = np.float32(2) + (blue - red) / chroma
            else:
                sextant = np.float32(4) + (red - green) / chroma
            for channel in range(3):
                k = (np.float32(5 - 2 * channel) + sextant + np.float32(6) * shift) % np.float32(6)
                part = min(max(min(k, np.float32(4) - k), np.float32(0)), np.float32(1))
                image[y, x, channel] = np.uint8((high - chroma * part) * np.float32(255.999))


@compiled
def _look_up(image: Image, table: NDArray[np.uint8]) -> None:
    """Replace values by those of a (3, 256) table."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for channel in range(3):
                image[y, x, channel] = table[channel, image[y, x, channel]]


@compiled
def _histograms(image: Image) -> NDArray[np.int64]:
    counts = np.zeros((3, 256), np.int64)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for channel in range(3):
                counts[channel, image[y, x, channel]] += 1
    return counts


@compiled
def _autocontrast(image: Image) -> None:
    counts = _histograms(image)
    table = np.empty((3, 256), np.uint8)
    for channel in range(3):
        used = np.flatnonzero(counts[channel])
        low, high = np.float32(used[0]), np.float32(used[-1])
        if low == high:
            low, step = np.float32(0), np.float32(1)
        else:
            step = (high - low) * np.float32(1 / 255)
        for value in range(256):
            table[channel, value] = _clamped((np.float32(value) - low) / step)
    _look_up(image, table)


@compiled
def _equalize(image: Image) -> None:
    counts = _histograms(image)
    table = np.empty((3, 256), np.uint8)
    for channel in range(3):
        highest = np.flatnonzero(counts[channel])[-1]
        step = (counts[channel].sum() - counts[channel, highest]) // 255
        below = step // 2
        for value in range(256):
            table[channel, value] = value if step == 0 else min(below // step, 255)
            below += counts[channel, value]
    _look_up(image, table)


@compiled
def _blur(image: Image, sigma: np.float32, total: NDArray[np.float32]) -> None:
    """Two passes over the image continued by its reflection; ``total`` is scratch memory of its size."""
    size, width = image.shape[0], 3 * image.shape[1]
    radius = min(int(np.ceil(4 * sigma)), size - 1, image.shape[1] - 1)
    if radius <= 0:
        return
    places = np.arange(-radius, radius + 1).astype(np.float32)
    weights = np.exp(-places * places / (np.float32(2) * sigma * sigma)).astype(np.float32)
    weights /= weights.sum()
    lines, pixels = total.reshape(size, width), image.reshape(size, width)
    padded = np.empty(width + 6 * radius, np.float32)
    for y in range(size):
        padded[3 * radius : 3 * radius + width] = pixels[y]
        for x in range(3 * radius):
            place = x // 3 + 1
            padded[3 * (radius - place) + x % 3] = pixels[y, 3 * place + x % 3]
            padded[3 * (radius + place - 1) + width + x % 3] = pixels[y, width - 3 * (place + 1) + x % 3]
        line = lines[y]
        line[:] = 0
        for tap in range(2 * radius + 1):
            for x in range(width):
                line[x] += weights[tap] * padded[x + 3 * tap]
    line = padded[:width]
    for y in range(size):
        line[:] = 0
        for tap in range(2 * radius + 1):
            row = abs(y + tap - radius)
            other = lines[row if row < size else 2 * (size - 1) - row]
            for x in range(width):
                line[x] += weights[tap] * other[x]
        for x in range(width):
            pixels[y, x] = np.uint8(np.rint(line[x]))


@compiled
def _affine(source: Image, value: NDArray[np.float64], image: Image) -> None:
    """Read each pixel where the matrix says, as ``grid_sample`` with coordinates from -1 to 1 does."""
    size = image.shape[0]
    half, one, scale = np.float32(0.5), np.float32(1), np.float32(size)
    a, b, c = (value[:3].astype(np.float32) / (half * scale)).astype(np.float32)
    d, e, f = (value[3:6].astype(np.float32) / (half * scale)).astype(np.float32)
    fill = np.maximum(value[7:], 0).astype(np.uint8)
    rows, columns = np.empty(size, np.float32), np.empty(size, np.float32)
    for y in range(size):
        down = np.float32(y) - half * (scale - one)
        for x in range(size):
            right = np.float32(x) - half * (scale - one)
            columns[x] = ((right * a + down * b + c + one) * scale - one) * half
            rows[x] = ((right * d + down * e + f + one) * scale - one) * half
        for x in range(size):
            if value[6] != 0:
                _interpolate(source, rows[x], columns[x], value, image[y, x])
                continue
            at_y, at_x = int(np.rint(rows[x])), int(np.rint(columns[x]))
            inside = 0 <= at_x < size and 0 <= at_y < size
            for channel in range(3):
                image[y, x, channel] = source[at_y, at_x, channel] if inside else fill[channel]


@compiled
def _interpolate(
    source: Image, row: np.float32, column: np.float32, value: NDArray[np.float64], pixel: NDArray[np.uint8]
) -> None:
    size = source.shape[0]
    top, left = np.floor(row), np.floor(column)
    down, right = row - top, column - left
    sums = (np.float32(0), np.float32(0), np.float32(0))
    covered = np.float32(0)
    for dy in range(2):
        for dx in range(2):
            y, x = int(top) + dy, int(left) + dx
            if 0 <= y < size and 0 <= x < size:
                weight = (down if dy else np.float32(1) - down) * (right if dx else np.float32(1) - right)
                covered += weight
                sums = (
                    sums[0] + weight * source[y, x, 0],
                    sums[1] + weight * source[y, x, 1],
                    sums[2] + weight * source[y, x, 2],
                )
    for channel in range(3):
        total, fill = sums[channel], np.float32(value[7 + channel])
        if fill >= 0:
            total = (total - fill) * covered + fill
        pixel[channel] = np.uint8(np.rint(total))
