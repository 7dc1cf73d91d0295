"""Damaged images: an error that names the first of them, and no access outside any array."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from respipe.jpeg.header import read_header
from tests.backends.fuzzing import damaged
from tests.backends.tiles.jpegs import decode_crops, encode, noise

HEIGHT, WIDTH, SIZE = 60, 80, 24


def decode(
    images: list[bytes], *, seed: int = 0, hulls: NDArray[np.int64] | None = None
) -> tuple[int, NDArray[np.uint8]]:
    """What the compiled loop returns, and the pixels."""
    stored = [np.frombuffer(image, np.uint8) for image in images]
    shapes = np.tile([HEIGHT, WIDTH], (len(images), 1))
    if hulls is None:
        hulls = np.random.default_rng(seed).integers((-5, -5, 1, 1), (HEIGHT, WIDTH, HEIGHT, WIDTH), (len(images), 4))
    out = np.full((len(images), SIZE, SIZE, 3), 7, np.uint8)
    boxes, flips = hulls.astype(np.float64), np.zeros(len(images), np.bool_)
    failed = decode_crops(stored, shapes, boxes[:, None], hulls[:, None], hulls, flips, (out,))
    return failed, out


def sound() -> bytes:
    return encode(noise(HEIGHT, WIDTH)).tobytes()


@pytest.mark.parametrize("row", [0, 2])
def test_the_first_damaged_image_is_told_and_those_before_it_are_decoded(row: int) -> None:
    images = [sound()] * 4
    images[row] = images[3] = sound()[:200]
    failed, pixels = decode(images)
    assert failed == row
    assert (pixels[:row] != 7).any(axis=(1, 2, 3)).all()
    assert (pixels[row:] == 7).all()


def test_damage_is_told_or_leaves_pixels() -> None:
    outcomes = [decode([image], seed=seed)[0] for seed, image in enumerate(damaged(sound(), count=3000))]
    assert set(outcomes) == {0, -1}


@pytest.mark.parametrize("place", [0, 3, 40])
def test_an_image_of_another_size_is_damaged(place: int) -> None:
    images = [sound()] * 41
    images[place] = encode(noise(WIDTH, HEIGHT)).tobytes()
    assert decode(images)[0] == place


def test_no_damage_makes_it_read_or_write_outside_its_arrays(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Compiled once more, with checks of every index; the few addresses computed by hand are bounded by those.
    program = (
        "from tests.backends.tiles import test_damage as tests\n"
        "outcomes = [tests.decode([image], seed=seed)[0]\n"
        "            for seed, image in enumerate(tests.damaged(tests.sound(), count=3000))]\n"
        "assert set(outcomes) == {0, -1}, set(outcomes)\n"
    )
    environment = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("numba"))}
    result = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_marker_within_a_tile_is_damage() -> None:
    image = sound()
    # The zero behind a byte 0xFF in the coded data becomes something else.
    scan = read_header(image).scan_start
    places = [place for place in range(scan, len(image) - 2) if image[place : place + 2] == b"\xff\x00"]
    assert len(places) > 3
    whole = np.array([[0, 0, HEIGHT, WIDTH]])
    for place in places:
        damaged = image[: place + 1] + b"\xc9" + image[place + 2 :]
        assert decode([damaged], hulls=whole)[0] == 0


def test_a_marker_in_a_part_of_a_tile_that_is_needed_is_damage() -> None:
    # Of a tile of five MCUs the last is left out, so that its end does not tell of the damage.
    image = encode(noise(HEIGHT, WIDTH), interval=5).tobytes()
    start = read_header(image).scan_start
    place = image.index(b"\xff\x00", start)
    damaged = image[:place] + b"\xff\xc9" + image[place + 2 :]
    corner = np.array([[0, 0, 2, 60]])
    assert decode([image], hulls=corner)[0] == -1
    assert decode([damaged], hulls=corner)[0] == 0
