"""Datasets of several files: the same as one file in every respect, and an error names the file that is wrong."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import respipe
from respipe.augment import RandAugment
from respipe.conversion import merge, split
from respipe.errors import ConversionError, CorruptImageError, StateMismatchError, StorageError
from respipe.sampling import Blocks
from respipe.schedules import MultiCrop, View
from respipe.storage import BetonDataset, open_dataset
from respipe.storage.shards import ShardedDataset, index_shards, shard_name
from tests.loaders import flat
from tests.memory_dataset import jpeg_bytes, smooth_image
from tests.small_pages import convert_small

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def single(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "x.beton"
    convert_small(jpeg_folder, path)
    return path


@pytest.fixture(scope="module")
def sharded(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five files of 3, 4, 3, 4 and 4 samples, and an index. Not to be changed."""
    folder = tmp_path_factory.mktemp("sharded") / "x"
    convert_small(jpeg_folder, folder, shards=5)
    return folder


@pytest.fixture
def copy(sharded: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in sharded.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.beton"))


def loader(data: Any, **options: Any) -> respipe.Loader:
    schedule = respipe.schedules.Constant(48)
    return respipe.Loader(data, schedule, batch_size=4, seed=3, num_threads=2, **options)


def test_several_files_equal_the_single_one_in_tables_bytes_names_and_fingerprint(single: Path, sharded: Path) -> None:
    with closing(BetonDataset(single)) as one:
        for several in (open_dataset(sharded), ShardedDataset(shards_of(sharded)), open_dataset(shards_of(sharded))):
            assert len(several) == len(one) == 18
            assert several.fingerprint == one.fingerprint
            assert (several.classes, several.tiled) == (one.classes, one.tiled)
            assert np.array_equal(several.labels, one.labels)
            for number in range(3):
                for index in range(18):
                    assert np.array_equal(several.encoded(index, number), one.encoded(index, number))
                    assert several.name(index) == one.name(index)
            several.close()


@pytest.mark.parametrize(
    "options",
    [{"backend": "reference"}, {"backend": "tiles"}, {"backend": "reference", "shuffle": Blocks(size=3, window=2)}],
    ids=str,
)
def test_plans_pixels_and_states_are_those_of_the_single_file(
    single: Path, sharded: Path, options: dict[str, Any]
) -> None:
    with loader(single, **options) as one, loader(sharded, **options) as several:
        batches = iter(one)
        for _ in range(2):
            next(batches)
        state, expected = one.state_dict(), list(batches)
        several.load_state_dict(state)  # of another kind of file, and back
        assert several.state_dict() == state
        for (images, labels), (others, of_others) in zip(expected, several, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, of_others)


def test_a_sharded_dataset_is_pickled_by_its_paths(sharded: Path) -> None:
    dataset = pickle.loads(pickle.dumps(open_dataset(sharded)))
    assert len(dataset) == 18
    dataset.close()
    dataset.close()
    with pytest.raises(ValueError, match="must be open"):
        _ = dataset.buffers


def test_verify_inspect_and_evaluation_open_the_folder(sharded: Path, single: Path, jpeg_folder: Path) -> None:
    report = respipe.verify(sharded, num_workers=0)
    assert (report.kind, report.num_samples, report.sound, report.has_checksums) == ("shards", 18, True, True)
    one, several = respipe.inspect(single), respipe.inspect(sharded)
    assert several.fingerprint == one.fingerprint
    assert several.levels == one.levels
    assert (several.settings, several.source) == (one.settings, one.source)
    with loader(sharded, training=False, backend="reference") as batches:
        assert sum(len(images) for images, _ in batches) == 18


def test_fields_of_every_kind_are_joined(tmp_path: Path) -> None:
    image = jpeg_bytes(smooth_image(40, 40, seed=1)).tobytes()
    items = [{"image": image, "label": [number, 2.5], "caption": f"no. {number}", "id": number} for number in range(7)]
    fields = ("caption", "id")
    convert_small(items, tmp_path / "x", shards=3, fields=fields)
    with closing(open_dataset(tmp_path / "x")) as dataset:
        rows = np.array([6, 0, 3])
        assert dataset.fields["caption"].take(rows) == ["no. 6", "no. 0", "no. 3"]
        assert dataset.fields["id"].take(rows).tolist() == [6, 0, 3]
        assert dataset.fields["label"].take(rows).tolist() == [[6, 2.5], [0, 2.5], [3, 2.5]]
    merge(tmp_path / "x", tmp_path / "x.beton")
    convert_small(items, tmp_path / "y.beton", fields=fields)
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "y.beton").read_bytes()


# What is wrong with a file


def test_a_missing_shard_is_named(copy: Path) -> None:
    (copy / shard_name(3, 5)).unlink()
    with pytest.raises(StorageError, match=r"shard-00003-of-00005\.beton is missing"):
        open_dataset(copy)
    with pytest.raises(StorageError, match=r"lacks 1 shards of a conversion, first shard-00003-of-00005\.beton"):
        index_shards(copy)
    (copy / "index.json").unlink()
    with pytest.raises(StorageError, match=r"no index\.json yet, as shard-00003-of-00005\.beton is missing"):
        open_dataset(copy)


