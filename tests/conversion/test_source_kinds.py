"""The same images convert alike from every kind of source."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from respipe.conversion import convert
from respipe.conversion.sources import SourceOptions, open_source
from respipe.errors import ConversionError, StorageError
from respipe.storage import BetonDataset
from tests.conversion import imagenet_layouts as imagenet
from tests.conversion import tables
from tests.conversion.test_interruption import run_until
from tests.memory_dataset import smooth_image
from tests.small_pages import convert_small


def tar_of_tars(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as outer:
        for one in sorted(folder.iterdir(), reverse=True):
            data = io.BytesIO()
            with tarfile.open(fileobj=data, mode="w") as inner:
                for file in one.iterdir():
                    inner.add(file, file.name)
            member = tarfile.TarInfo(f"{one.name}.tar")
            member.size = len(data.getvalue())
            outer.addfile(member, io.BytesIO(data.getvalue()))
    return path


def tar_of_folders(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(folder, "./data/train")
    return path


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*.jpg"):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/ant/._0.jpg", b"x")
        archive.writestr("readme.txt", b"x")
    return path


Layout = Callable[[Path, Path], tuple[Path | str, dict[str, Any]]]

FIELDS = ("caption", "id", "score")
TABLES: dict[str, Callable[[Path, Path], str]] = {
    "CSV manifest": tables.csv_manifest,
    "TSV manifest": tables.tsv_manifest,
    "JSON Lines manifest": tables.jsonl_manifests,
    "tar shards": tables.tar_shards,
    "tar of samples: nameless": tables.flat_shard,
    "class archives: nameless": tables.class_archives,
    "Parquet": tables.hub_parquet,
    "Parquet: nameless": tables.plain_parquet,
}

LAYOUTS: dict[str, tuple[str, Layout]] = {
    "class archives": ("tar of class archives", lambda folder, work: (tar_of_tars(folder, work / "x"), {})),
    "class folders": ("tar of class folders", lambda folder, work: (tar_of_folders(folder, work / "x"), {})),
    "zip": ("zip of class folders", lambda folder, work: (zipped(folder, work / "x"), {})),
    "val.tar, devkit": (
        "tar of images with labels of kit.tar.gz",
        lambda folder, work: (
            imagenet.validation_tar(folder, work / "val.tar"),
            {"labels": imagenet.packed_devkit(folder, work / "kit.tar.gz")},
        ),
    ),
    "val/, unpacked devkit": (
        "flat folder with labels of kit",
        lambda folder, work: (
            imagenet.flat_folder(folder, work / "val"),
            {"labels": str(imagenet.devkit(folder, work / "kit"))},
        ),
    ),
    "val/, Kaggle": (
        "flat folder with labels of LOC_val_solution.csv",
        lambda folder, work: (
            imagenet.flat_folder(folder, work / "val"),
            {"labels": imagenet.kaggle_solution(folder, work / "LOC_val_solution.csv")},
        ),
    ),
    "val.tar, annotations": (
        "tar of images with labels of xml",
        lambda folder, work: (
            imagenet.validation_tar(folder, work / "val.tar"),
            {"labels": imagenet.annotations(folder, work / "xml")},
        ),
    ),
    **{
        f"val.tar, {name}": (
            f"tar of images with labels of {name}",
            lambda folder, work, name=name, line=line, header=header: (
                imagenet.validation_tar(folder, work / "val.tar"),
                {"labels": imagenet.table(folder, work / name, line, header=header)},
            ),
        )
        for name, header, line in (
            ("a.csv", "", "{name},{label}\n"),
            ("b.csv", "\ufefffile,kind\r\n", "val\\{name},{label}\r\n"),
            ("c.csv", "class,id,width\n", '"{label}",{stem},7\n'),
            ("d.tsv", "", "{label}\t./somewhere/{name}\n"),
            ("e.txt", "", "{stem} {label}\n\n"),
            ("f.txt", "", "{name}\t{label}\t1\t2\t3\t4\n"),
        )
    },
    "Kaggle's train": ("folder", lambda folder, work: (imagenet.kaggle_tree(folder, work / "k"), {"split": "train"})),
    "Kaggle's val": (
        "flat folder with labels of LOC_val_solution.csv",
        lambda folder, work: (imagenet.kaggle_tree(folder, work / "k") / "ILSVRC", {"split": "val"}),
    ),
    "torchvision's val": (
        "tar of images with labels of ILSVRC2012_devkit_t12.tar.gz",
        lambda folder, work: (imagenet.torchvision_root(folder, work / "root"), {"split": "val"}),
    ),
    "packed train": (
        "tar of class folders",
        lambda folder, work: (
            imagenet.packed(imagenet.kaggle_tree(folder, work / "k"), work / "k.tar"),
            {"split": "train"},
        ),
    ),
    "packed val": (
        "tar of class folders with labels of LOC_val_solution.csv",
        lambda folder, work: (
            imagenet.packed(imagenet.kaggle_tree(folder, work / "k"), work / "k.tar"),
            {"split": "val", "labels": work / "k/LOC_val_solution.csv"},
        ),
    ),
    **{
        name: (name.partition(":")[0], lambda folder, work, make=make: (make(folder, work / "layout"), {}))
        for name, make in TABLES.items()
    },
}


@pytest.fixture(scope="module")
def reference(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> BetonDataset:
    target = tmp_path_factory.mktemp("reference") / "x.beton"
    convert_small(jpeg_folder, target)
    return BetonDataset(target)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_converts_as_the_class_folder_does(
    jpeg_folder: Path, reference: BetonDataset, tmp_path: Path, layout: str
) -> None:
    kind, make = LAYOUTS[layout]
    source, options = make(jpeg_folder, tmp_path)
    opened = open_source(source, options=SourceOptions(**options))
    assert opened.kind == kind
    before = {*tmp_path.rglob("*")}
    copy = pickle.loads(pickle.dumps(opened))
    for index in (7, 17, 0, 16, 1):
        original = jpeg_folder / ("ant", "bee", "cat")[index // 6] / f"{index % 6}.jpg"
        assert copy.read(index) == opened.read(index) == original.read_bytes()
    fields = FIELDS if layout in TABLES and layout not in ("TSV manifest", "class archives: nameless") else ()
    convert_small(source, tmp_path / "x.beton", fields=fields, **options)
    found = BetonDataset(tmp_path / "x.beton")
    assert {*tmp_path.rglob("*")} == before | {tmp_path / "x.beton"}  # nothing is unpacked
    assert (found.fingerprint, found.classes) == (reference.fingerprint, reference.classes)
    assert found.labels.tolist() == reference.labels.tolist()
    originals = [*map(reference.name, range(18))]
    if "val" in layout:
        files = [file.relative_to(jpeg_folder).as_posix() for file, _ in imagenet.images_of(jpeg_folder)]
        originals = [imagenet.validation_name(files.index(name) + 1) for name in originals]
    named = [found.name(index).lower().endswith(name.lower()) for index, name in enumerate(originals)]
    assert all(named) or "nameless" in layout
    assert {*found.fields} == {"label", *fields}
    rows = tables.rows_of(jpeg_folder)
    assert all(found.fields[name][index] == row[name] for name in fields for index, row in enumerate(rows))


@pytest.mark.parametrize("layout", ["JSON Lines manifest", "tar shards", "Parquet"])
def test_a_killed_conversion_of_a_table_resumes_with_several_processes(
    jpeg_folder: Path, tmp_path: Path, layout: str
) -> None:
    source = TABLES[layout](jpeg_folder, tmp_path / "layout")
    convert_small(source, tmp_path / "whole.beton", fields=FIELDS)
    run_until("page:2", source, tmp_path / "x.beton", fields=FIELDS)
    report = convert_small(source, tmp_path / "x.beton", fields=FIELDS, num_workers=2)
    assert (report.num_resumed > 0, report.num_images) == (True, 18)
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()


class InterruptedConversionError(Exception):
    pass


@pytest.mark.parametrize("layout", ["class archives", "zip", "val.tar, devkit", "Kaggle's val"])
def test_layouts_go_on_after_an_interruption_and_end_with_the_same_bytes(
    jpeg_folder: Path, tmp_path: Path, layout: str
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 13:
            raise InterruptedConversionError

    source, options = LAYOUTS[layout][1](jpeg_folder, tmp_path)
    convert_small(source, tmp_path / "whole.beton", **options)
    with pytest.raises(InterruptedConversionError):
        convert_small(source, tmp_path / "x.beton", progress=stop, **options)
    assert 0 < convert_small(source, tmp_path / "x.beton", **options).num_resumed < 13
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()


def test_archives_that_cannot_be_read_are_refused_by_name(jpeg_folder: Path, tmp_path: Path) -> None:
    whole = zipped(jpeg_folder, tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match=r"x.zip cannot be read as an archive: .*Copy it again"):
        open_source(tmp_path / "x.zip")
    with tarfile.open(tmp_path / "flat.tar", "w") as archive:
        archive.add(jpeg_folder / "ant/0.jpg", "0.jpg")
    with pytest.raises(StorageError, match="found 1 images, some in no folder"):
        open_source(tmp_path / "flat.tar")
    shutil.make_archive(str(tmp_path / "packed"), "gztar", jpeg_folder)
    with pytest.raises(StorageError, match=r"a gzip archive\. Unpack it, or give"):
        open_source(tmp_path / "packed.tar.gz")


class Pairs:
    """As torchvision's CIFAR10: images in memory, targets, classes."""

    classes = ("even", "odd")

    def __init__(self, make: Callable[[Image.Image], Any]) -> None:
        self.targets = [0, 1, 0]
        self._images = [make(smooth_image(24, 40, seed=index)) for index in range(3)]

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._images[index], self.targets[index]


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("make", [lambda image: image, np.asarray, tensor, png])
def test_indexable_datasets_keep_every_pixel(tmp_path: Path, make: Callable[[Image.Image], Any]) -> None:
    source = open_source(Pairs(make))
    assert (source.kind, source.fields["label"].classes) == ("dataset Pairs", ("even", "odd"))
    for index in range(3):
        with Image.open(io.BytesIO(source.read(index))) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(smooth_image(24, 40, seed=index)))
    convert(Pairs(make), tmp_path / "x.beton", levels=(64,), num_workers=0)
    assert BetonDataset(tmp_path / "x.beton").fields["label"][1] == 1


