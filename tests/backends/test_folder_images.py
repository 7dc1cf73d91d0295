"""Class folders of images as people have them: every engine shows the same, turned and coloured as Pillow does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import respipe
from respipe.conversion import verify
from respipe.errors import CorruptImageError
from respipe.storage.upright import decode
from tests.engines import needs_dali, needs_ffcv
from tests.odd_images import (
    HEIGHT,
    WIDTH,
    broken,
    encoded,
    harmless,
    jpeg_carriers,
    orientation_carriers,
    picture,
    turned,
)
from tests.storage.plain_beton import write_plain_beton

ENGINES = ["reference", pytest.param("dali", marks=needs_dali)]
FILE_ENGINES = ["reference", "tiles", pytest.param("ffcv", marks=needs_ffcv), pytest.param("dali", marks=needs_dali)]


def write(folder: Path, files: list[bytes]) -> Path:
    (folder / "class").mkdir(parents=True)
    for number, data in enumerate(files):
        # Extensions lie in real datasets, too.
        (folder / "class" / f"{number:04}.jpg").write_bytes(data)
    return folder


def load(path: Path, backend: str, *, num_images: int) -> torch.Tensor:
    schedule = respipe.schedules.Constant(32)
    loader = respipe.Loader(
        path, schedule, batch_size=num_images, training=False, backend=backend, dtype=torch.uint8, normalize=None
    )
    ((images, _),) = loader
    loader.close()
    return images.permute(0, 2, 3, 1).short()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A folder of odd images, and one of the same upright pixels as PNG."""
    files, upright = list[bytes](), list[bytes]()
    for orientation in range(2, 9):
        for _, data in orientation_carriers(orientation):
            files.append(data)
            upright.append(encoded_pixels(turned(np.asarray(picture()), orientation)))
        for _, data in jpeg_carriers(orientation):
            files.append(data)
            upright.append(encoded_pixels(turned(np.asarray(decode(encoded(picture())).image), orientation)))
    for _, data in harmless():
        files.append(data)
        upright.append(encoded_pixels(np.asarray(decode(data, collect_warnings=True).image)))
    folder = tmp_path_factory.mktemp("odd")
    return write(folder / "odd", files), write(folder / "upright", upright), len(files)


def encoded_pixels(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(np.ascontiguousarray(pixels)), "PNG")


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.filterwarnings("default::UserWarning:PIL")
def test_engines_show_odd_images_as_their_upright_pixels(odd: tuple[Path, Path, int], backend: str) -> None:
    path, upright, num_images = odd
    found, expected = (load(each, backend, num_images=num_images) for each in (path, upright))
    assert torch.equal(found, expected)
    assert (found - load(upright, "reference", num_images=num_images)).abs().float().mean() < 1


@pytest.mark.parametrize("backend", FILE_ENGINES)
def test_converted_odd_images_are_those_of_the_upright_pixels(
    odd: tuple[Path, Path, int], backend: str, tmp_path: Path
) -> None:
    path, upright, num_images = odd
    for folder in (path, upright):
        respipe.convert(folder, tmp_path / f"{folder.name}.beton", levels=(64, 32), num_workers=0)
    found, expected = (
        load(tmp_path / f"{folder.name}.beton", backend, num_images=num_images) for folder in (path, upright)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", ENGINES)
def test_conversion_verification_and_loading_agree_on_damage(backend: str, tmp_path: Path) -> None:
    sound = encoded(picture())
    damaged = [(name, data) for name, data, _ in broken() if data.startswith(b"\xff\xd8")]
    # All sound when the folder is opened; then some go bad.
    path = write(tmp_path / "folder", [sound] * (len(damaged) + 2))
    loader = respipe.Loader(
        path, respipe.schedules.Constant(32), batch_size=4, backend=backend, on_corrupt="quarantine", training=False
    )
    for number, (_, data) in enumerate(damaged):
        (path / "class" / f"{number:04}.jpg").write_bytes(data)
    assert sum(len(images) for images, _ in loader) == 2
    report = respipe.convert(path, tmp_path / "x.beton", allow_corrupt=len(damaged), num_workers=0)
    verified = verify(path, num_workers=0)
    assert list(loader.quarantined) == [note.index for note in report.quarantined] == list(range(len(damaged)))
    assert [note.reason for note in report.quarantined] == [note.reason for note in verified.damaged]
    for note in report.quarantined:
        assert note.reason in loader.quarantined[note.index]
    loader.close()


def test_a_damaged_image_ends_an_epoch_that_may_not_leave_it_out(tmp_path: Path) -> None:
    sound = encoded(picture())
    path = write(tmp_path / "folder", [sound] * 3)
    loader = respipe.Loader(path, respipe.schedules.Constant(32), batch_size=3, backend="reference", training=False)
    middle = len(sound) * 3 // 4
    (path / "class/0001.jpg").write_bytes(sound[:middle] + b"\xff\xd9")
    with pytest.raises(CorruptImageError, match=r"sample 1 .*premature end.*respipe verify"):
        list(loader)
    loader.close()


@pytest.mark.parametrize("backend", ENGINES)
def test_a_loader_leaves_out_what_could_not_be_read_when_it_was_built(backend: str, tmp_path: Path) -> None:
    damaged = [data for _, data, _ in broken()]
    path = write(tmp_path / "folder", [encoded(picture()), *damaged, encoded(picture())])
    loader = respipe.Loader(
        path, respipe.schedules.Constant(32), batch_size=len(damaged) + 2, backend=backend, on_corrupt="quarantine"
    )
    ((images, _),) = loader
    assert len(images) == len(damaged) + 2  # as planned
    assert sorted(loader.quarantined) == list(range(1, len(damaged) + 1))
    loader.close()


@pytest.mark.parametrize("backend", [pytest.param("ffcv", marks=needs_ffcv), *ENGINES])
def test_engines_agree_on_damage_in_files_without_checksums(backend: str, tmp_path: Path) -> None:
    sound = encoded(picture())
    gap = sound[: len(sound) * 3 // 4] + b"\xff\xd9"
    complaint = sound[:-2] + b"extra" + sound[-2:]
    images = [(0, WIDTH, HEIGHT, data) for data in (sound, gap, complaint, sound)]
    path = write_plain_beton(tmp_path / "x.beton", images, range(4))
    loader = respipe.Loader(
        path, respipe.schedules.Constant(32), batch_size=4, backend=backend, on_corrupt="quarantine", training=False
    )
    ((pixels, _),) = loader
    assert len(pixels) == 2
    damaged = [image.index for image in verify(path, num_workers=0).damaged]
    assert list(loader.quarantined) == damaged == [1, 2]
    loader.close()
