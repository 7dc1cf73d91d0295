from __future__ import annotations

import contextlib
import io
import json
import re
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from respipe.conversion import TooManyCorruptError, convert
from respipe.conversion.journal import Journal
from respipe.errors import ConversionError, CorruptImageError, StorageError
from respipe.jpeg.index import read_index
from respipe.storage import BetonDataset, open_dataset
from tests.memory_dataset import jpeg_bytes, smooth_image
from tests.small_pages import LEVELS, PAGE_SIZE, convert_small


@pytest.fixture
def folder(jpeg_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(jpeg_folder, tmp_path / "source")


@pytest.mark.parametrize("num_workers", [1, 3])
def test_result_does_not_depend_on_the_number_of_workers(jpeg_folder: Path, tmp_path: Path, num_workers: int) -> None:
    convert_small(jpeg_folder, tmp_path / "0.beton")
    convert_small(jpeg_folder, tmp_path / "n.beton", num_workers=num_workers)
    assert (tmp_path / "0.beton").read_bytes() == (tmp_path / "n.beton").read_bytes()


def test_report_and_file_agree(jpeg_folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = convert_small(jpeg_folder, tmp_path / "x.beton", progress=lambda done, total: seen.append((done, total)))
    dataset = BetonDataset(tmp_path / "x.beton")
    assert seen == [(done, 18) for done in range(19)]
    assert (report.num_samples, report.num_images, report.num_corrupt) == (18, 18, 0)
    # Of the six shapes 150 x 90 and 80 x 200 are larger than the first level.
    assert (report.num_kept, report.num_reencoded) == (0, 18)
    assert report.traits == {"larger than 128 px": 6}
    before = np.zeros(18, np.int64)
    for level, summary in zip(dataset.levels, report.levels, strict=True):
        own, before = level.offsets != before, level.offsets
        assert summary.name == level.name
        assert summary.num_images == own.sum()
        assert summary.num_bytes == level.sizes[own].sum()
    assert json.loads(json.dumps(report.to_dict()))["num_corrupt"] == 0
    assert report.images_per_second > 0


def test_small_sources_are_kept_byte_for_byte_on_demand(jpeg_folder: Path, tmp_path: Path) -> None:
    report = convert_small(jpeg_folder, tmp_path / "x.beton", keep="bytes")
    assert (report.num_kept, report.num_reencoded) == (12, 6)
    dataset = BetonDataset(tmp_path / "x.beton")
    for index in range(18):
        source = (jpeg_folder / dataset.name(index)).read_bytes()
        with Image.open(io.BytesIO(source)) as image:
            small = max(image.size) <= LEVELS[0]
        assert (dataset.encoded(index).tobytes() == source) is small


@pytest.mark.parametrize(
    ("options", "tiled"),
    [({}, True), ({"keep": "pixels"}, True), ({"restart_interval": 0}, False), ({"keep": "bytes"}, False)],
)
def test_file_is_tiled_where_all_its_images_have_an_index(
    jpeg_folder: Path, tmp_path: Path, options: dict[str, Any], tiled: bool
) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton", **options)
    dataset = BetonDataset(tmp_path / "x.beton")
    assert dataset.tiled is tiled
    indexed = [
        read_index(dataset.encoded(index, level)) is not None
        for level in range(len(dataset.levels))
        for index in range(len(dataset))
    ]
    assert all(indexed) is tiled
    assert not open_dataset(jpeg_folder).tiled


def test_small_sources_keep_their_pixels_on_demand(jpeg_folder: Path, tmp_path: Path) -> None:
    report = convert_small(jpeg_folder, tmp_path / "x.beton", keep="pixels")
    assert (report.num_kept, report.num_reencoded) == (12, 6)
    dataset = BetonDataset(tmp_path / "x.beton")
    assert dataset.tiled
    for index in range(18):
        with (
            Image.open(jpeg_folder / dataset.name(index)) as source,
            Image.open(io.BytesIO(dataset.encoded(index))) as stored,
        ):
            same = source.size == stored.size and np.array_equal(np.asarray(source), np.asarray(stored))
            assert same is (max(source.size) <= LEVELS[0])


def test_no_image_crosses_a_page_and_no_sample_is_spread_over_two(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    dataset = BetonDataset(tmp_path / "x.beton")
    pages = []
    for level in dataset.levels:
        pages += [level.offsets // PAGE_SIZE, (level.offsets + level.sizes - 1) // PAGE_SIZE]
    assert all((page == pages[0]).all() for page in pages)
    assert len(np.unique(pages[0])) > 3


def test_levels_are_reduced_from_the_original(tmp_path: Path) -> None:
    (tmp_path / "source/a").mkdir(parents=True)
    original = smooth_image(150, 200, seed=5)
    original.save(tmp_path / "source/a/0.png")
    convert_small(tmp_path / "source", tmp_path / "x.beton", quality=97, subsampling="4:4:4")
    dataset = BetonDataset(tmp_path / "x.beton")
    for number, size in enumerate([(128, 96), (64, 48), (32, 24)]):
        with Image.open(io.BytesIO(dataset.encoded(0, number))) as image:
            expected = np.asarray(original.resize(size, Image.Resampling.LANCZOS), np.float64)
            assert image.size == size
            assert np.sqrt(np.mean((np.asarray(image, np.float64) - expected) ** 2)) < 3


def test_corrupt_files_are_listed_and_nothing_final_is_written(folder: Path, tmp_path: Path) -> None:
    (folder / "ant/empty.jpg").write_bytes(b"")
    (folder / "bee/text.jpg").write_bytes(b"no image")
    cut = (folder / "cat/0.jpg").read_bytes()
    (folder / "cat/0.jpg").write_bytes(cut[: len(cut) // 2])
    target = tmp_path / "x.beton"
    with pytest.raises(TooManyCorruptError, match=r"3 of 20 images .*, 2 are allowed; first ant/empty") as caught:
        convert_small(folder, target, allow_corrupt=2)
    assert isinstance(caught.value, ConversionError)
    report = caught.value.report
    assert [note.name for note in report.quarantined] == ["ant/empty.jpg", "bee/text.jpg", "cat/0.jpg"]
    assert report.quarantined[0].reason == "the file is empty"
    assert "truncated" in report.quarantined[2].reason
    assert not target.exists()

    again = convert_small(folder, target, allow_corrupt=3)
    assert again.num_resumed == 20
    assert again.quarantined == report.quarantined
    dataset = BetonDataset(target)
    names = [dataset.name(index) for index in range(len(dataset))]
    assert len(names) == again.num_images == 17
    assert not {"ant/empty.jpg", "bee/text.jpg", "cat/0.jpg"} & set(names)
    assert [("ant", "bee", "cat")[label] for label in dataset.labels] == [name.split("/")[0] for name in names]


def test_places_of_images_do_not_depend_on_what_is_quarantined(folder: Path, tmp_path: Path) -> None:
    convert_small(folder, tmp_path / "whole.beton")
    (folder / "cat/5.jpg").write_bytes(b"x" * (folder / "cat/5.jpg").stat().st_size)
    convert_small(folder, tmp_path / "less.beton", allow_corrupt=1)
    whole, less = (BetonDataset(tmp_path / name).levels[0].offsets for name in ("whole.beton", "less.beton"))
    assert whole is not None
    assert less is not None
    assert np.array_equal(whole[:17], less)


def test_image_readable_again_is_taken_in_by_the_rerun(folder: Path, tmp_path: Path) -> None:
    convert_small(folder, tmp_path / "whole.beton")
    sound = (folder / "bee/2.jpg").read_bytes()
    (folder / "bee/2.jpg").write_bytes(b"x" * len(sound))
    with pytest.raises(TooManyCorruptError, match=r"bee/2\.jpg"):
        convert_small(folder, tmp_path / "x.beton")
    (folder / "bee/2.jpg").write_bytes(sound)
    assert convert_small(folder, tmp_path / "x.beton").num_corrupt == 0
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()


def test_file_vanishing_meanwhile_is_quarantined(folder: Path, tmp_path: Path) -> None:
    def remove(done: int, _: int) -> None:
        if done == 2:
            (folder / "cat/3.jpg").unlink()

    report = convert_small(folder, tmp_path / "x.beton", allow_corrupt=1, progress=remove)
    assert [(note.name, note.reason) for note in report.quarantined] == [("cat/3.jpg", "No such file or directory")]


def test_vanishing_source_stops_the_conversion_without_blaming_its_files(folder: Path, tmp_path: Path) -> None:
    def remove(done: int, _: int) -> None:
        if done == 10:
            folder.rename(tmp_path / "unmounted")

    with pytest.raises(ConversionError, match=r"had to stop: .*No such file.*goes on where it stopped"):
        convert_small(folder, tmp_path / "x.beton", allow_corrupt=100, progress=remove)
    (tmp_path / "unmounted").rename(folder)
    report = convert_small(folder, tmp_path / "x.beton")
    assert report.num_resumed > 0
    assert report.num_corrupt == 0


def test_nothing_decodable_is_an_error_however_much_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "source/a").mkdir(parents=True)
    (tmp_path / "source/a/0.jpg").write_bytes(b"no image")
    with pytest.raises(TooManyCorruptError, match="1 of 1 images"):
        convert_small(tmp_path / "source", tmp_path / "x.beton", allow_corrupt=100)


@contextlib.contextmanager
def files_no_longer_than(num_bytes: int) -> Iterator[None]:
    """Stand-in for a full disk: the operating system refuses to write further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_says_so_and_the_rerun_resumes(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "whole.beton")
    target = tmp_path / "x.beton"
    with files_no_longer_than(3 * PAGE_SIZE), pytest.raises(ConversionError, match=r"no room left for .*x.beton.*Free"):
        convert_small(jpeg_folder, target)
    assert not target.exists()
    assert convert_small(jpeg_folder, target).num_resumed > 0
    assert target.read_bytes() == (tmp_path / "whole.beton").read_bytes()


def test_second_conversion_to_the_same_target_is_refused(jpeg_folder: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def convert_too(done: int, _: int) -> None:
        if done == 5:
            with pytest.raises(ConversionError) as caught:
                convert_small(jpeg_folder, tmp_path / "x.beton")
            refused.append(str(caught.value))

    convert_small(jpeg_folder, tmp_path / "x.beton", progress=convert_too)
    assert refused == [f"{tmp_path / 'x.beton.journal'} is in use: another conversion to the same target is running."]
    assert len(BetonDataset(tmp_path / "x.beton")) == 18


def test_existing_target_is_left_alone_unless_told_otherwise(jpeg_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.beton"
    target.write_bytes(b"precious")
    with pytest.raises(ConversionError, match=r"exists already.*overwrite=True"):
        convert_small(jpeg_folder, target)
    assert target.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["x.beton"]
    convert_small(jpeg_folder, target, overwrite=True)
    assert len(BetonDataset(target)) == 18


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"levels": ()}, "`levels` must be one or more"),
        ({"levels": (128, 256)}, "`levels` must be one or more"),
        ({"levels": (128, 128)}, "`levels` must be one or more"),
        ({"levels": (0,)}, "`levels` must be at least 1; got 0"),
        ({"levels": "64"}, "`levels` must be an integer; got '6'"),
        ({"levels": (64.5,)}, "`levels` must be an integer; got 64.5"),
        ({"quality": 0}, "`quality` must be at least 1; got 0"),
        ({"quality": (90, 101)}, "`quality` must be at most 100; got 101"),
        ({"quality": ()}, "`quality` must be a number, for all or for each level; got none"),
        ({"quality": 90.5}, "`quality` must be an integer; got 90.5"),
        ({"quality": True}, "`quality` must be an integer; got True"),
        ({"levels": 0}, "`levels` must be at least 1; got 0"),
        ({"subsampling": "4:1:0"}, "`subsampling` must be one of"),
        ({"restart_interval": -1}, "`restart_interval` must be at least 0"),
        ({"restart_interval": "1"}, "`restart_interval` must be an integer"),
        ({"num_workers": 10**6}, "`num_workers` must be at most 1024"),
        ({"num_workers": "2"}, "`num_workers` must be an integer; got '2'"),
        ({"max_pixels": True}, "`max_pixels` must be an integer"),
        ({"allow_corrupt": 0.5}, "`allow_corrupt` must be an integer"),
        ({"keep": "all"}, "`keep` must be one of"),
        ({"keep": "pixels", "restart_interval": 0}, '`keep` must be "nothing" or "bytes"'),
        ({"num_workers": -1}, "`num_workers` must be at least 0"),
        ({"allow_corrupt": -1}, "`allow_corrupt` must be at least 0"),
    ],
)
def test_wrong_arguments_are_refused_first(tmp_path: Path, options: dict[str, object], what: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(what)):
        convert(tmp_path / "nowhere", tmp_path / "x.beton", **options)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


def test_missing_source_and_folder_are_refused(jpeg_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "x.beton")
    with pytest.raises(ValueError, match="`source` must be a path; got an empty one"):
        convert("", tmp_path / "x.beton")
    with pytest.raises(ConversionError, match="must exist"):
        convert(jpeg_folder, tmp_path / "nowhere/x.beton")
    with pytest.raises(ConversionError, match="`target` must be a file to make"):
        convert(jpeg_folder, tmp_path, overwrite=True)
    with pytest.raises(TypeError, match="`source` must be a path"):
        convert(3, tmp_path / "x.beton")  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Numbers:
    """A source as users may write one; every third image is missing."""

    num_samples: int
    kind: str = "numbers"
    classes: tuple[str, ...] | None = None
    fingerprint: str = "numbers"

    def __len__(self) -> int:
        return self.num_samples

    def read(self, index: int) -> bytes:
        if index % 3 == 2:
            raise CorruptImageError("it was never taken", index=index)
        return jpeg_bytes(smooth_image(40, 30, seed=index)).tobytes()

    def label(self, index: int) -> int:
        return -index

    def name(self, index: int) -> str:
        return f"number {index}"


def test_sources_of_users_are_taken(tmp_path: Path) -> None:
    report = convert_small(Numbers(7), tmp_path / "x.beton", allow_corrupt=2)
    assert [(note.index, note.reason) for note in report.quarantined] == [
        (2, "it was never taken"),
        (5, "it was never taken"),
    ]
    dataset = BetonDataset(tmp_path / "x.beton")
    assert dataset.labels.tolist() == [0, -1, -3, -4, -6]
    assert dataset.name(2) == "number 3"
    assert dataset.classes is None
    with pytest.raises(ConversionError, match="at least one image"):
        convert_small(Numbers(0), tmp_path / "y.beton")
    with pytest.raises(ConversionError, match=r"must be in 0\.\.1, .*2 classes; they are in -6\.\.0"):
        convert_small(Numbers(7, classes=("a", "b")), tmp_path / "y.beton")


def test_journal_left_by_a_crash_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    Journal(path, {"a": 1}, num_levels=1).__exit__(None, None, None)
    with Journal(path, {"a": 1}, num_levels=1) as journal:
        assert journal.num_done == 0
        with pytest.raises(ConversionError, match="is in use"):
            Journal(path, {"a": 1}, num_levels=1)


def test_limit_of_pixels_holds_in_workers(jpeg_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TooManyCorruptError, match=r"exceeds limit .*max_pixels"):
        convert(jpeg_folder, tmp_path / "x.beton", max_pixels=20, num_workers=2)
    assert convert(jpeg_folder, tmp_path / "x.beton", num_workers=2).num_corrupt == 0
