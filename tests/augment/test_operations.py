"""Planned operations against torchvision's functionals of the same parameters, on both ways to carry them out."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from respipe.augment.operations import augment_tensor, resolve
from respipe.planning.augmentation import FILL_MEAN, FILL_NONE, NUM_VALUES, Augmentation, Op

MEAN = (0.485, 0.456, 0.406)
Images = NDArray[np.uint8]

# The range of each operation's first parameter.
RANGES: dict[Op, tuple[float, float]] = {
    Op.SHEAR_X: (-0.99, 0.99),
    Op.SHEAR_Y: (-0.99, 0.99),
    Op.TRANSLATE_X: (-0.45, 0.45),
    Op.TRANSLATE_Y: (-0.45, 0.45),
    Op.ROTATE: (-180, 180),
    Op.BRIGHTNESS: (0, 2),
    Op.SATURATION: (0, 2),
    Op.CONTRAST: (0, 2),
    Op.SHARPNESS: (0, 2),
    Op.HUE: (-0.5, 0.5),
    Op.POSTERIZE: (0, 8),
    Op.SOLARIZE: (0, 255),
    Op.AUTOCONTRAST: (0, 0),
    Op.EQUALIZE: (0, 0),
    Op.INVERT: (0, 0),
    Op.GRAYSCALE: (0, 0),
    Op.BLUR: (0, 0.03),
}


def pictures(count: int, size: int) -> Images:
    """Smooth colours with noise, of less than full contrast, and one image of a single colour."""
    rng = np.random.default_rng(size)
    y, x = np.mgrid[0:size, 0:size] / size
    phase = rng.uniform(0, 6, (count, 3, 1, 1))
    waves = 120 + 80 * np.sin(phase + 9 * x + 5 * y * phase) + rng.normal(0, 15, (count, 3, size, size))
    images = waves.clip(15, 240).astype(np.uint8).transpose(0, 2, 3, 1).copy()
    images[0] = (10, 200, 10)
    return images


def drawn(op: Op, count: int) -> Augmentation:
    rng = np.random.default_rng(op)
    values = np.zeros((count, 1, NUM_VALUES))
    values[:, 0, 0] = rng.uniform(*RANGES[op], count)
    values[-2:, 0, 0] = RANGES[op][:count]
    if op == Op.POSTERIZE:
        values = np.rint(values)
    if op <= Op.ROTATE:
        values[:, 0, 1] = np.arange(count) % 2
        values[:, 0, 2] = rng.choice([FILL_NONE, 0x10F080], count)
    return Augmentation(operations=np.full((count, 1), op, np.uint8), values=values)


def by_torchvision(image: torch.Tensor, op: Op, values: NDArray[np.float64]) -> torch.Tensor:
    size, amount = image.shape[-1], float(values[0])
    mode = InterpolationMode("bilinear" if values[1] else "nearest")
    fill = None if values[2] == FILL_NONE else [0x10, 0xF0, 0x80]
    if op in (Op.SHEAR_X, Op.SHEAR_Y):
        angles = [math.degrees(math.atan(amount)), 0.0]
        shear = angles if op == Op.SHEAR_X else angles[::-1]
        return tv.affine(image, 0.0, [0, 0], 1.0, shear, interpolation=mode, fill=fill, center=[0, 0])
    if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        shift = [int(amount * size), 0]
        shift = shift if op == Op.TRANSLATE_X else shift[::-1]
        return tv.affine(image, 0.0, shift, 1.0, [0.0, 0.0], interpolation=mode, fill=fill)
    if op == Op.ROTATE:
        return tv.rotate(image, amount, interpolation=mode, fill=fill)
    if op == Op.BLUR:
        radius = min(math.ceil(4 * amount * size), size - 1)
        return tv.gaussian_blur(image, [2 * radius + 1] * 2, [amount * size] * 2) if radius else image
    functions: dict[Op, Callable[[], torch.Tensor]] = {
        Op.BRIGHTNESS: lambda: tv.adjust_brightness(image, amount),
        Op.SATURATION: lambda: tv.adjust_saturation(image, amount),
        Op.CONTRAST: lambda: tv.adjust_contrast(image, amount),
        Op.SHARPNESS: lambda: tv.adjust_sharpness(image, amount),
        Op.HUE: lambda: tv.adjust_hue(image, amount),
        Op.POSTERIZE: lambda: tv.posterize(image, int(amount)),
        Op.SOLARIZE: lambda: tv.solarize(image, amount),
        Op.AUTOCONTRAST: lambda: tv.autocontrast(image),
        Op.EQUALIZE: lambda: tv.equalize(image),
        Op.INVERT: lambda: tv.invert(image),
        Op.GRAYSCALE: lambda: tv.rgb_to_grayscale(image, 3),
    }
    return functions[op]()


def carried_out(way: str, images: Images, plan: Augmentation) -> Images:
    resolved = resolve(plan, images.shape[1], MEAN)
    result = images.copy()
    if way == "compiled":
        resolved.augment(result, 0, len(result))
    else:
        augment_tensor(torch.from_numpy(result), resolved)
    return result


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("size", [2, 33, 96])
@pytest.mark.parametrize("op", list(RANGES))
def test_an_operation_is_torchvisions_functional(way: str, op: Op, size: int) -> None:
    images, plan = pictures(8, size), drawn(op, 8)
    result = carried_out(way, images, plan).astype(int)
    for image, found, values in zip(images, result, plan.values[:, 0], strict=True):
        planes = torch.from_numpy(image).permute(2, 0, 1).contiguous()
        wanted = by_torchvision(planes, op, values).permute(1, 2, 0).numpy()
        assert abs(found - wanted).max() <= 1, values


def test_a_rectangle_is_erased_where_it_was_planned(way: str) -> None:
    values = np.array([[[0.5, 0.25, 0.99, 0.0, FILL_MEAN]], [[0.1, 0.3, 0.5, 0.5, 0xFF0001]]])
    plan = Augmentation(operations=np.full((2, 1), Op.ERASE, np.uint8), values=values)
    images = pictures(2, 20)
    wanted = images.copy()
    wanted[0, 10:20, 0:5] = (124, 116, 104)
    wanted[1, 9:11, 7:13] = (255, 0, 1)
    assert np.array_equal(carried_out(way, images, plan), wanted)


def test_a_hole_is_cut_off_at_the_edge_and_follows_the_size(way: str) -> None:
    values = np.array([[[0.0, 0.5, 0.25, 0xFFFFFF, 0.0]]])
    plan = Augmentation(operations=np.full((1, 1), Op.CUT, np.uint8), values=values)
    for size in (16, 32):
        images = np.zeros((1, size, size, 3), np.uint8)
        hole = np.argwhere(carried_out(way, images, plan)[0, ..., 0])
        assert hole.min(axis=0).tolist() == [0, size // 2 - size // 8]
        assert hole.max(axis=0).tolist() == [size // 8 - 1, size // 2 + size // 8 - 1]


def test_a_mix_is_the_weighted_sum_of_chains_on_the_same_image(way: str) -> None:
    images = pictures(3, 24)
    rows = [(Op.MIX_BEGIN, 0.5), (Op.INVERT, 0), (Op.MIX_ADD, 0.25), (Op.SOLARIZE, 128), (Op.MIX_ADD, 0.25)]
    rows.append((Op.MIX_END, 0))
    # The second image mixes one place later, the third not at all.
    operations = np.zeros((3, 7), np.uint8)
    values = np.zeros((3, 7, NUM_VALUES))
    for image in range(2):
        operations[image, image : image + 6] = [op for op, _ in rows]
        values[image, image : image + 6, 0] = [value for _, value in rows]
    result = carried_out(way, images, Augmentation(operations=operations, values=values))
    solarized = np.where(images >= 128, 255 - images, images)
    wanted = 0.5 * images + 0.25 * (255 - images) + 0.25 * solarized
    assert np.array_equal(result[:2], wanted[:2].astype(np.uint8))
    assert np.array_equal(result[2], images[2])


def test_an_image_does_not_depend_on_the_others_of_its_batch(way: str) -> None:
    images = pictures(len(RANGES), 40)
    plans = [drawn(op, 1) for op in RANGES]
    plan = Augmentation(
        operations=np.concatenate([one.operations for one in plans]),
        values=np.concatenate([one.values for one in plans]),
    )
    together = carried_out(way, images, plan)
    for row in range(len(images)):
        part = slice(row, row + 1)
        alone = carried_out(way, images[part], plan.take(part))
        assert abs(alone[0].astype(int) - together[row]).max() <= 1
