"""Fields of every kind reach the file as they are."""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from respipe.conversion import TooManyCorruptError, engine, journal
from respipe.errors import ConversionError, StorageError
from respipe.storage import BetonDataset
from respipe.storage.fields import Column, Computed
from tests.memory_dataset import jpeg_bytes, smooth_image
from tests.small_pages import convert_small
from tests.storage.plain_beton import write_plain_beton


@dataclass(frozen=True)
class Labelled:
    """A source as users write one: a label for each image."""

    labels: tuple[Any, ...]
    classes: tuple[str, ...] | None = None
    kind: str = "labelled"
    fingerprint: str = "labelled"

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return jpeg_bytes(smooth_image(40, 30, seed=index)).tobytes()

    def label(self, index: int) -> Any:
        return self.labels[index]

    def name(self, index: int) -> str:
        return f"number {index}"


@dataclass(frozen=True)
class Described:
    """A source with a field of every kind, values of which are known when they are asked for."""

    kind: str = "described"
    fingerprint: str = "described"

    @property
    def fields(self) -> dict[str, Column]:
        return {
            "label": Column(kind="vector", values=np.eye(5, 3, dtype=np.float32)),
            "caption": Column(kind="text", values=Computed("größe {}\n".format, 5)),
            "id": Column(kind="integer", values=Computed((-(2**60)).__add__, 5)),
            "score": Column(kind="float", values=Computed((0.1).__mul__, 5)),
            "blob": Column(kind="bytes", values=Computed(bytes, 5)),
            "other": Column(kind="class", values=Computed(int, 5), classes=("a", "b", "c", "d", "e")),
        }

    def __len__(self) -> int:
        return 5

    def read(self, index: int) -> bytes:
        return jpeg_bytes(smooth_image(40, 30, seed=index)).tobytes()

    def name(self, index: int) -> str:
        return f"number {index}"


@pytest.mark.parametrize(
    ("labels", "kind", "values"),
    [
        ((3.7, 2, -0.5), "float", [3.7, 2.0, -0.5]),
        ((2, 0, 5), "class", [2, 0, 5]),
        (([1, 0.5], [0, 2], np.array([3, 4])), "vector", [[1, 0.5], [0, 2], [3, 4]]),
        (("dog", "ant", "dog"), "class", [1, 0, 1]),
    ],
)
def test_labels_are_stored_as_they_are(tmp_path: Path, labels: tuple[Any, ...], kind: str, values: list[Any]) -> None:
    convert_small(Labelled(labels), tmp_path / "x.beton")
    dataset = BetonDataset(tmp_path / "x.beton")
    assert (dataset.fields["label"].kind, dataset.labels.tolist()) == (kind, values)


def test_images_without_labels_are_converted(tmp_path: Path) -> None:
    convert_small(Labelled((None, None)), tmp_path / "x.beton")
    dataset = BetonDataset(tmp_path / "x.beton")
    assert (dataset.labels, dict(dataset.fields), len(dataset)) == (None, {}, 2)


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ((1, "dog"), r"of one kind; that of number 0 is 1, that of number 1 is 'dog'"),
        ((1, None), r"of one kind; .* number 1 is None"),
        (([1.0, 2.0], [1.0]), "1 numbers where others have 2"),
        (({"a": 1},), "cannot be stored"),
    ],
)
def test_labels_of_several_kinds_are_refused_by_name(tmp_path: Path, labels: tuple[Any, ...], what: str) -> None:
    with pytest.raises(ConversionError, match=what):
        convert_small(Labelled(labels), tmp_path / "x.beton")


def test_fields_of_every_kind_are_kept_exactly(tmp_path: Path) -> None:
    source = Described()
    convert_small(source, tmp_path / "x.beton", fields=("caption", "id", "score", "blob", "other"))
    found = BetonDataset(tmp_path / "x.beton").fields
    assert [*found] == [*source.fields]
    rows = np.array([4, 0, 3])
    for name, column in source.fields.items():
        assert found[name].kind == column.kind
        if name == "label":
            np.testing.assert_array_equal(found[name].values, column.values)
            assert found[name].take(rows).dtype == np.float32
            continue
        assert [found[name][index] for index in range(5)] == [column[index] for index in range(5)]
    assert found["caption"].take(rows) == ["größe 4\n", "größe 0\n", "größe 3\n"]
    assert found["score"].take(rows).dtype == np.float32
    convert_small(tmp_path / "x.beton", tmp_path / "y.beton", fields=("caption",))
    assert [*BetonDataset(tmp_path / "y.beton").fields] == ["label", "caption"]
    with pytest.raises(ConversionError, match=r"`fields` must be names .*`caption`.*; got 'captions'"):
        convert_small(source, tmp_path / "z.beton", fields=("captions",))