def test_a_truncated_shard_is_named(copy: Path) -> None:
    path = shards_of(copy)[2]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match=r"shard-00002-of-00005\.beton is truncated"):
        open_dataset(copy)
    with pytest.raises(StorageError, match=r"shard-00002-of-00005\.beton cannot be read"):
        open_dataset(shards_of(copy))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"quality": 50}, "settings"),
        ({"levels": (64,)}, "levels"),
        ({"classes_from": ["ant", "bee", "cat", "dog"]}, "classes"),
    ],
)
def test_a_foreign_shard_is_named(jpeg_folder: Path, copy: Path, options: dict[str, Any], what: str) -> None:
    convert_small(jpeg_folder, copy / "z.beton", **options)
    with pytest.raises(StorageError, match=rf"z\.beton is foreign .* its {what} are"):
        index_shards(copy)
    with pytest.raises(StorageError, match=rf"z\.beton is foreign .* its {what} are"):
        open_dataset(shards_of(copy))


def test_a_part_of_another_source_is_named(jpeg_folder: Path, copy: Path, tmp_path: Path) -> None:
    shutil.copytree(jpeg_folder, tmp_path / "other")
    (tmp_path / "other" / "bee" / "3.jpg").unlink()
    shards_of(copy)[2].unlink()
    named = r"shard-00002-of-00005\.beton is foreign to .*: it was made from another source"
    with pytest.raises(StorageError, match=named):  # by whoever comes last
        convert_small(tmp_path / "other", copy, shards=5, part=(2, 5))
    with pytest.raises(StorageError, match=named):
        index_shards(copy)
    (copy / "index.json").unlink()
    with pytest.raises(StorageError, match=named):
        open_dataset(copy)


def test_a_shard_of_other_samples_is_named(copy: Path) -> None:
    path = shards_of(copy)[1]
    path.write_bytes(shards_of(copy)[3].read_bytes() + bytes(0))
    with pytest.raises(StorageError, match=r"shard-00001-of-00005\.beton is (foreign|truncated)"):
        open_dataset(copy)
    with pytest.raises(StorageError, match=r"shard-00003-of-00005\.beton holds the same samples as"):
        index_shards(copy)


@pytest.mark.parametrize("shards", ["[]", '[{"name": "../x", "num_bytes": 1, "fingerprint": ""}]', "1"])
def test_a_damaged_index_can_be_made_again(copy: Path, shards: str) -> None:
    before = (copy / "index.json").read_bytes()
    (copy / "index.json").write_text(f'{{"format": "respipe shards 1", "shards": {shards}}}')
    with pytest.raises(StorageError, match=r"index\.json is damaged"):
        open_dataset(copy)
    index_shards(copy)
    assert (copy / "index.json").read_bytes() == before


def test_a_damaged_image_is_reported_with_its_file_and_its_number_in_the_dataset(copy: Path) -> None:
    with closing(open_dataset(copy)) as dataset:
        level = dataset.levels[0]
        place = int(level.offsets[8])
    path = shards_of(copy)[2]
    data = bytearray(path.read_bytes())
    data[place + 30] ^= 255
    path.write_bytes(bytes(data))
    with closing(open_dataset(copy)) as dataset, pytest.raises(CorruptImageError, match="shard-00002") as caught:
        dataset.check(8)
    assert caught.value.index == 8
    assert [damaged.index for damaged in respipe.verify(copy, num_workers=0).damaged] == [8]


def test_files_of_a_class_folder_do_not_make_it_a_sharded_dataset(jpeg_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ant").symlink_to(jpeg_folder / "ant")
    convert_small(jpeg_folder, tmp_path / "x.beton")
    with closing(open_dataset(tmp_path)) as dataset:
        assert dataset.kind == "folder"


# Appending, merging, splitting


def test_an_appended_file_follows_the_others_and_rewrites_nothing(jpeg_folder: Path, copy: Path) -> None:
    convert_small(jpeg_folder, copy / "a-more.beton")
    before = {path: path.stat().st_mtime_ns for path in shards_of(copy)}
    index_shards(copy)
    assert {path: path.stat().st_mtime_ns for path in shards_of(copy)} == before
    assert json.loads((copy / "index.json").read_text())["num_samples"] == 36
    with closing(open_dataset(copy)) as dataset:
        assert dataset.name(0) == dataset.name(18) == "ant/0.jpg"
        assert dataset.name(17) == dataset.name(35) == "cat/5.jpg"


def test_merged_shards_are_the_very_file_of_one_conversion(single: Path, sharded: Path, tmp_path: Path) -> None:
    merge(sharded, tmp_path / "x.beton")
    assert (tmp_path / "x.beton").read_bytes() == single.read_bytes()
    with pytest.raises(ConversionError, match="exists already"):
        merge(sharded, tmp_path / "x.beton")


def test_split_files_open_as_the_one_and_can_be_merged_again(single: Path, tmp_path: Path) -> None:
    split(single, tmp_path / "x", shards=4)
    with closing(open_dataset(tmp_path / "x")) as several, closing(BetonDataset(single)) as one:
        assert several.fingerprint == one.fingerprint
    merge(tmp_path / "x", tmp_path / "x.beton")
    with closing(BetonDataset(tmp_path / "x.beton")) as again, closing(BetonDataset(single)) as one:
        assert again.fingerprint == one.fingerprint
    with pytest.raises(ValueError, match="at most the number of samples, 18; got 19"):
        split(single, tmp_path / "y", shards=19)


def test_merging_refuses_a_damaged_image(copy: Path, tmp_path: Path) -> None:
    path = shards_of(copy)[0]
    data = bytearray(path.read_bytes())
    with closing(BetonDataset(path)) as dataset:
        place = int(dataset.levels[1].offsets[2])
    data[place + 30] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptImageError, match="shard-00000-of-00005"):
        merge(copy, tmp_path / "x.beton")
    assert not (tmp_path / "x.beton").exists()


