from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from respipe.errors import StorageError
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
