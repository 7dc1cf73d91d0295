"""Archives and files of labels with something wrong in them: named, and within ``allow_corrupt`` if one sample's."""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from respipe.conversion import convert
from respipe.conversion.engine import known_faults
from respipe.conversion.sources import SourceOptions, open_source
from respipe.errors import ConversionError, CorruptImageError, MissingBackendError, StorageError
from respipe.storage import BetonDataset
from tests.conversion import imagenet_layouts as imagenet
from tests.conversion.test_source_kinds import tar_of_folders, tar_of_tars
from tests.small_pages import convert_small


def left_out(source: Path, target: Path, number: int, **options: Any) -> list[str]:
    """What a conversion says that it leaves out, after it was refused with one fewer allowed."""
    with pytest.raises(ConversionError, match=f"{number} of "):
        convert_small(source, target, allow_corrupt=number - 1, **options)
    report = convert_small(source, target, allow_corrupt=number, **options)
    assert len(BetonDataset(target)) == report.num_samples - number
    return [f"{note.name}: {note.reason}" for note in report.quarantined]


def members(path: Path, content: bytes | None = None) -> list[tarfile.TarInfo]:
    if content is not None:
        path.write_bytes(content)
    with tarfile.open(path) as archive:
        return archive.getmembers()


def test_a_tar_cut_within_an_image_loses_it_and_says_so(jpeg_folder: Path, tmp_path: Path) -> None:
    source = tar_of_folders(jpeg_folder, tmp_path / "x.tar")
    victim = next(member for member in members(source) if member.name.endswith("bee/4.jpg"))
    imagenet.cut(source, victim.offset_data + 100)
    (note,) = left_out(source, tmp_path / "x.beton", 1)
    assert note == f"./data/train/bee/4.jpg: x.tar ends after 100 of its {victim.size} bytes"