def test_a_value_of_the_wrong_kind_is_that_samples_fault(tmp_path: Path) -> None:
    class Odd(Described):
        @property
        def fields(self) -> dict[str, Column]:
            values = ["a", "b", 3, "d", "e"]
            return {"caption": Column(kind="text", values=values)}

    with pytest.raises(TooManyCorruptError, match="number 2: its field `caption`: 3 is not of the kind 'text'"):
        convert_small(Odd(), tmp_path / "x.beton", fields=("caption",))
    report = convert_small(Odd(), tmp_path / "x.beton", fields=("caption",), allow_corrupt=1)
    assert report.num_images == 4
    assert [*BetonDataset(tmp_path / "x.beton").fields["caption"].values] == ["a", "b", "d", "e"]


def test_label_of_another_name_is_chosen_and_none_where_there_is_none(tmp_path: Path) -> None:
    path = write_plain_beton(tmp_path / "x.beton", [(1, 1, 1, b"rgb")] * 2, [4, 6], label_name=b"target")
    with pytest.raises(StorageError, match="--label-field"):
        convert_small(path, tmp_path / "y.beton")
    convert_small(path, tmp_path / "y.beton", label_field="target")
    assert BetonDataset(tmp_path / "y.beton").labels.tolist() == [4, 6]


def test_classes_are_numbered_as_another_dataset_does(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "train.beton")
    for number, name in enumerate(("cat", "bee")):
        (tmp_path / "val" / name).mkdir(parents=True)
        smooth_image(40, 30, seed=number).save(tmp_path / "val" / name / "1.jpg")
    convert_small(tmp_path / "val", tmp_path / "val.beton", classes_from=tmp_path / "train.beton")
    dataset = BetonDataset(tmp_path / "val.beton")
    assert (dataset.classes, dataset.labels.tolist()) == (("ant", "bee", "cat"), [1, 2])
    torch.save({"classes": ["cat", "bee", "ant"], "model": {}}, tmp_path / "trained.pt")
    convert_small(tmp_path / "val", tmp_path / "other.beton", classes_from=tmp_path / "trained.pt")
    dataset = BetonDataset(tmp_path / "other.beton")
    assert (dataset.classes, dataset.labels.tolist()) == (("cat", "bee", "ant"), [1, 0])
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfbee\r\nfox\r\ncat\r\n")
    convert_small(tmp_path / "val", tmp_path / "listed.beton", classes_from=tmp_path / "names.txt")
    dataset = BetonDataset(tmp_path / "listed.beton")
    assert (dataset.classes, dataset.labels.tolist()) == (("bee", "fox", "cat"), [0, 2])
    (tmp_path / "names.txt").write_text("bee\ncat\nbee\n")
    with pytest.raises(ConversionError, match="each class once; got 'bee' more than once"):
        convert_small(tmp_path / "val", tmp_path / "x.beton", classes_from=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_bytes(b"b\xffe\n")
    with pytest.raises(ConversionError, match="must be a text in UTF-8"):
        convert_small(tmp_path / "val", tmp_path / "x.beton", classes_from=tmp_path / "names.txt")
    torch.save({"model": {}}, tmp_path / "nameless.pt")
    with pytest.raises(ConversionError, match=r"nameless.pt has no class names"):
        convert_small(tmp_path / "val", tmp_path / "x.beton", classes_from=tmp_path / "nameless.pt")
    with pytest.raises(ConversionError, match=r"1 of 2 are not in it, first 'bee'"):
        convert_small(tmp_path / "val", tmp_path / "x.beton", classes_from=("cat", "dog"))


def test_a_file_system_without_locks_and_folder_sync_is_enough(
    jpeg_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def no_sync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(journal.fcntl, "flock", no_locks)
    monkeypatch.setattr(engine.os, "fsync", no_sync)
    with caplog.at_level(logging.WARNING):
        convert_small(jpeg_folder, tmp_path / "x.beton")
    assert caplog.text.count("cannot be locked") == 1
    assert caplog.text.count("cannot be synced") == 1
    assert len(BetonDataset(tmp_path / "x.beton")) == 18
