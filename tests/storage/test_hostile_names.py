"""Folders and files with names and links made to confuse: nothing hangs, escapes, or reaches a terminal unescaped."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from respipe.errors import StorageError
from respipe.printable import printable
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.class_folder import scan_class_folder
from respipe.storage.folder import FolderDataset
from tests.memory_dataset import jpeg_bytes, smooth_image
from tests.small_pages import convert_small

JPEG = jpeg_bytes(smooth_image(24, 40, seed=0)).tobytes()
NAMES = (
    "new\nline.jpg",
    "\x1b[31mred\x1b[0m.jpg",
    "[red]markup[/red].jpg",
    "\u202egpj.exe.jpg",
    "...jpg",
    "-rf.jpg",
    "日本語 é.jpg",
    os.fsdecode(b"not\xffutf8.jpg"),
    "x" * 251 + ".jpg",
)


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEG)


def test_files_of_any_name_are_read_and_shown_escaped(tmp_path: Path) -> None:
    write(tmp_path, *(f"a/{name}" for name in NAMES), *(f"{name}/1.jpg" for name in NAMES))
    dataset = FolderDataset(tmp_path)
    assert len(dataset) == 2 * (len(NAMES) - 1)  # what begins with a dot is neither a class nor an image
    for index in range(len(dataset)):
        dataset.check(index)
        assert dataset.name(index).isprintable()
    shown = {dataset.name(index) for index in range(len(dataset))}
    assert {r"a/new\nline.jpg", r"a/\x1b[31mred\x1b[0m.jpg", r"a/not\udcffutf8.jpg", "a/日本語 é.jpg"} <= shown
    convert_small(tmp_path, tmp_path.parent / "names.beton")
    converted = BetonDataset(tmp_path.parent / "names.beton")
    assert {converted.name(index) for index in range(len(converted))} == shown


@pytest.mark.parametrize("character", ["\n", "\x00", "\x1b", "\x7f", "\x9b", "\u202e", "\u2028", "\udcff"])
def test_what_is_not_printable_is_escaped(character: str) -> None:
    assert printable(f"a{character}b").isprintable()
    assert printable(f"a{character}b") != "ab"


def test_links_in_circles_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a/1.jpg", "a/b/2.jpg")
    # Two of them: following each to the system's limit would take 2 ** 40 steps.
    for name in ("here", "there"):
        (tmp_path / "a/b" / name).symlink_to(tmp_path / "a")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "a/self.jpg").symlink_to("self.jpg")
    (tmp_path / "loop").symlink_to("loop")
    with caplog.at_level(logging.WARNING):
        found = scan_class_folder(tmp_path)
    assert list(found.names) == ["a/1.jpg", "a/self.jpg", "a/b/2.jpg"]
    assert found.classes == ("a",)
    assert caplog.text.count("leads back to a folder that it is in") == 3


def test_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/1.jpg")
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/a/2.jpg").symlink_to("../../elsewhere/1.jpg")
    (tmp_path / "root/b").symlink_to("../elsewhere")
    assert list(scan_class_folder(tmp_path / "root").names) == ["a/2.jpg", "b/1.jpg"]


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder link"])
def test_what_is_no_file_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    write(tmp_path, "a/1.jpg")
    monkeypatch.chdir(tmp_path)
    if kind == "pipe":
        os.mkfifo("a/2.jpg")
    elif kind == "device":
        Path("a/2.jpg").symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("a/2.jpg")
    else:
        Path("a/2.jpg").symlink_to("/nowhere")
    with pytest.raises(StorageError, match=r"1 of 2 images cannot be read, first a/2\.jpg"):
        FolderDataset(tmp_path)
    report = convert_small(tmp_path, tmp_path.parent / f"{tmp_path.name}.beton", allow_corrupt=1)
    assert [note.name for note in report.quarantined] == ["a/2.jpg"]


def test_names_in_a_beton_are_never_opened(tmp_path: Path) -> None:
    write(tmp_path, "source/a/1.jpg")
    convert_small(tmp_path / "source", tmp_path / "x.beton")
    data = (tmp_path / "x.beton").read_bytes()
    assert b"a/1.jpg" in data
    (tmp_path / "x.beton").unlink()
    (tmp_path / "y.beton").write_bytes(data.replace(b"a/1.jpg", b"/../pwd"))
    with pytest.raises(StorageError, match="checksum of the appendix's array 'names'"):
        BetonDataset(tmp_path / "y.beton")


def test_thousands_of_classes_take_a_moment(tmp_path: Path) -> None:
    for number in range(3000):
        write(tmp_path, f"{number}/x.jpg")
    found = scan_class_folder(tmp_path)
    assert (len(found.classes), len(found.labels), found.labels.max()) == (3000, 3000, 2999)