@pytest.mark.parametrize("at", ["header", "between", "end"])
def test_a_tar_cut_between_images_is_one_fault_too(jpeg_folder: Path, tmp_path: Path, at: str) -> None:
    source = imagenet.validation_tar(jpeg_folder, tmp_path / "val.tar")
    labels = imagenet.kaggle_solution(jpeg_folder, tmp_path / "LOC_val_solution.csv")
    found = members(source)
    last, place = {
        "header": (found[16], found[17].offset + 300),
        "between": (found[16], found[17].offset),
        "end": (found[17], found[17].offset_data + -(-found[17].size // 512) * 512),
    }[at]
    imagenet.cut(source, place)
    notes = left_out(source, tmp_path / "x.beton", 1 if at == "end" else 2, labels=labels)
    assert any(note.startswith(f"what follows {last.name}: lost, as val.tar is damaged: ") for note in notes)
    assert at == "end" or any(
        "00000018: LOC_val_solution.csv labels it, but there is no such image" in n for n in notes
    )


def test_a_damaged_header_does_not_end_a_tar_in_silence(jpeg_folder: Path, tmp_path: Path) -> None:
    source = tar_of_folders(jpeg_folder, tmp_path / "x.tar")
    victim = next(member for member in members(source) if member.name.endswith("bee/4.jpg"))
    data = bytearray(source.read_bytes())
    data[victim.offset : victim.offset + 8] = b"\xff" * 8
    source.write_bytes(data)
    (note,) = left_out(source, tmp_path / "x.beton", 1)
    assert "what follows" in note
    assert f"what is at byte {victim.offset:,} is no header" in note


def test_class_archives_that_are_cut_empty_or_something_else_are_one_fault_each(
    jpeg_folder: Path, tmp_path: Path
) -> None:
    whole = tar_of_tars(jpeg_folder, tmp_path / "whole.tar")
    with tarfile.open(whole) as archive, tarfile.open(tmp_path / "x.tar", "w") as bad:
        inner = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        images = members(tmp_path / "bee.tar", inner["bee.tar"])
        inner["bee.tar"] = inner["bee.tar"][: images[3].offset_data + 50]
        for name, data in {**inner, "dog.tar": b"", "eel.tar": b"no archive" * 100}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            bad.addfile(member, io.BytesIO(data))
    notes = left_out(tmp_path / "x.tar", tmp_path / "x.beton", 3)
    assert f"bee/{images[3].name}: bee.tar ends after 50 of its {images[3].size} bytes" in notes
    assert "dog/dog.tar: lost, as dog.tar is damaged: it is empty" in notes
    assert any(note.startswith("eel/eel.tar: lost, as eel.tar is damaged: ") for note in notes)
    imagenet.cut(whole, members(whole)[1].offset_data + images[2].offset_data + 10)
    (note,) = left_out(whole, tmp_path / "y.beton", 1)
    assert "bee.tar ends after 10 of its" in note


@pytest.mark.parametrize("make", [tar_of_tars, tar_of_folders])
@pytest.mark.parametrize("damage", ["cut", "zeroed"])
def test_wherever_a_tar_is_damaged_no_image_is_lost_in_silence(
    jpeg_folder: Path, tmp_path: Path, make: Callable[[Path, Path], Path], damage: str
) -> None:
    whole = make(jpeg_folder, tmp_path / "x.tar").read_bytes()
    end = len(whole.rstrip(b"\0"))
    for place in range(200, end, 1531):
        hole = bytes(min(512, end - 1 - place))
        data = whole[:place] if damage == "cut" else whole[:place] + hole + whole[place + len(hole) :]
        (tmp_path / "x.tar").write_bytes(data)
        try:
            source = open_source(tmp_path / "x.tar", format="archive")
        except StorageError:
            continue
        assert len(source) - len(known_faults(source)) == 18 or known_faults(source)


def test_a_tar_in_which_nothing_is_left_is_refused(jpeg_folder: Path, tmp_path: Path) -> None:
    for length in (0, 300, 600):
        source = imagenet.cut(tar_of_tars(jpeg_folder, tmp_path / "x.tar"), length)
        with pytest.raises(StorageError, match=r"x\.tar"):
            open_source(source, format="archive")


def test_a_name_that_comes_twice_is_what_unpacking_would_leave(jpeg_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(jpeg_folder / "cat/1.jpg", "ant/0.jpg")
        archive.add(jpeg_folder, ".")
    (note,) = left_out(tmp_path / "x.tar", tmp_path / "x.beton", 1)
    assert note == "ant/0.jpg: a later one of the same name replaces it"


def test_what_a_zip_promises_and_does_not_hold_is_one_fault(jpeg_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "x.zip"
    with zipfile.ZipFile(source, "w") as archive:
        for file in jpeg_folder.rglob("*.jpg"):
            archive.write(file, file.relative_to(jpeg_folder))
        place = archive.getinfo("bee/4.jpg").header_offset
    data = bytearray(source.read_bytes())
    data[place : place + 4] = bytes(4)
    source.write_bytes(data)
    assert left_out(source, tmp_path / "x.beton", 1) == ["bee/4.jpg: it is not where the archive's directory says"]
    with pytest.raises(StorageError, match=r"cannot be read as an archive.* Copy it again"):
        open_source(imagenet.cut(source, -200))


def test_links_and_other_files_in_a_tar_are_counted(jpeg_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(jpeg_folder, ".")
        link = tarfile.TarInfo("bee/9.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "4.jpg"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("notes.txt"))
    source: Any = open_source(tmp_path / "x.tar", format="archive")
    assert (len(source), source.passed_over) == (18, {"links": 1, ".txt files": 1})


@pytest.fixture
def flat(jpeg_folder: Path, tmp_path: Path) -> Path:
    return imagenet.flat_folder(jpeg_folder, tmp_path / "val")


def test_images_and_labels_without_each_other_and_labels_that_disagree(
    jpeg_folder: Path, flat: Path, tmp_path: Path
) -> None:
    labels = imagenet.table(jpeg_folder, tmp_path / "labels.csv", "{name},{label}\n")
    lines = labels.read_text().splitlines()
    (flat / imagenet.validation_name(3)).unlink()
    lines[4:6] = [lines[4].split(",")[0] + ","]
    lines += [lines[0], lines[1].replace(lines[1].split(",")[1], "owl")]
    labels.write_text("\n".join(lines))
    notes = left_out(flat, tmp_path / "x.beton", 4, labels=labels)
    assert sorted(notes) == [
        "ILSVRC2012_val_00000002.JPEG: labels.csv has several labels for it: bee, owl",
        "ILSVRC2012_val_00000003.JPEG: labels.csv labels it, but there is no such image",
        "ILSVRC2012_val_00000005.JPEG: labels.csv has no label for it",
        "ILSVRC2012_val_00000006.JPEG: labels.csv has no label for it",
    ]


def test_names_are_matched_by_as_many_folders_as_they_share(jpeg_folder: Path, tmp_path: Path) -> None:
    files = sorted(file.relative_to(jpeg_folder) for file in jpeg_folder.rglob("*.jpg"))
    labels = tmp_path / "labels.csv"
    labels.write_text("".join(f"data/images/{file.with_suffix('')},{file.parent}\n" for file in files))
    options = SourceOptions(labels=labels)
    for source in (jpeg_folder, tar_of_folders(jpeg_folder, tmp_path / "x.tar")):
        assert not known_faults(found := open_source(source, options=options))
        assert [found.fields["label"][index] for index in range(18)] == [0] * 6 + [1] * 6 + [2] * 6
    labels.write_text("".join(f"{file.name},{file.parent}\n" for file in files))
    with pytest.raises(
        StorageError, match=r"of ant/0.jpg, the first of 18 images, labels.csv has several labels for it"
    ):
        open_source(jpeg_folder, options=options)


def test_a_label_that_other_classes_lack_and_one_of_another_kind(jpeg_folder: Path, flat: Path, tmp_path: Path) -> None:
    labels = imagenet.table(jpeg_folder, tmp_path / "labels.csv", "{name},{label}\n")
    labels.write_text(labels.read_text().replace("ant", "gnu", 1))
    (note,) = left_out(flat, tmp_path / "x.beton", 1, labels=labels, classes_from=("dog", "cat", "bee", "ant"))
    assert note == "ILSVRC2012_val_00000001.JPEG: its class 'gnu' is not in `classes_from`"
    assert BetonDataset(tmp_path / "x.beton").classes == ("dog", "cat", "bee", "ant")
    numbers = imagenet.table(jpeg_folder, tmp_path / "numbers.txt", "{name} {number}\n")
    numbers.write_text(numbers.read_text().replace(" 0", " ant", 1))
    (note,) = left_out(flat, tmp_path / "y.beton", 1, labels=numbers, classes_from=("ant", "bee", "cat"))
    assert note.startswith("ILSVRC2012_val_00000001.JPEG: its label 'ant' is not of the kind")


def test_labels_may_be_numbers(jpeg_folder: Path, flat: Path, tmp_path: Path) -> None:
    numbers = imagenet.table(jpeg_folder, tmp_path / "numbers.txt", "{name} {number}\n")
    convert_small(flat, tmp_path / "x.beton", labels=numbers)
    found = BetonDataset(tmp_path / "x.beton")
    assert (found.classes, found.labels.tolist()) == (None, [0] * 6 + [1] * 6 + [2] * 6)
    ages = imagenet.table(jpeg_folder, tmp_path / "ages.csv", "{name},{label},{number}.5\n", header="image,who,age\n")
    with pytest.raises(
        StorageError, match=r"must have a column `label`; it has image, who, age. Name one with `label_f"
    ):
        open_source(flat, options=SourceOptions(labels=ages))
    source = open_source(flat, options=SourceOptions(labels=ages, label_field="age"))
    assert source.fields["label"].kind == "float"
    assert sorted(source.fields["label"][index] for index in range(18)) == [0.5] * 6 + [1.5] * 6 + [2.5] * 6


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("truth.txt", b"3\n7\n", "must have a name and a label in each line; its first is '3'.*give the devkit"),
        (
            "others.csv",
            b"x.jpg,3\n",
            "of ILSVRC.*the first of 18 images, .* no label for it; the first of 1 names in it is 'x.jpg'",
        ),
        ("empty.csv", b"", "must have a name and a label in each line"),
        ("utf16.csv", "a.jpg,ant".encode("utf-16"), "cannot be read as labels"),
        ("kit.tar.gz", b"\x1f\x8b\x08", "cannot be read as labels"),
        ("nowhere/labels.csv", None, "cannot be read as labels.*No such file"),
    ],
)
def test_files_that_are_no_labels_are_refused(
    flat: Path, tmp_path: Path, name: str, content: bytes | None, what: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StorageError, match=what):
        open_source(flat, options=SourceOptions(labels=tmp_path / name))


def test_a_damaged_devkit_is_refused(jpeg_folder: Path, flat: Path, tmp_path: Path) -> None:
    kit = imagenet.devkit(jpeg_folder, tmp_path / "kit")
    truth = kit / "data/ILSVRC2012_validation_ground_truth.txt"
    truth.write_text(truth.read_text() + "4\n")
    with pytest.raises(StorageError, match=r"ground_truth.txt holds 4, which meta.mat does not explain"):
        open_source(flat, options=SourceOptions(labels=kit))
    imagenet.cut(kit / "data/meta.mat", -400)
    with pytest.raises(StorageError, match="cannot be read as labels"):
        open_source(flat, options=SourceOptions(labels=kit))


def test_a_devkit_without_scipy_says_what_to_install(
    jpeg_folder: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = imagenet.devkit(jpeg_folder, tmp_path / "kit")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingBackendError, match=r"pip install 'respipe\[imagenet\]'"):
        open_source(flat, options=SourceOptions(labels=kit))


def test_splits_are_asked_for_by_name(jpeg_folder: Path, tmp_path: Path) -> None:
    tree = imagenet.kaggle_tree(jpeg_folder, tmp_path / "k")
    for place in (tree, tree / "ILSVRC", tree / "ILSVRC/Data", tree / "ILSVRC/Data/CLS-LOC"):
        with pytest.raises(StorageError, match=r"it holds the splits test, train, val.*--split"):
            open_source(place)
        assert len(open_source(place, options=SourceOptions(split="val"))) == 18
    with pytest.raises(StorageError, match=r"must be one that .* holds, test, train, val; got 'valid'"):
        open_source(tree, options=SourceOptions(split="valid"))
    assert not open_source(tree, options=SourceOptions(split="test")).fields
    (tree / "LOC_val_solution.csv").unlink()
    with pytest.raises(StorageError, match="--labels FILE"):
        open_source(tree, options=SourceOptions(split="val"))
    imagenet.annotations(jpeg_folder, tree / "ILSVRC/Annotations/CLS-LOC/val")
    assert open_source(tree, options=SourceOptions(split="val")).fields["label"].classes == ("ant", "bee", "cat")
    archive = imagenet.packed(tree, tmp_path / "k.tar")
    with pytest.raises(StorageError, match=r"it holds the splits test, train, val. Say which one with `split=`"):
        open_source(archive, format="archive")
    with pytest.raises(StorageError, match=r"some in no folder. Where a file labels them"):
        open_source(archive, format="archive", options=SourceOptions(split="val"))
    with pytest.raises(StorageError, match="some in no folder"):
        open_source(imagenet.packed(tree / "ILSVRC/Data/CLS-LOC/val", tmp_path / "v.tar", "val"))
    assert not open_source(archive, format="archive", options=SourceOptions(split="test")).fields
    with pytest.raises(ValueError, match="`labels` must be left out"):
        convert([1], tmp_path / "x.beton", labels=tree)


@pytest.mark.parametrize("coding", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_bytes_of_a_zip_that_changed_are_noticed_even_where_they_decode(tmp_path: Path, coding: int) -> None:
    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "BMP")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", coding) as archive:
        for name in ("a/0.bmp", "b/1.bmp"):
            archive.writestr(name, image.getvalue())
        header = archive.getinfo("b/1.bmp").header_offset
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[header + 14] ^= 1  # of the checksum: the pixels still decode
    (tmp_path / "x.zip").write_bytes(data)
    source = open_source(tmp_path / "x.zip")
    assert source.read(0) == image.getvalue()
    with pytest.raises(CorruptImageError, match="its checksum differs"):
        source.read(1)


def zip_of_folders(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("pack", [tar_of_folders, tar_of_tars, zip_of_folders])
def test_a_class_without_images_is_one_wherever_it_lies(
    jpeg_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, pack: Callable[[Path, Path], Path]
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(jpeg_folder, folder)
    (folder / "aaa").mkdir()
    source = open_source(folder)
    packed = open_source(pack(folder, tmp_path / "packed"))
    assert packed.fields["label"].classes == source.fields["label"].classes
    assert "aaa" in (source.fields["label"].classes or ())
    labels = [sorted(int(one.fields["label"][index]) for index in range(18)) for one in (source, packed)]
    assert labels[0] == labels[1] == [1] * 6 + [2] * 6 + [3] * 6
    assert caplog.text.count("1 of 4 classes have no images, first aaa") == 2


def test_the_first_shard_may_be_empty(tmp_path: Path) -> None:
    for number, names in enumerate(((), ("0.jpg", "0.cls"))):
        with tarfile.open(tmp_path / f"s-{number}.tar", "w") as archive:
            for name in names:
                header = tarfile.TarInfo(name)
                header.size = 1
                archive.addfile(header, io.BytesIO(b"1"))
    source = open_source(str(tmp_path / "s-{0..1}.tar"))
    assert (source.kind, len(source), source.fields["label"][0]) == ("tar shards", 1, 1)
