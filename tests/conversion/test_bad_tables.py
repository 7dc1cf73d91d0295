"""Manifests, tar shards and Parquet with something wrong: named, and within ``allow_corrupt`` if one sample's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from respipe.conversion import convert
from respipe.conversion.sources import SourceOptions, open_source
from respipe.conversion.sources.paths import files_of
from respipe.errors import ConversionError, StorageError
from respipe.storage import BetonDataset
from tests.conversion.tables import hub_table, write_tar
from tests.conversion.test_bad_sources import left_out
from tests.small_pages import convert_small


@pytest.fixture
def images(jpeg_folder: Path) -> list[bytes]:
    return [(jpeg_folder / f"ant/{number}.jpg").read_bytes() for number in range(6)]


def in_files(folder: Path, images: list[bytes]) -> None:
    for number, data in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(data)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("5.jpg", r"x\.csv:7: line 7 cannot be read: it has 1 cells where there are 3 columns"),
        ("5.jpg,,1", r"5\.jpg: it has no label"),
        ("5.jpg,dog,1", r"5\.jpg: its label 'dog' is not of the kind 'class' that others are of"),
        ("5.jpg,3,", r"5\.jpg: its field `score`: None is not of the kind 'float'"),
        ("5.jpg,3,high", r"5\.jpg: its field `score`: 'high' is not of the kind 'float'"),
        (",3,1", r"x\.csv:7: line 7 has no path of an image"),
        ("nowhere.jpg,3,1", r"nowhere\.jpg: No such file"),
        ("0.jpg,3,1", r"x\.csv:7: line 7 lists 0\.jpg, as line 2 does"),
        ("..,3,1", r"\.\.: it is no regular file"),
    ],
)
def test_a_bad_line_of_a_csv_is_left_out(tmp_path: Path, images: list[bytes], line: str, what: str) -> None:
    in_files(tmp_path, images)
    lines = ["path,label,score", *(f"{number}.jpg,{number % 2},{number}.5" for number in range(5)), line]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    (note,) = left_out(tmp_path / "x.csv", tmp_path / "x.beton", 1, fields=("score",))
    assert re.search(what, note)
    assert BetonDataset(tmp_path / "x.beton").labels.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{oops", "line 6 cannot be read: Expecting property name"),
        ("[1, 2]", "line 6 cannot be read: it is no JSON object"),
        ('{"path": "5.jpg", "label": [1, 2, 3]}', "its label has 3 numbers where others have 2"),
        ('{"path": "5.jpg", "label": 1}', "its label 1 is not of the kind 'vector' that others are of"),
        ('{"path": "5.jpg", "label": {"a": 1}}', "its label {'a': 1} cannot be stored"),
        ('{"path": "5.jpg", "label": 9223372036854775809}', "its label 9223372036854775809 cannot be stored"),
        ('{"path": "5.jpg", "label": {"base64": 3}}', "its label {'base64': 3} cannot be stored"),
        ('{"path": "5.jpg", "label": [1, NaN]}', "its label [1, nan] is no finite number"),
        ('{"path": 5, "label": [1, 2]}', "line 6 has no path of an image"),
        ('{"path": "5\\u0000.jpg", "label": [1, 2]}', "its path: "),
        ("[" * 100_000, "line 6 cannot be read: its JSON is nested too deep"),
    ],
)
def test_a_bad_line_of_json_is_left_out(tmp_path: Path, images: list[bytes], line: str, what: str) -> None:
    in_files(tmp_path, images)
    lines = [json.dumps({"path": f"{number}.jpg", "label": [number, 0.5]}) for number in range(5)]
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, line]))
    (note,) = left_out(tmp_path / "x.jsonl", tmp_path / "x.beton", 1)
    assert what in note
    assert BetonDataset(tmp_path / "x.beton").labels.tolist() == [[number, 0.5] for number in range(5)]


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("x.csv", "", "must list at least one image"),
        ("x.csv", "path,label\n", "must list at least one image"),
        (
            "x.csv",
            "image;label\n0.jpg;1\n",
            "must have a column `path` for the images; its columns are image;label. Its cells are sep",
        ),
        ("x.csv", "path,label\n0.jpg,1\n", "It is UTF-16: save it as UTF-8."),
        ("x.csv", 'path,label\n"0.jpg,1\n', "line 2: unexpected end of data"),
        ("x.tsv", 'path\tlabel\n"0".jpg\t1\n', r"line 2: '\t' expected after"),
        ("x.csv", "path,label\n0.jpg\n", "no line of it can be read; line 2 cannot be read: it has 1 cells where"),
        ("x.csv", "path,label,label\n0.jpg,0,1\n", "must name each column once; `label` comes twice"),
        ("x.jsonl", "[1]\n", "no line of it can be read; line 1 cannot be read: it is no JSON object: '[1]'"),
        ("x.jsonl", '{"label": 1}\n', "must have a column `path` for the images; its columns are label"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path: Path, name: str, text: str, what: str) -> None:
    (tmp_path / name).write_text(text, "utf-16" if "UTF-16" in what else "utf-8")
    with pytest.raises(StorageError) as caught:
        open_source(tmp_path / name)
    assert what in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_labels_of_many_kinds_and_of_other_classes_are_refused(tmp_path: Path, images: list[bytes]) -> None:
    in_files(tmp_path, images)
    (tmp_path / "x.jsonl").write_text('{"path": "0.jpg", "label": 1}\n{"path": "1.jpg", "label": "dog"}\n')
    with pytest.raises(ConversionError, match=r"of one kind; that of 0\.jpg is 1, that of 1\.jpg is 'dog'"):
        open_source(tmp_path / "x.jsonl")
    names = ["cat", "dog", "cat", "cat", "bee"]
    (tmp_path / "x.csv").write_text("".join(f"{number}.jpg, {name}\n" for number, name in enumerate(names)))
    (note,) = left_out(tmp_path / "x.csv", tmp_path / "x.beton", 1, classes_from=("dog", "cat"))
    assert note == "4.jpg: its class 'bee' is not in `classes_from`"
    assert BetonDataset(tmp_path / "x.beton").labels.tolist() == [1, 0, 1, 1]
    (tmp_path / "y.csv").write_text("".join(f"{number}.jpg,{number % 4}\n" for number in range(6)))
    (note,) = left_out(tmp_path / "y.csv", tmp_path / "y.beton", 1, classes_from=("a", "b", "c"))
    assert note == "3.jpg: its class '3' is not in `classes_from`"
    assert BetonDataset(tmp_path / "y.beton").classes == ("a", "b", "c")


@pytest.mark.parametrize("source", ["x.csv", "x.tar", "x.parquet"])
def test_a_column_that_is_not_there_is_named(tmp_path: Path, images: list[bytes], source: str) -> None:
    in_files(tmp_path, images)
    (tmp_path / "x.csv").write_text("path,label\n0.jpg,1\n")
    write_tar(tmp_path / "x.tar", [("0.jpg", images[0]), ("0.cls", b"1")])
    pa.parquet.write_table(pa.table({"image": images, "label": [1] * 6}), tmp_path / "x.parquet")
    with pytest.raises(StorageError, match=rf"{source} must have a (column|field) `kind` for the labels; its .* are"):
        open_source(tmp_path / source, options=SourceOptions(label_field="kind"))
    with pytest.raises(ConversionError, match=r"`fields` must be names of .*; got 'caption'"):
        convert(tmp_path / source, tmp_path / "y.beton", fields=("caption",), num_workers=0)
    convert_small(tmp_path / source, tmp_path / "z.beton", label_field="")
    assert BetonDataset(tmp_path / "z.beton").labels is None


def test_a_bad_sample_of_a_shard_is_left_out(tmp_path: Path, images: list[bytes]) -> None:
    members = [
        (f"{number}.{what}", data)
        for number, image in enumerate(images)
        for what, data in (("jpg", image), ("cls", b"1"))
    ]
    bad: list[tuple[str, bytes]] = [
        ("no image.cls", b"1"),
        ("no label.jpg", images[0]),
        ("twice.jpg", images[0]),
        ("twice.cls", b"1"),
        ("twice.jpg", images[1]),
        ("odd.jpg", images[0]),
        ("odd.cls", b"dog"),
    ]
    source = write_tar(tmp_path / "x.tar", members + bad)
    with source.open("rb+") as file:
        file.truncate(source.stat().st_size // 512 * 512 - 10 * 512)
    notes = left_out(source, tmp_path / "x.beton", 4)
    assert notes[:3] == [
        "no image: it has no image",
        "no label.jpg: it has no label",
        "twice.jpg: x.tar holds twice.jpg more than once",
    ]
    write_tar(
        tmp_path / "y.tar",
        [
            ("0.jpg", images[0]),
            ("0.cls", b"1"),
            ("0.json", b"{"),
            ("1.jpg", images[1]),
            ("1.cls", b"2"),
            ("1.json", b'{"a": 1}'),
        ],
    )
    (note,) = left_out(tmp_path / "y.tar", tmp_path / "y.beton", 1, fields=("a",))
    assert note.startswith("0.jpg: its .json cannot be read")
    assert convert_small(tmp_path / "y.tar", tmp_path / "w.beton").num_images == 2


def test_bad_rows_and_files_of_parquet_are_named(jpeg_folder: Path, tmp_path: Path) -> None:
    table = hub_table(jpeg_folder)
    labels = table["label"].to_pylist()
    labels[2], labels[3] = None, -1
    column = pa.array([*table["image"].to_pylist()[:-1], {"bytes": None, "path": "gone.jpg"}], table["image"].type)
    bad = table.set_column(1, "label", pa.array(labels)).set_column(0, "image", column)
    pa.parquet.write_table(bad.replace_schema_metadata(table.schema.metadata), tmp_path / "x.parquet", row_group_size=5)
    assert left_out(tmp_path / "x.parquet", tmp_path / "x.beton", 3) == [
        "ant/2.jpg: it has no label",
        "ant/3.jpg: its label -1 is not in 0..2, as there are 3 classes",
        "gone.jpg: it has no bytes, and of the file at its path: No such file or directory",
    ]
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-500])
    with pytest.raises(StorageError, match=r"cut\.parquet cannot be read as Parquet.*Copy it again"):
        open_source(tmp_path / "cut.parquet")
    pa.parquet.write_table(pa.table({"label": [1]}), tmp_path / "none.parquet")
    with pytest.raises(
        StorageError, match=r"none\.parquet must have one column of images.*its columns are label \(int64\)"
    ):
        open_source(tmp_path / "none.parquet")
    with pytest.raises(StorageError, match=r"none\.parquet must have the columns of .*cut|x\.parquet"):
        open_source(str(tmp_path / "{x,none}.parquet"))


def test_parquet_may_have_paths_instead_of_bytes(tmp_path: Path, images: list[bytes]) -> None:
    in_files(tmp_path, images)
    pa.parquet.write_table(
        pa.table({"path": ["0.jpg", "1.jpg", "gone.jpg"], "label": [1, 2, 3]}), tmp_path / "x.parquet"
    )
    (note,) = left_out(tmp_path / "x.parquet", tmp_path / "x.beton", 1)
    assert note == "gone.jpg: it has no bytes, and of the file at its path: No such file or directory"
    cells = pa.array([{"bytes": None, "path": "1.jpg"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pa.parquet.write_table(pa.table({"image": cells}), tmp_path / "y.parquet")
    source = open_source(tmp_path / "y.parquet")
    assert (source.read(0), source.name(0), source.fields) == (images[1], "1.jpg", {})


def test_a_worker_holds_a_page_of_parquet_not_a_row_group(tmp_path: Path) -> None:
    images = [bytes([number % 251]) * 10_000 for number in range(2000)]
    pa.parquet.write_table(pa.table({"image": images}), tmp_path / "x.parquet", compression="none", write_batch_size=8)
    source, before, most = open_source(tmp_path / "x.parquet"), pa.total_allocated_bytes(), 0
    for index in range(0, 2000, 100):
        assert source.read(index) == images[index]
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < sum(map(len, images)) / 4


def test_damage_within_parquet_is_the_fault_of_its_rows(jpeg_folder: Path, tmp_path: Path) -> None:
    pa.parquet.write_table(
        hub_table(jpeg_folder), tmp_path / "x.parquet", row_group_size=6, use_dictionary=False, compression="none"
    )
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    place = data.index((jpeg_folder / "bee/0.jpg").read_bytes()) - 4
    data[place : place + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "x.parquet").write_bytes(data)
    notes = left_out(tmp_path / "x.parquet", tmp_path / "x.beton", 6)
    assert all(
        note.startswith(f"bee/{index}.jpg: x.parquet is damaged in row group 1") for index, note in enumerate(notes)
    )


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("t-{000..002}.x", ["t-000.x", "t-001.x", "t-002.x"]),
        ("t-{2..0}.x", ["t-2.x", "t-1.x", "t-0.x"]),
        ("{b,a}-{0..1}.x", ["b-0.x", "b-1.x", "a-0.x", "a-1.x"]),
        ("*-0.x", ["a-0.x", "b-0.x", "t-0.x"]),
        ("**/deep.x", ["one/two/deep.x"]),
        ("t-[0-1].x", ["t-0.x", "t-1.x"]),
        ("odd{name}.x", ["odd{name}.x"]),
        ("odd[1].x", ["odd[1].x"]),
    ],
)
def test_patterns_name_files_in_their_order(tmp_path: Path, pattern: str, names: list[str]) -> None:
    (tmp_path / "one/two").mkdir(parents=True)
    others = ["a-0.x", "a-1.x", "b-0.x", "b-1.x", "t-000.x", "t-001.x", "t-002.x", "t-0.x", "t-1.x", "t-2.x"]
    for name in [*others, "one/two/deep.x", "odd{name}.x", "odd[1].x"]:
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in files_of(str(tmp_path / pattern))] == names
    with pytest.raises(StorageError, match=r"1 of the 2 that it stands for are missing, first .*t-3\.x"):
        files_of(str(tmp_path / "t-{2..3}.x"))
    with pytest.raises(StorageError, match="names nothing"):
        files_of(str(tmp_path / "*.y"))


def test_a_pattern_for_one_thing_is_that_thing_and_splits_are_not_mixed(jpeg_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train_images").symlink_to(jpeg_folder)
    assert open_source(str(tmp_path / "train_*")).kind == "folder"
    (tmp_path / "data").mkdir()
    for name in ("train-0.parquet", "test-0.parquet"):
        pa.parquet.write_table(hub_table(jpeg_folder), tmp_path / "data" / name)
    with pytest.raises(StorageError, match=r"one split; it has those of test, train.*data/test\*"):
        open_source(tmp_path / "data")
    assert len(open_source(str(tmp_path / "data" / "train*"))) == 18
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(StorageError, match=r"notes\.txt is of no known kind. Give one of: .*Parquet"):
        open_source(tmp_path / "notes.txt")


def test_a_tar_of_class_folders_with_other_files_is_no_shard(jpeg_folder: Path, tmp_path: Path) -> None:
    image = (jpeg_folder / "ant/0.jpg").read_bytes()
    members: list[tuple[str, bytes]] = [
        ("README.txt", b"x"),
        ("classes.json", b"[]"),
        ("ant/0.jpg", image),
        ("ant/0.json", b"{}"),
    ]
    source = write_tar(tmp_path / "x.tar", [*members, ("bee/0.jpg", image)])
    assert open_source(source).kind == "tar of class folders"
    assert open_source(source, format="webdataset").kind == "tar of samples"


def test_numbered_tars_without_labels_are_no_classes(tmp_path: Path, images: list[bytes]) -> None:
    for number in range(2):
        write_tar(tmp_path / f"s{number}.tar", [(f"s{number}_0.jpg", images[number])])
    assert open_source(tmp_path).fields == {}


def test_a_manifest_that_changes_meanwhile_stops_the_conversion(tmp_path: Path, images: list[bytes]) -> None:
    in_files(tmp_path, images)
    (tmp_path / "x.csv").write_text("path,label\n0.jpg,1\n1.jpg,2\n")
    source: Any = open_source(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("path,label\n1.jpg,1\n0.jpg,2\nx,1\n")
    with pytest.raises(OSError, match="was changed while"):
        source.read(0)


def test_the_hubs_folders_of_images_have_their_labels_from_metadata(tmp_path: Path, images: list[bytes]) -> None:
    in_files(tmp_path, images)
    (tmp_path / "metadata.csv").write_text("file_name,label,text\n0.jpg,cat,a\n1.jpg,dog,b\n")
    source = open_source(tmp_path)
    assert (source.kind, [*source.fields], len(source)) == ("CSV manifest", ["label", "text"], 2)
    (tmp_path / "cat").mkdir()
    (tmp_path / "0.jpg").rename(tmp_path / "cat/0.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,text\ncat/0.jpg,a\n")
    assert open_source(tmp_path).kind == "folder"
