"""The demo's data: small photographs of things that do not exist.

Each image shows one large shape, which is its class, at a random place, tilt, scale and colour, before a cluttered
background. Colours say nothing about the class; each class has a favourite texture, which it shares with another one.
Image ``i`` of a split depends on the seed, the split and ``i`` alone::

    python -m pipelines.demo_images .demo/images --train 1600 --val 400
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from rich.progress import track

from respipe.processes import num_cores

Points = NDArray[np.float64]
Pixels = NDArray[np.float32]

_SUPERSAMPLING = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo_images", description="Render the demo's images.")
    parser.add_argument("target", type=Path, help="folder that receives train/ and val/ with one subfolder per class")
    parser.add_argument("--train", type=int, default=1600, help="number of training images")
    parser.add_argument("--val", type=int, default=400, help="number of validation images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    jobs = [("train", i) for i in range(options.train)] + [("val", i) for i in range(options.val)]
    work = partial(write_image, options.target, options.seed)
    with ProcessPoolExecutor(num_cores()) as pool:
        for _ in track(pool.map(work, jobs, chunksize=16), "rendering", total=len(jobs)):
            pass


def write_image(target: Path, seed: int, job: tuple[str, int]) -> None:
    """Render one image into ``target/SPLIT/CLASS/NUMBER.jpg``.

    Args:
        target: folder of the data set.
        seed: of the data set.
        job: split, "train" or "val", and number of the image in it.
    """
    split, number = job
    names = sorted(SHAPES)
    label = number % len(names)
    name = names[label]
    rng = np.random.default_rng([seed, ("train", "val").index(split), number])
    path = target / split / name / f"{number:05d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    texture = TEXTURES[(label if rng.random() < HABIT else int(rng.integers(len(TEXTURES)))) % len(TEXTURES)]
    render(SHAPES[name], texture, rng).save(path, quality=int(rng.integers(85, 96)))


def render(shape: Sequence[Points], texture: str, rng: np.random.Generator) -> Image.Image:
    """One image of a textured shape, 170 to 250 pixels a side."""
    height, width = (int(side) for side in rng.integers(170, 251, size=2))
    scene = _background(height, width, rng)
    mask = _mask(_placed(shape, height, width, rng), height, width)
    shadow = np.asarray(Image.fromarray(mask).filter(ImageFilter.BoxBlur(6)), np.float32)[..., None] / 255
    shift = tuple(int(offset) for offset in rng.integers(-9, 10, size=2))
    scene *= 1 - 0.5 * np.roll(shadow, shift, axis=(0, 1))
    cover = mask[..., None].astype(np.float32) / 255
    scene += cover * (_texture(texture, height, width, rng) - scene)
    light = rng.uniform(0.75, 1.15, size=(2, 2, 1)).astype(np.float32)
    scene *= _enlarged(light, height, width)
    scene += rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(2, 9))
    image = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.BoxBlur(float(rng.uniform(0, 0.8))))


def _background(height: int, width: int, rng: np.random.Generator) -> Pixels:
    """(H, W, 3) clouds of two scales with blobs and strokes in front, slightly out of focus, values 0..255."""
    coarse = _muted(rng.uniform(60, 195, size=(4, 4, 3)))
    fine = _muted(rng.normal(0, 12, size=(28, 28, 3)))
    # Drawn at a third of the size: enlarging it blurs it, as things in the background are.
    small_height, small_width = height // 3, width // 3
    scene = _enlarged(coarse, small_height, small_width) + _enlarged(fine, small_height, small_width)
    image = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 9))):
        x, y = rng.uniform(0, small_width), rng.uniform(0, small_height)
        dx, dy = rng.uniform(-12, 12, size=2)
        colour = tuple(int(value) for value in _muted(rng.uniform(0, 255, size=3)))
        if rng.random() < 0.5:
            draw.line((x, y, x + dx, y + dy), fill=colour, width=int(rng.integers(1, 4)))
        else:
            draw.ellipse((x, y, x + abs(dx) / 2, y + abs(dy) / 2), fill=colour)
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _texture(kind: str, height: int, width: int, rng: np.random.Generator) -> Pixels:
    """(H, W, 3) pattern of two colours, values 0..255."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(14, 34)
    rows, columns = np.ogrid[:height, :width]
    turned = (np.cos(angle) * columns + np.sin(angle) * rows, np.cos(angle) * rows - np.sin(angle) * columns)
    across, along = (np.sin((2 * np.pi / period * axis).astype(np.float32)) for axis in turned)
    if kind == "plain":
        pattern = 0 * across * along
    elif kind == "clouds":
        pattern = _enlarged(rng.uniform(-1, 1, size=(9, 9, 1)).astype(np.float32), height, width)[..., 0]
    elif kind == "stripes":
        pattern = np.sign(across) + 0 * along
    elif kind == "checks":
        pattern = np.sign(across * along)
    else:
        pattern = np.where(across + along > 1, np.float32(1), np.float32(-1))
    first, second = _muted(rng.uniform(0, 255, size=(2, 3)))
    return first + (0.5 + 0.4 * pattern[..., None]) * (second - first)


