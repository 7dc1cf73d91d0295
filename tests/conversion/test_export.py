"""What is exported needs no respipe to be read, and converts back to the same labels, names and fields."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torchvision
from PIL import Image

import respipe
from respipe.conversion import export
from respipe.conversion.sources import open_source
from respipe.errors import ConversionError
from respipe.jpeg.index import without_index
from respipe.storage import BetonDataset
from respipe.storage.fields import Column, Computed
from tests.memory_dataset import jpeg_bytes, smooth_image
from tests.small_pages import convert_small
from tests.storage.plain_beton import write_plain_beton

ROOT = Path(__file__).parents[2]
FORMATS = ("folder", "webdataset", "parquet")


@dataclass(frozen=True)
class Described:
    """A source with awkward names, classes in no order, and a field of every kind."""

    label: Column | None
    kind: str = "described"
    fingerprint: str = "described"

    @property
    def fields(self) -> dict[str, Column]:
        return {
            **({} if self.label is None else {"label": self.label}),
            "caption": Column(kind="text", values=['"a", b', "", "007", "größe\n", "\t", "1.5", "x"]),
            "path": Column(kind="text", values=[*"abcdefg"]),
            "id": Column(kind="integer", values=Computed((-(2**60)).__add__, 7)),
            "score": Column(kind="float", values=Computed((0.1).__mul__, 7)),
            "blob": Column(kind="bytes", values=Computed(bytes, 7)),
            "box": Column(kind="vector", values=np.linspace(0, 1, 28, dtype=np.float32).reshape(7, 4)),
        }

    def __len__(self) -> int:
        return 7

    def read(self, index: int) -> bytes:
        return jpeg_bytes(smooth_image(40 + index, 30, seed=index)).tobytes()

    def name(self, index: int) -> str:
        return ("a/x.y.JPEG", "b/x.jpg", "b/X.jpg", "c/.hidden.png", "c/é \n.jpg", "c/x_y.jpg", "")[index]


CLASSES = ("zebra", "n/a", "..", "N_A", "empty")
LABELS = {
    "classes": Column(kind="class", values=np.array([0, 1, 2, 3, 0, 0, 0]), classes=CLASSES),
    "numbers": Column(kind="class", values=np.array([0, 11, 2, 2, 11, 0, 5])),
    "floats": Column(kind="float", values=np.array([0.5, 3.0, 2, 2, 11, 0, 0.1])),
    "vectors": Column(kind="vector", values=np.eye(7, 3, dtype=np.float32) / 3),
    "none": None,
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("labels", LABELS)
def test_a_round_trip_changes_no_label_and_no_field(tmp_path: Path, format: Any, labels: str) -> None:
    source = Described(LABELS[labels])
    names = [name for name in source.fields if name != "label"]
    convert_small(source, tmp_path / "x.beton", fields=names)
    before = BetonDataset(tmp_path / "x.beton")
    report = export(tmp_path / "x.beton", tmp_path / "out", format=format, max_samples=3, num_workers=0)
    assert (report.num_images, len(report.quarantined)) == (7, 0)
    convert_small(tmp_path / "out", tmp_path / "y.beton", fields=names, keep="bytes")
    after = BetonDataset(tmp_path / "y.beton")
    assert after.classes == before.classes
    assert after.fields.keys() == before.fields.keys()
    for name, column in before.fields.items():
        assert (after.fields[name].kind, name) == (column.kind, name)
        assert [np.asarray(after.fields[name][i]).tolist() for i in range(7)] == [
            np.asarray(column[i]).tolist() for i in range(7)
        ]
    for index in range(7):
        assert after.encoded(index).tobytes() == without_index(before.encoded(index).tobytes())


def test_names_and_pixels_survive_and_others_read_the_class_folder(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    before = BetonDataset(tmp_path / "x.beton")
    export(tmp_path / "x.beton", tmp_path / "out", num_workers=0)
    folder = torchvision.datasets.ImageFolder(str(tmp_path / "out"))
    assert (tuple(folder.classes), folder.targets) == (before.classes, before.labels.tolist())
    assert [str(Path(path).relative_to(tmp_path / "out")) for path, _ in folder.samples] == list(
        map(before.name, range(18))
    )
    with Image.open(io.BytesIO(before.encoded(7).tobytes())) as image:
        np.testing.assert_array_equal(np.asarray(folder[7][0]), np.asarray(image))
    convert_small(tmp_path / "out", tmp_path / "y.beton", keep="bytes")
    after = BetonDataset(tmp_path / "y.beton")
    assert list(map(after.name, range(18))) == list(map(before.name, range(18)))


def test_tar_shards_hold_the_members_that_webdataset_expects(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    export(tmp_path / "x.beton", tmp_path / "out", format="webdataset", max_samples=10, num_workers=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "classes.json",
        "x-000000.tar",
        "x-000001.tar",
    ]
    with tarfile.open(tmp_path / "out/x-000001.tar") as shard:
        assert shard.getnames()[:4] == ["bee/4.jpg", "bee/4.cls", "bee/5.jpg", "bee/5.cls"]
        member = shard.extractfile("bee/5.cls")
        assert member is not None and member.read() == b"1"
    assert (
        open_source(f"{tmp_path}/out/x-{{000000..000001}}.tar").fingerprint == open_source(tmp_path / "out").fingerprint
    )


def test_parquet_has_the_layout_of_the_hub(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    export(tmp_path / "x.beton", tmp_path / "out", format="parquet", num_workers=0)
    (path,) = (tmp_path / "out").iterdir()
    table = pyarrow.parquet.read_table(path)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}, "label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}
    row = table.slice(7, 1).to_pylist()[0]
    assert (row["label"], row["image"]["path"]) == (1, "bee/1.jpg")
    assert row["image"]["bytes"] == without_index(BetonDataset(tmp_path / "x.beton").encoded(7).tobytes())


def test_raw_pixels_become_pngs(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = write_plain_beton(tmp_path / "x.beton", [(1, 7, 5, pixels.tobytes())] * 3, [4, 10, 4])
    export(path, tmp_path / "out", num_workers=0)
    assert sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.png")) == [
        *("04/0.png", "04/2.png", "10/1.png")
    ]
    with Image.open(tmp_path / "out/10/1.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


KILLED = """
import os, signal, sys
from pathlib import Path
from respipe.conversion import export
moment, source, target, format = sys.argv[1:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
doomed = {"replace": target + ".partial", "unlink": target + ".journal"}.get(moment)
if doomed:
    real = getattr(Path, moment)
    setattr(Path, moment, lambda self, *others: die() if str(self) == doomed else real(self, *others))
def progress(done, _):
    if moment == str(done):
        die()
export(source, target, format=format, max_samples=4, num_workers=0, progress=progress)
"""


@pytest.mark.parametrize("format", FORMATS)
def test_killed_export_resumes_and_ends_with_the_same_files(jpeg_folder: Path, tmp_path: Path, format: Any) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    export(tmp_path / "x.beton", tmp_path / "whole", format=format, max_samples=4, num_workers=0)
    target = tmp_path / "out"
    for moment in ("10", "replace", "unlink") if format == "folder" else ("2", "10"):
        command = [sys.executable, "-c", KILLED, moment, str(tmp_path / "x.beton"), str(target), format]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert target.exists() == (moment == "unlink")
    report = export(tmp_path / "x.beton", target, format=format, max_samples=4, num_workers=0)
    assert (report.num_resumed, report.num_images) == (18 if format == "folder" else 8, 18)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole", "x.beton"]
    found, expected = (
        {str(file.relative_to(one)): file.read_bytes() for file in one.rglob("*.*")}
        for one in (target, tmp_path / "whole")
    )
    assert found == expected


def test_damage_is_named_and_left_out_where_that_is_allowed(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    offsets = BetonDataset(tmp_path / "x.beton").levels[0].offsets
    data = bytearray((tmp_path / "x.beton").read_bytes())
    data[offsets[3] + 700] ^= 1
    (tmp_path / "x.beton").write_bytes(data)
    with pytest.raises(ConversionError, match=r"1 images are damaged, 0 are allowed.*ant/3\.jpg"):
        export(tmp_path / "x.beton", tmp_path / "out", num_workers=0)
    report = export(tmp_path / "x.beton", tmp_path / "out", num_workers=0, allow_corrupt=1)
    assert (report.num_images, [note.name for note in report.quarantined]) == (17, ["ant/3.jpg"])
    assert len(open_source(tmp_path / "out")) == 17


def test_wrong_arguments_are_refused(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    with pytest.raises(ValueError, match="`format` must be one of folder, webdataset, parquet; got 'zip'"):
        respipe.export(tmp_path / "x.beton", tmp_path / "out", format="zip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`fields` must be names .*; got 'captions'"):
        export(tmp_path / "x.beton", tmp_path / "out", fields=("captions",))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ConversionError, match="out exists already"):
        export(tmp_path / "x.beton", tmp_path / "out")