def test_more_files_than_descriptors_are_opened(single: Path, tmp_path: Path) -> None:
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))\n"
        "from respipe.storage import open_dataset\n"
        "dataset = open_dataset([sys.argv[1]] * 100); print(len(dataset), dataset.revision() > 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(single)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.split() == ["1800", "True"]


def test_datasets_of_a_mixture_have_their_shares(sharded: Path, single: Path) -> None:
    data = [(sharded, 3), (str(single), 1.0), ([single], 0)]
    weights = np.ones(54)
    weights[:9] = 0
    options = {"weights": weights, "with_spec": True, "backend": "reference"}
    with loader(data, **options) as mixed, loader(data, **options) as second:
        assert (len(mixed.dataset), len(mixed)) == (54, 13)
        for _ in range(5):
            counts = np.bincount(np.concatenate([plan.indices for _, _, plan in mixed]), minlength=54)
            assert [part.sum() for part in np.split(counts, [9, 18, 36])] == [0, 39, 13, 0]
            assert set(counts[9:18].tolist()) == {4, 5} and set(counts[18:36].tolist()) == {0, 1}
        second.load_state_dict(mixed.state_dict())
        assert np.array_equal(next(iter(second))[2].indices, next(iter(mixed))[2].indices)
    with loader([(sharded, 1), (single, 3), (single, 0)]) as other, pytest.raises(StateMismatchError):
        other.load_state_dict(mixed.state_dict())


def test_several_crops_of_a_mixture_resume_exactly(sharded: Path, single: Path) -> None:
    schedule = MultiCrop([View(24, 2, scale=(0.3, 1.0), augment=RandAugment()), View(16)])
    options: dict[str, Any] = {"backend": "reference", "with_spec": True, "mixup": 0.8, "batch_size": 4}
    data = [(str(sharded), 0.7), (single, 0.3)]
    with (
        respipe.Loader(data, schedule, **options) as begun,
        respipe.Loader(data, schedule, num_threads=1, **options) as resumed,
    ):
        batches = flat(iter(begun))
        begun.set_epoch(0)
        for step, _ in enumerate(begun, 1):
            if step < len(batches):
                resumed.load_state_dict(begun.state_dict())
                assert flat(iter(resumed)) == batches[step:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batches_of_a_mixture(sharded: Path, single: Path, world_size: int) -> None:
    data, options = [(sharded, 0.7), (single, 0.3)], {"with_spec": True, "backend": "reference"}
    with loader(data, **options) as alone:
        batches = [plan.indices.tolist() for _, _, plan in alone]
    ranks = [loader(data, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    for batch, *parts in zip(batches, *ranks, strict=True):
        assert [index for _, _, plan in parts for index in plan.indices.tolist()] == batch


def test_mixtures_that_cannot_be_drawn_are_refused(sharded: Path, single: Path, jpeg_folder: Path) -> None:
    with pytest.raises(ValueError, match="`data` must have a share above 0"):
        loader([(sharded, 0), (single, 0)])
    with pytest.raises(ValueError, match="`data` must be at least 0"):
        loader([(sharded, 1), (single, -1)])
    with pytest.raises(ValueError, match="`data` must have samples to draw in every dataset"):
        loader([(sharded, 1), (single, 1)], indices=[0, 1, 2, 3, 4, 5])
    with pytest.raises(StorageError, match=r"must be a \.beton file or a folder of them"):
        loader([(sharded, 1), (jpeg_folder, 1)])
    with pytest.raises(ValueError, match="`data` must be one dataset in evaluation"):
        loader([(sharded, 1), (single, 1)], training=False)
    with pytest.raises(ValueError, match="`shuffle` must be 'full'"):
        loader([(sharded, 1), (single, 1)], shuffle="blocks")
