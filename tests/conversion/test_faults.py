"""A conversion whose disk, source, permissions or workers fail, and what `verify` sees of a changed file."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from respipe.conversion import convert, verify
from respipe.conversion.sources.folder import FolderSource
from respipe.errors import ConversionError, StorageError, WorkerLostError
from respipe.storage import BetonDataset
from tests.slow import kill_conversions
from tests.small_pages import convert_small

ROOT = Path(__file__).parents[2]


def test_a_conversion_killed_at_a_random_moment_is_finished_by_a_rerun(jpeg_folder: Path) -> None:
    assert kill_conversions.main([str(jpeg_folder), "--times", "1"]) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_conversion_and_more_room_finishes_it(jpeg_folder: Path, small_disk: Path) -> None:
    target = small_disk / "x.beton"
    with pytest.raises(ConversionError, match="no room left"):
        convert_small(jpeg_folder, target)
    assert not target.exists()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    report = convert_small(jpeg_folder, target)
    assert (report.num_images, [path.name for path in small_disk.iterdir()]) == (18, ["x.beton"])
    assert verify(target, num_workers=0).sound


class KillsItsWorker(FolderSource):
    """A class folder whose tenth image ends the process that reads it, the first time."""

    def read(self, index: int) -> bytes:
        mark = self._folder.root.parent / "killed"
        if index == 9 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


def test_a_killed_worker_is_an_error_and_the_rerun_loses_and_doubles_nothing(jpeg_folder: Path, tmp_path: Path) -> None:
    source = KillsItsWorker(shutil.copytree(jpeg_folder, tmp_path / "source"))
    target = tmp_path / "x.beton"
    with pytest.raises(WorkerLostError, match="status -9"):
        convert(source, target, levels=(128, 64, 32), num_workers=2)
    assert not target.exists()
    convert(source, target, levels=(128, 64, 32), num_workers=2)
    dataset = BetonDataset(target)
    assert [dataset.name(index) for index in range(len(dataset))] == [source.name(index) for index in range(18)]
    assert verify(target, num_workers=0).sound


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from respipe.conversion import TooManyCorruptError, convert
from respipe.errors import ConversionError, StorageError
import PIL.JpegImagePlugin, simplejpeg
from respipe.conversion.sources.base import source_specs
source_specs()
os.seteuid(65534)
options = {"levels": (64,), "num_workers": 0}
for task, error in (
    (lambda: convert("source", "locked/x.beton", **options), ConversionError),
    (lambda: convert("closed", "open/x.beton", **options), StorageError),
    (lambda: convert("source", "open/x.beton", **options), TooManyCorruptError),
):
    try:
        task()
    except error as found:
        print(found)
"""


def test_denied_permissions_are_errors_that_name_the_file(jpeg_folder: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, which can lay its rights down")
    shutil.copytree(jpeg_folder, tmp_path / "source")
    shutil.copytree(jpeg_folder, tmp_path / "closed")
    for name, mode in (("locked", 0o755), ("open", 0o777), ("closed/bee", 0o700)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name).chmod(mode)
    (tmp_path / "source/bee/1.jpg").chmod(0o600)
    for folder in (tmp_path, tmp_path / "source", tmp_path / "closed"):
        folder.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    locked, closed, unreadable = result.stdout.splitlines()
    assert "locked/x.beton had to stop: " in locked
    assert "Permission denied" in locked
    assert "closed cannot be read" in closed
    assert "bee/1.jpg: Permission denied" in unreadable
    (tmp_path / "source/bee/1.jpg").chmod(0o644)
    report = convert(tmp_path / "source", tmp_path / "open/x.beton", levels=(64,), num_workers=0)
    assert (report.num_images, report.num_corrupt) == (18, 0)


def test_verify_finds_a_flipped_bit_wherever_it_is(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    sound = (tmp_path / "x.beton").read_bytes()
    rng = np.random.default_rng(0)
    # The ends of the file hold its tables; most of what lies between is image, or unused.
    places = {*range(24), *range(len(sound) - 600, len(sound), 3), *rng.integers(0, len(sound), 300).tolist()}
    unseen = list[int]()
    for number, place in enumerate(sorted(places)):
        path = tmp_path / f"{number}.beton"
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << int(rng.integers(8))]) + sound[place + 1 :])
        try:
            report = verify(path, num_workers=0)
        except StorageError:
            pass
        else:
            unseen += [place] if report.sound else []
            assert report.damaged or report.stray_bytes == (place,)
        path.unlink()
    assert not unseen


def test_what_an_interrupted_finish_left_in_unused_bytes_is_cleared(jpeg_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.beton"
    moment = [sys.executable, "-m", "tests.conversion.interrupted", str(jpeg_folder), str(target), "page:2", "0"]
    subprocess.run(moment, cwd=ROOT, check=False)
    with Path(f"{target}.partial").open("r+b") as file:
        file.seek(2100)
        file.write(b"left behind")
    convert_small(jpeg_folder, target)
    assert verify(target, num_workers=0).sound
