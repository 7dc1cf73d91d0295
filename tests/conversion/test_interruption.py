"""Killed at any moment, a conversion leaves no half-written target, and a rerun ends with the same bytes."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from respipe.errors import ConversionError, StorageError
from respipe.storage import BetonDataset
from tests.small_pages import convert_small

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def undisturbed(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("undisturbed") / "x.beton"
    convert_small(jpeg_folder, path)
    return path.read_bytes()


def run_until(
    moment: str, source: Path | str, target: Path, *, num_workers: int = 0, fields: Sequence[str] = ()
) -> None:
    """Convert in another process until it kills itself."""
    arguments = [str(source), str(target), moment, str(num_workers), "", "", ",".join(fields)]
    command = [sys.executable, "-m", "tests.conversion.interrupted", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == -signal.SIGKILL, result.stderr


@pytest.mark.parametrize(
    "moment",
    [
        *("samples:0", "samples:2", "samples:17", "half-page:0", "page:0", "half-page:2", "page:2", "torn:0", "torn:2"),
        *("finish", "replace"),
    ],
)
def test_killed_conversion_resumes_and_ends_with_the_same_bytes(
    jpeg_folder: Path, tmp_path: Path, undisturbed: bytes, moment: str
) -> None:
    target = tmp_path / "x.beton"
    run_until(moment, jpeg_folder, target)
    assert not target.exists()
    if moment != "replace":
        with pytest.raises(StorageError):
            BetonDataset(tmp_path / "x.beton.partial")
    report = convert_small(jpeg_folder, target)
    assert target.read_bytes() == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["x.beton"]
    assert report.num_images == 18
    assert (report.num_resumed > 0) == (moment not in ("samples:0", "samples:2", "half-page:0", "page:0", "torn:0"))


def test_killed_after_the_file_got_its_name_the_rerun_only_reports(
    jpeg_folder: Path, tmp_path: Path, undisturbed: bytes
) -> None:
    target = tmp_path / "x.beton"
    run_until("remove", jpeg_folder, target)
    assert target.read_bytes() == undisturbed
    report = convert_small(jpeg_folder, target)
    assert report.num_resumed == report.num_images == 18
    assert [path.name for path in tmp_path.iterdir()] == ["x.beton"]
    with pytest.raises(ConversionError, match="exists already"):
        convert_small(jpeg_folder, target)


def test_several_kills_in_a_row_with_worker_processes(jpeg_folder: Path, tmp_path: Path, undisturbed: bytes) -> None:
    target = tmp_path / "x.beton"
    for moment in ("samples:7", "page:3", "samples:18"):
        run_until(moment, jpeg_folder, target, num_workers=2)
    convert_small(jpeg_folder, target)
    assert target.read_bytes() == undisturbed


def test_other_settings_start_again(
    jpeg_folder: Path, tmp_path: Path, undisturbed: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "x.beton"
    run_until("page:3", jpeg_folder, target)
    with caplog.at_level(logging.WARNING):
        report = convert_small(jpeg_folder, target, quality=50)
    assert "other settings; starting again" in caplog.text
    assert report.num_resumed == 0
    assert target.read_bytes() != undisturbed
    convert_small(jpeg_folder, tmp_path / "y.beton", quality=50)
    assert target.read_bytes() == (tmp_path / "y.beton").read_bytes()


@pytest.mark.parametrize("lost", ["x.beton.partial", "x.beton.journal"])
def test_lost_partial_work_is_done_again(jpeg_folder: Path, tmp_path: Path, undisturbed: bytes, lost: str) -> None:
    run_until("page:3", jpeg_folder, tmp_path / "x.beton")
    (tmp_path / lost).unlink()
    report = convert_small(jpeg_folder, tmp_path / "x.beton")
    assert report.num_resumed == 0
    assert (tmp_path / "x.beton").read_bytes() == undisturbed


def test_foreign_journal_is_replaced(jpeg_folder: Path, tmp_path: Path, undisturbed: bytes) -> None:
    (tmp_path / "x.beton.journal").write_bytes(b"\x00\xffsome other file\n")
    convert_small(jpeg_folder, tmp_path / "x.beton")
    assert (tmp_path / "x.beton").read_bytes() == undisturbed


def test_interrupted_overwrite_leaves_the_old_file(jpeg_folder: Path, tmp_path: Path, undisturbed: bytes) -> None:
    target = tmp_path / "x.beton"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        convert_small(jpeg_folder, target, overwrite=True, progress=interrupt)
    assert target.read_bytes() == b"old"
    with pytest.raises(ConversionError, match="exists already"):
        convert_small(jpeg_folder, target)
    convert_small(jpeg_folder, target, overwrite=True)
    assert target.read_bytes() == undisturbed


def interrupt(done: int, _: int) -> None:
    if done == 9:
        raise KeyboardInterrupt