def test_items_may_be_dicts_with_fields_or_images_alone(tmp_path: Path) -> None:
    items = [
        {"img": smooth_image(24, 40, seed=i), "fine_label": i, "caption": f"item {i}", "box": torch.tensor([i, 2.5])}
        for i in range(3)
    ]
    convert(items, tmp_path / "x.beton", fields=("caption", "box"), levels=(64,), num_workers=0)
    dataset = BetonDataset(tmp_path / "x.beton")
    assert (dataset.fields["label"][2], dataset.fields["caption"][2]) == (2, "item 2")
    assert dataset.fields["box"][2].tolist() == [2, 2.5]
    convert([item["img"] for item in items], tmp_path / "y.beton", levels=(64,), num_workers=0)
    assert BetonDataset(tmp_path / "y.beton").labels is None
    with pytest.raises(StorageError, match="must have an image"):
        open_source([{"label": 3}])
    with pytest.raises(ConversionError, match="of one kind"):
        open_source([(items[0]["img"], 1), (items[1]["img"], "dog")])


@pytest.mark.parametrize(
    "mode", ["CMYK", "YCbCr", "LAB", "F", "I;16", "RGBA", "P", "1", "HSV", "RGBX", "La", "PA", "RGBa"]
)
def test_items_of_any_mode_of_pillow_are_judged_as_their_files_are(mode: str, tmp_path: Path) -> None:
    image = smooth_image(24, 40, seed=0)
    image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else image
    source = open_source([image if image.mode == mode else _in_mode(image, mode)] * 2)
    convert(source, tmp_path / "x.beton", levels=(64,), num_workers=0)
    assert len(BetonDataset(tmp_path / "x.beton")) == 2


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode in ("La", "RGBa"):  # alpha comes first
        image = image.convert("LA" if mode == "La" else "RGBA")
    if mode != "LAB":
        return image.convert(mode)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    assert converted is not None
    return converted


