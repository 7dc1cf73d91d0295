from __future__ import annotations

import io
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from respipe.errors import CorruptImageError, StorageError
from respipe.storage.beton.appendix import FOOTER
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.beton.format import FIELD, HEADER
from tests.memory_dataset import jpeg_bytes, smooth_image
from tests.small_pages import convert_small
from tests.storage.beton.former_layout import write_former_layout
from tests.storage.plain_beton import ARRAY, FLOAT, write_plain_beton

JPEG, RAW = 0, 1


@pytest.fixture(scope="module")
def pyramid(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pyramid") / "x.beton"
    convert_small(jpeg_folder, path)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A file without an appendix: a JPEG of 24 x 40 pixels, then one of 2 x 3 raw pixels."""
    images = [(JPEG, 40, 24, jpeg_bytes(smooth_image(24, 40, seed=0)).tobytes()), (RAW, 3, 2, bytes(range(18)))]
    return write_plain_beton(tmp_path / "plain.beton", images, [7, -1])


def rewrite_fields(path: Path, target: Path, **changes: bytes) -> Path:
    """A copy without respipe's mark, its fields renamed: what another writer might have made."""
    data = bytearray(path.read_bytes())
    table = np.frombuffer(data, FIELD, count=4, offset=HEADER.itemsize)
    table["arguments"] = 0
    (end,) = np.frombuffer(data, HEADER, count=1)["alloc_table_ptr"]
    data[end - FOOTER.itemsize : end] = bytes(FOOTER.itemsize)
    for entry in table:
        name = entry["name"].tobytes().rstrip(b"\0").decode()
        entry["name"] = np.frombuffer(changes.get(name, name.encode()).ljust(16, b"\0"), np.uint8)
    target.write_bytes(data)
    return target


def test_plain_file_is_a_dataset_of_one_level(plain: Path) -> None:
    dataset = BetonDataset(plain)
    (level,) = dataset.levels
    assert len(dataset) == 2
    assert level.name == "image"
    assert dataset.labels.tolist() == [7, -1]
    assert (dataset.classes, dataset.levels[0].checksums, dataset.attributes) == (None, None, {})
    assert level.heights.tolist() == [24, 2]
    assert level.widths.tolist() == [40, 3]
    assert level.raw.tolist() == [False, True]
    assert dataset.encoded(1).tobytes() == bytes(range(18))
    with Image.open(io.BytesIO(dataset.encoded(0))) as image:
        assert image.size == (40, 24)
    assert dataset.name(1) == "sample 1"
    dataset.check(0)
    dataset.check(1)
    assert dataset.path == plain


def test_arrays_have_the_types_of_the_contract_and_are_read_only(pyramid: Path) -> None:
    dataset = BetonDataset(pyramid)
    (memory,) = dataset.buffers
    assert memory.size == pyramid.stat().st_size
    for level in dataset.levels:
        arrays = (level.heights, level.widths, level.offsets, level.sizes, level.raw)
        assert [array.dtype for array in arrays] == [np.int32, np.int32, np.int64, np.int64, np.bool_]
        assert all(array.shape == (18,) and not array.flags.writeable for array in arrays)
    assert dataset.labels.dtype == np.int64
    for array in (memory, dataset.labels, dataset.encoded(0)):
        assert not array.flags.writeable
    assert np.shares_memory(dataset.encoded(3, 1), memory)


def test_pyramid_has_levels_names_and_classes(pyramid: Path) -> None:
    dataset = BetonDataset(pyramid)
    assert [level.name for level in dataset.levels] == ["image", "image_64", "image_32"]
    assert dataset.classes == ("ant", "bee", "cat")
    assert dataset.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert dataset.name(7) == "bee/1.jpg"
    for index in range(18):
        for number, level in enumerate(dataset.levels):
            dataset.check(index, number)
            with Image.open(io.BytesIO(dataset.encoded(index, number))) as image:
                assert image.size == (level.widths[index], level.heights[index])
            assert max(level.widths[index], level.heights[index]) <= (128, 64, 32)[number]


def test_pickled_dataset_opens_the_file_again(plain: Path, pyramid: Path) -> None:
    for dataset in (BetonDataset(pyramid), BetonDataset(plain, label_field="label")):
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.fingerprint == dataset.fingerprint
        assert copy.encoded(1).tobytes() == dataset.encoded(1).tobytes()


def test_closed_dataset_says_so_and_its_arrays_stay_valid(plain: Path) -> None:
    dataset = BetonDataset(plain)
    pixels = dataset.encoded(1)
    dataset.close()
    dataset.close()
    assert pixels.tobytes() == bytes(range(18))
    with pytest.raises(ValueError, match="must be open"):
        dataset.encoded(1)


def test_float_labels_without_fraction_are_labels(tmp_path: Path) -> None:
    images = [(RAW, 1, 1, b"rgb")] * 2
    path = write_plain_beton(tmp_path / "x.beton", images, [3.0, -2.0], label_type=FLOAT)
    assert BetonDataset(path).labels.tolist() == [3, -2]
    for label in (0.5, float("nan"), float("inf"), 1e300):
        path = write_plain_beton(tmp_path / "y.beton", images, [3.0, label], label_type=FLOAT)
        found = BetonDataset(path)
        assert found.fields["label"].kind == "float"
        np.testing.assert_array_equal(found.labels, np.array([3.0, label]))


def test_labels_under_another_name_must_be_named(tmp_path: Path) -> None:
    path = write_plain_beton(tmp_path / "x.beton", [(RAW, 1, 1, b"rgb")], [5], label_name=b"target")
    with pytest.raises(StorageError, match=r"must have a field `label`.*\['target'\].*label_field="):
        BetonDataset(path)
    assert BetonDataset(path, label_field="target").labels.tolist() == [5]
    unlabelled = BetonDataset(path, label_field="")
    assert (unlabelled.labels, unlabelled.fields["target"].values.tolist()) == (None, [5])


def test_rows_of_numbers_are_vector_labels_and_other_arrays_are_none(tmp_path: Path) -> None:
    images = [(RAW, 1, 1, b"rgb")] * 2
    for dtype in (np.float32, np.float64, np.uint8, np.bool_):
        rows = np.array([[0, 1, 1], [1, 0, 0]], dtype)
        label = BetonDataset(write_plain_beton(tmp_path / "x.beton", images, rows, label_type=ARRAY)).fields["label"]
        assert (label.kind, label.values.dtype) == ("vector", np.float32)
        np.testing.assert_array_equal(label.values, rows)
    square = write_plain_beton(tmp_path / "y.beton", images, np.zeros((2, 3, 3)), label_type=ARRAY)
    assert not BetonDataset(square).fields
    (tmp_path / "z.beton").write_bytes(square.read_bytes().replace(b'"<f8"', b'"?!8"'))
    with pytest.raises(StorageError, match="the type of field `label` cannot be read"):
        BetonDataset(tmp_path / "z.beton")


def test_the_former_layout_is_read_as_the_present_one(pyramid: Path, tmp_path: Path) -> None:
    now, former = BetonDataset(pyramid), BetonDataset(write_former_layout(BetonDataset(pyramid), tmp_path / "x.beton"))
    assert former.fingerprint == now.fingerprint
    assert (former.tiled, former.classes) == (now.tiled, now.classes)
    assert [level.name for level in former.levels] == [level.name for level in now.levels]
    for index in range(len(now)):
        assert (former.name(index), former.labels[index]) == (now.name(index), now.labels[index])
        for number in range(len(now.levels)):
            former.check(index, number)
            assert former.encoded(index, number).tobytes() == now.encoded(index, number).tobytes()


def test_other_writers_levels_are_known_by_their_names(
    pyramid: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pyramid = write_former_layout(BetonDataset(pyramid), tmp_path / "x.beton")
    assert [level.name for level in BetonDataset(rewrite_fields(pyramid, tmp_path / "a")).levels] == [
        *("image", "image_64", "image_32")
    ]
    with caplog.at_level(logging.WARNING):
        masked = BetonDataset(rewrite_fields(pyramid, tmp_path / "b", image_64=b"mask"))
    assert [level.name for level in masked.levels] == ["image", "image_32"]
    assert "['mask'] are no levels of `image`" in caplog.text
    renamed = {"image": b"photo", "image_64": b"photo_64", "image_32": b"other_32"}
    found = BetonDataset(rewrite_fields(pyramid, tmp_path / "c", **renamed))
    assert [level.name for level in found.levels] == ["photo", "photo_64"]
    swapped = BetonDataset(rewrite_fields(pyramid, tmp_path / "d", image=b"image_64", image_64=b"image"))
    assert [level.name for level in swapped.levels] == ["image", "image_32"]


def test_fingerprint_changes_with_the_samples(plain: Path, tmp_path: Path) -> None:
    prints = {BetonDataset(plain).fingerprint}
    data = bytearray(plain.read_bytes())
    (tmp_path / "copy.beton").write_bytes(data)
    prints.add(BetonDataset(tmp_path / "copy.beton").fingerprint)
    assert len(prints) == 1
    data[plain.read_bytes().index(bytes(range(18)))] ^= 1
    (tmp_path / "pixel.beton").write_bytes(data)
    prints.add(BetonDataset(tmp_path / "pixel.beton").fingerprint)
    image = (RAW, 3, 2, bytes(range(18)))
    prints.update(
        BetonDataset(write_plain_beton(tmp_path / "x.beton", [image, image], labels)).fingerprint
        for labels in ([0, 1], [1, 0])
    )
    assert len(prints) == 4


@pytest.mark.parametrize(("find", "replace", "what"), [
    (b"\xff\xd8", b"\x00\x00", "no valid JPEG"),
    (b"\xff\xd9" + bytes(range(18)), b"\x00\x00" + bytes(range(18)), "its end is missing"),
    (b"\x08\x00\x18\x00\x28", b"\x08\x00\x18\x00\x29", "header says 41 x 24 pixels where 40 x 24"),
])  # fmt: skip
def test_check_without_checksums_reads_the_header(plain: Path, find: bytes, replace: bytes, what: str) -> None:
    data = plain.read_bytes()
    assert data.count(find) == 1
    plain.write_bytes(data.replace(find, replace))
    dataset = BetonDataset(plain)
    with pytest.raises(CorruptImageError, match=rf"plain.beton: sample 0 .*{what}.*respipe verify") as caught:
        dataset.check(0)
    assert caught.value.index == 0
    dataset.check(1)


def test_check_with_checksums_finds_any_changed_byte(pyramid: Path, tmp_path: Path) -> None:
    sound = BetonDataset(pyramid)
    level = sound.levels[1]
    for number, offset in enumerate(np.linspace(0, level.sizes[7] - 1, 25).astype(int)):
        data = bytearray(pyramid.read_bytes())
        data[level.offsets[7] + offset] ^= 1 << number % 8
        (tmp_path / "x.beton").write_bytes(data)
        dataset = BetonDataset(tmp_path / "x.beton")
        with pytest.raises(CorruptImageError, match=r"sample 7 \(bee/1.jpg, image_64\) is damaged") as caught:
            dataset.check(7, 1)
        assert caught.value.index == 7
        dataset.check(7, 0)
        dataset.check(6, 1)