def _muted(colours: NDArray[np.float64]) -> Pixels:
    """Colours (..., 3) of less saturation, as most things outdoors have."""
    grey = colours.mean(axis=-1, keepdims=True)
    return (grey + 0.45 * (colours - grey)).astype(np.float32)


def _enlarged(values: Pixels, height: int, width: int) -> Pixels:
    """(h, w, C) values on a coarse grid to (H, W, C), smoothly."""
    planes = [
        np.asarray(Image.fromarray(values[..., channel]).resize((width, height), Image.Resampling.BICUBIC))
        for channel in range(values.shape[2])
    ]
    return np.stack(planes, axis=2)


def _placed(shape: Sequence[Points], height: int, width: int, rng: np.random.Generator) -> list[Points]:
    """The shape in pixels: at a random scale, stretch, tilt and place, wholly inside the image."""
    angle, radius = rng.uniform(-0.6, 0.6), rng.uniform(0.34, 0.48) * min(height, width)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.diag(rng.uniform(0.8, 1.0, size=2))
    centre = rng.uniform([radius, radius], [width - radius, height - radius])
    return [outline @ stretch @ turn * radius + centre for outline in shape]


def _mask(outlines: Sequence[Points], height: int, width: int) -> NDArray[np.uint8]:
    """(H, W) uint8, 255 inside the first outline and outside the others."""
    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for number, outline in enumerate(outlines):
        draw.polygon([tuple(point) for point in (outline * _SUPERSAMPLING).tolist()], fill=0 if number else 255)
    return np.asarray(canvas.reduce(_SUPERSAMPLING))


def _polar(radii: Sequence[float], *, start: float = 0.0) -> Points:
    """A closed outline with one corner per radius, evenly spaced in angle."""
    angles = start + np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array(radii)[:, None]


def _crescent() -> Points:
    """The unit disc without a disc of radius ``inner`` around (``shift``, 0)."""
    inner, shift = 0.8, 0.42
    tip_x = (1 - inner**2 + shift**2) / (2 * shift)
    tip_y = np.sqrt(1 - tip_x**2)
    outer_angle, inner_angle = np.arctan2(tip_y, tip_x), np.arctan2(tip_y, tip_x - shift)
    there = np.linspace(outer_angle, 2 * np.pi - outer_angle, 40)
    back = np.linspace(2 * np.pi - inner_angle, inner_angle, 30)
    arcs = [np.cos(there), np.sin(there)], [shift + inner * np.cos(back), inner * np.sin(back)]
    return np.concatenate([np.stack(arc, axis=1) for arc in arcs])


def _cross() -> Points:
    corner = np.array([[0.3, 0.3], [0.3, 0.95], [-0.3, 0.95]])
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([corner @ np.linalg.matrix_power(quarter, k) for k in range(4)])


SHAPES: dict[str, list[Points]] = {
    "arrow": [np.array([[1, 0], [0, 0.8], [0, 0.3], [-1, 0.3], [-1, -0.3], [0, -0.3], [0, -0.8]], np.float64)],
    "crescent": [_crescent()],
    "cross": [_cross()],
    "disc": [_polar([0.9] * 48)],
    "frame": [_polar([1.0] * 4), _polar([0.6] * 4)],
    "gear": [_polar([1.0, 1.0, 0.72, 0.72] * 8)],
    "ring": [_polar([1.0] * 48), _polar([0.6] * 48)],
    "square": [_polar([1.0] * 4)],
    "star": [_polar([1.0, 0.42] * 5)],
    "triangle": [_polar([1.0] * 3)],
}
"""Outlines within the unit circle by class; every outline after the first is a hole."""

TEXTURES = ("stripes", "checks", "dots", "clouds", "plain")
"""Class number i favours entry i, modulo their number."""

HABIT = 0.8
"""How often a class wears its favourite texture instead of any."""


if __name__ == "__main__":
    main()