class Failing:
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


def test_an_item_that_fails_is_left_out_alone(tmp_path: Path) -> None:
    images = [smooth_image(24, 40, seed=index) for index in range(3)]
    good = [{"image": image, "label": index, "note": "x"} for index, image in enumerate(images)]
    wide = Image.fromarray(np.full((24, 40), 70_000, np.int32))
    items = Failing(ValueError("boom"), *good, {"image": None, "label": 1}, {"image": wide, "label": 1, "note": "x"})
    report = convert(items, tmp_path / "x.beton", levels=(64,), num_workers=0, allow_corrupt=3, fields=("note",))
    assert [(note.name, note.reason.split(" (")[0]) for note in report.quarantined] == [
        ("item 0", "ValueError: boom"),
        ("item 4", "it has no image"),
        ("item 5", "its 32-bit pixels"),
    ]
    dataset = BetonDataset(tmp_path / "x.beton")
    assert [dataset.fields["label"][index] for index in range(3)] == [0, 1, 2]
    assert dataset.fields["note"][0] == "x"


def test_items_may_be_paths_and_one_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(png(smooth_image(24, 40, seed=index)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:-200])
    with Image.open(tmp_path / "cut.png") as cut:  # decoded only when it is read
        items = [str(tmp_path / "0.png"), tmp_path / "1.png", tmp_path / "missing.png", cut, tmp_path / "2.png"]
        with pytest.raises(ConversionError, match=r"missing|cut"):
            convert(items, tmp_path / "x.beton", levels=(64,), num_workers=0)
        report = convert(items, tmp_path / "y.beton", levels=(64,), num_workers=0, allow_corrupt=2)
    assert len(BetonDataset(tmp_path / "y.beton")) == 3
    assert len(report.quarantined) == 2
