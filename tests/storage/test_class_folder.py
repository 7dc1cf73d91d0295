from __future__ import annotations

import logging
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from respipe.errors import StorageError
from respipe.storage import open_dataset
from respipe.storage.class_folder import scan_class_folder


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))


def test_order_and_labels_are_those_of_torchvision(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *("b/z.jpg", "b/A.JPG", "b/inner/q.png", "b/inner/deep/a.webp", "b/inner.jpeg", "b/inn/er.jpg", "b/x.bmp"),
        *("a10/1.jpg", "a9/1.jpg", "B/1.jpg", "a9/notes.txt", "a9/Thumbs.db"),
    )
    found = scan_class_folder(tmp_path)
    oracle = ImageFolder(str(tmp_path))
    assert list(found.classes) == oracle.classes
    assert [
        (str(tmp_path / name), label) for name, label in zip(found.names, found.labels, strict=True)
    ] == oracle.samples
    assert found.sizes.tolist() == [len(name) for name in found.names]
    assert found.labels.dtype == np.int64


def test_links_are_followed_and_hidden_folders_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.jpg", "root/.cache/1.jpg", "root/b/2.jpg")
    (tmp_path / "root/a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/b/3.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = scan_class_folder(tmp_path / "root")
    assert list(found.names) == ["a/1.jpg", "b/2.jpg", "b/3.jpg"]
    assert found.sizes.tolist()[2] == 0


def test_empty_classes_keep_their_number_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a/1.jpg", "c/1.jpg")
    (tmp_path / "b").mkdir()
    with caplog.at_level(logging.WARNING):
        found = scan_class_folder(tmp_path)
    assert found.classes == ("a", "b", "c")
    assert found.labels.tolist() == [0, 2]
    assert "1 of 3 classes have no images, first b" in caplog.text


def test_every_extension_of_torchvision_and_more_is_taken_and_the_rest_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken = sorted(f"a/{number:02}{extension}" for number, extension in enumerate((*IMG_EXTENSIONS, ".jfif", ".gif")))
    touch(tmp_path, *taken, "a/x.txt", "a/in/y.TXT", "a/z", "loose.jpg", "readme.md")
    with caplog.at_level(logging.WARNING):
        assert list(scan_class_folder(tmp_path).names) == taken
    assert "passed over 2 x .txt files" in caplog.text
    for what in (
        "1 x no extension files",
        "1 x .md files",
        "1 images lie in no class and are passed over, first loose",
    ):
        assert what in caplog.text


def test_hidden_names_and_litter_are_left_out_at_every_depth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    litter = ["a/._x.JPEG", "a/in/.ipynb_checkpoints/x.jpg", "a/@eaDir/x.jpg/thumb.jpg", "__MACOSX/a/x.jpg"]
    touch(tmp_path, "a/1.jpg", *litter, "lost+found/1.jpg", ".git/x.jpg", "a/Thumbs.db")
    with caplog.at_level(logging.WARNING):
        found = scan_class_folder(tmp_path)
    assert (found.classes, list(found.names)) == (("a",), ["a/1.jpg"])
    for what in ("3 x hidden names", "1 x @eaDir", "1 x __MACOSX", "1 x lost+found", "1 x Thumbs.db"):
        assert what in caplog.text


def test_parent_of_splits_is_refused_with_what_to_type(tmp_path: Path) -> None:
    touch(tmp_path / "data", "train/cat/1.jpg", "val/cat/1.jpg")
    with pytest.raises(StorageError, match=r"splits.*`respipe convert \S*/data/train train.beton` and `.*data/val"):
        scan_class_folder(tmp_path / "data")
    touch(tmp_path / "flat", "test/1.jpg", "dev/1.jpg")
    assert scan_class_folder(tmp_path / "flat").classes == ("dev", "test")
    touch(tmp_path / "mixed", "train/steam/1.jpg", "plane/1.jpg")
    assert scan_class_folder(tmp_path / "mixed").classes == ("plane", "train")


def test_flat_folders_and_archives_are_refused_with_what_to_type(tmp_path: Path) -> None:
    touch(tmp_path / "flat", "1.jpg", "2.jpg")
    with pytest.raises(StorageError, match=r"2 images directly in it. Move each image into a folder named after"):
        scan_class_folder(tmp_path / "flat")
    touch(tmp_path / "packed", "train.tar", "notes")
    with pytest.raises(StorageError, match=r"passed over .*1 x .tar files.* Name one of the .tar"):
        scan_class_folder(tmp_path / "packed")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "flat", "flat")
    with pytest.raises(StorageError, match=r"x.tar is a tar archive, not a .beton. Convert it with"):
        open_dataset(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        archive.add(tmp_path / "flat", "flat")
    with pytest.raises(StorageError, match=r"x.tgz is a gzip archive, not a .beton. Unpack it with `gunzip"):
        open_dataset(tmp_path / "x.tgz")


def test_classes_that_are_numbers_are_warned_about_where_their_order_is_not_theirs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "many", *(f"{number}/1.jpg" for number in range(11)))
    touch(tmp_path / "few", *(f"{number}/1.jpg" for number in range(10)))
    with caplog.at_level(logging.WARNING):
        scan_class_folder(tmp_path / "few")
        assert not caplog.text
        assert scan_class_folder(tmp_path / "many").classes[:3] == ("0", "1", "10")
    assert "sorted as text as torchvision does: 0, 1, 10, 2, ... Label 2 is class 10" in caplog.text


@pytest.mark.parametrize("names", [(), ("1.jpg",), ("a/notes.txt",)])
def test_folder_without_classes_of_images_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(StorageError, match="must hold one subfolder per class"):
        scan_class_folder(tmp_path)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        scan_class_folder(tmp_path / "nowhere")


def test_fingerprint_follows_names_lengths_and_classes(tmp_path: Path) -> None:
    touch(tmp_path / "one", "a/1.jpg", "b/2.jpg")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    prints = {scan_class_folder(tmp_path / name).fingerprint for name in ("one", "copy")}
    assert len(prints) == 1
    (tmp_path / "copy/a/1.jpg").write_bytes(b"longer than before")
    prints.add(scan_class_folder(tmp_path / "copy").fingerprint)
    (tmp_path / "copy/a/1.jpg").rename(tmp_path / "copy/a/3.jpg")
    prints.add(scan_class_folder(tmp_path / "copy").fingerprint)
    (tmp_path / "one/c").mkdir()
    prints.add(scan_class_folder(tmp_path / "one").fingerprint)
    assert len(prints) == 4
