"""Conversion in parts: any order, any process, killed and repeated, and the whole equals the single conversion."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from respipe.conversion import TooManyCorruptError
from respipe.errors import ConversionError, StorageError
from respipe.storage import BetonDataset, open_dataset
from respipe.storage.shards import shard_name
from tests.small_pages import convert_small

ROOT = Path(__file__).parents[2]


def start_part(source: Path, target: Path, part: str, moment: str = "") -> subprocess.Popen[str]:
    """A process that converts a part of eight shards, and kills itself at some moment of every file it makes."""
    command = [sys.executable, "-m", "tests.conversion.interrupted", str(source), str(target), moment, "0", "8", part]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "x"
    convert_small(jpeg_folder, folder, shards=8)
    return contents(folder)


def test_four_parts_by_four_processes_one_of_them_killed_and_repeated_equal_the_single_conversion(
    jpeg_folder: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    target, single = tmp_path / "x", tmp_path / "x.beton"
    moments = ["", "", "samples:3", ""]
    processes = [start_part(jpeg_folder, target, f"{number}/4", moments[number]) for number in (3, 2, 1, 0)]
    for process, number in zip(processes, (3, 2, 1, 0), strict=True):
        _, errors = process.communicate(timeout=170)
        assert process.returncode == (-signal.SIGKILL if moments[number] else 0), errors
    with pytest.raises(StorageError, match=r"no index\.json yet"):
        open_dataset(target)
    repeated = start_part(jpeg_folder, target, "2/4")
    _, errors = repeated.communicate(timeout=170)
    assert repeated.returncode == 0, errors
    assert contents(target) == undisturbed
    convert_small(jpeg_folder, single)
    with closing(open_dataset(target)) as several, closing(BetonDataset(single)) as one:
        assert several.fingerprint == one.fingerprint


def test_a_finished_part_is_not_made_again(jpeg_folder: Path, tmp_path: Path) -> None:
    first = convert_small(jpeg_folder, tmp_path / "x", shards=3, part=(1, 3))
    before = (tmp_path / "x" / shard_name(1, 3)).stat().st_mtime_ns
    again = convert_small(jpeg_folder, tmp_path / "x", shards=3, part=(1, 3), overwrite=True)
    assert (tmp_path / "x" / shard_name(1, 3)).stat().st_mtime_ns == before
    assert (again.num_images, again.num_resumed, first.num_resumed) == (6, 6, 0)
    assert again.levels == first.levels
    whole = convert_small(jpeg_folder, tmp_path / "x", shards=3)
    assert (whole.num_samples, whole.num_images, whole.num_resumed) == (18, 18, 6)


def test_files_of_other_settings_are_in_the_way(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x", shards=3, part=(1, 3))
    with pytest.raises(ConversionError, match=r"shard-00001-of-00003\.beton exists already"):
        convert_small(jpeg_folder, tmp_path / "x", shards=3, quality=50)
    convert_small(jpeg_folder, tmp_path / "x", shards=3, quality=50, overwrite=True)
    with closing(open_dataset(tmp_path / "x")) as dataset:
        assert dataset.attributes["settings"]["quality"] == 50  # type: ignore[attr-defined]


def test_undecodable_images_are_left_out_as_by_the_single_conversion(
    jpeg_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "source"
    shutil.copytree(jpeg_folder, source)
    for name in ("ant/1.jpg", "cat/5.jpg"):
        (source / name).write_bytes(b"no image")
    convert_small(source, tmp_path / "x.beton", allow_corrupt=2)
    with pytest.raises(TooManyCorruptError) as caught:
        convert_small(source, tmp_path / "x", shards=4, allow_corrupt=1)
    assert [note.index for note in caught.value.report.quarantined] == [1, 17]
    with caplog.at_level(logging.INFO):
        report = convert_small(source, tmp_path / "x", shards=4, allow_corrupt=2)
    assert [(note.index, note.name) for note in report.quarantined] == [(1, "ant/1.jpg"), (17, "cat/5.jpg")]
    with closing(open_dataset(tmp_path / "x")) as several, closing(BetonDataset(tmp_path / "x.beton")) as one:
        assert several.fingerprint == one.fingerprint


def test_workers_and_progress_go_through_all_files(
    jpeg_folder: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    seen: list[tuple[int, int]] = []
    convert_small(jpeg_folder, tmp_path / "x", shards=8, num_workers=2, progress=lambda *done: seen.append(done))
    assert contents(tmp_path / "x") == undisturbed
    assert {total for _, total in seen} == {18}
    assert sorted({done for done, _ in seen}) == list(range(19))
    index = json.loads((tmp_path / "x" / "index.json").read_text())
    assert [entry["num_samples"] for entry in index["shards"]] == [2, 2, 2, 3, 2, 2, 2, 3]
    assert (index["num_samples"], index["classes"]) == (18, ["ant", "bee", "cat"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": (0, 2)}, "`part` must be left out without `shards`"),
        ({"shards": 4, "part": (4, 4)}, r"`part` must be \(i, n\)"),
        ({"shards": 4, "part": (0, 5)}, r"`part` must be \(i, n\)"),
        ({"shards": 0}, "`shards` must be"),
        ({"shards": 19}, "`shards` must be at most the number of images, 18; got 19"),
    ],
)
def test_impossible_parts_are_refused(
    jpeg_folder: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert_small(jpeg_folder, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")
def test_a_ray_cluster_that_loses_a_worker_makes_the_same_dataset(jpeg_folder: Path, tmp_path: Path) -> None:
    target, mark = tmp_path / "x", tmp_path / "mark"
    result = subprocess.run(
        [sys.executable, "-m", "tests.conversion.ray_conversion", str(jpeg_folder), str(target), str(mark)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert result.returncode == 0, result.stderr
    assert mark.exists()
    assert result.stdout.splitlines()[-1] == "(18, 18)"
    convert_small(jpeg_folder, tmp_path / "x.beton")
    with closing(open_dataset(target)) as several, closing(BetonDataset(tmp_path / "x.beton")) as one:
        assert several.fingerprint == one.fingerprint


def test_ray_makes_all_parts(jpeg_folder: Path, tmp_path: Path) -> None:
    for options in ({}, {"shards": 4, "part": (0, 2)}):
        with pytest.raises(ValueError, match="`engine` 'ray' must have `shards`, and no `part`"):
            convert_small(jpeg_folder, tmp_path / "x", engine="ray", **options)
