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
from respipe.conversion.sources import open_source
from respipe.errors import ConversionError, StorageError
from respipe.storage import BetonDataset
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


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (tar_of_tars, "tar of class archives"),
        (tar_of_folders, "tar of class folders"),
        (zipped, "zip of class folders"),
    ],
)
def test_archives_convert_as_the_folder_does(
    jpeg_folder: Path, tmp_path: Path, make: Callable[[Path, Path], Path], kind: str
) -> None:
    source = make(jpeg_folder, tmp_path / "archive")
    opened = open_source(source)
    assert opened.kind == kind
    assert pickle.loads(pickle.dumps(opened)).read(7) == opened.read(7) == (jpeg_folder / "bee/1.jpg").read_bytes()
    convert_small(jpeg_folder, tmp_path / "folder.beton")
    convert_small(source, tmp_path / "x.beton", num_workers=1)
    folder, found = BetonDataset(tmp_path / "folder.beton"), BetonDataset(tmp_path / "x.beton")
    assert found.fingerprint == folder.fingerprint
    assert found.classes == folder.classes
    assert all(found.name(index).endswith(folder.name(index)) for index in range(18))


def test_archives_that_cannot_be_read_are_refused_by_name(jpeg_folder: Path, tmp_path: Path) -> None:
    whole = tar_of_folders(jpeg_folder, tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match=r"x.tar cannot be read as an archive: .*Copy it again"):
        open_source(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "flat.tar", "w") as archive:
        archive.add(jpeg_folder / "ant/0.jpg", "0.jpg")
    with pytest.raises(StorageError, match="found 1 images, some in no folder"):
        open_source(tmp_path / "flat.tar")
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for _ in range(2):
            archive.add(jpeg_folder / "ant/0.jpg", "ant/0.jpg")
    with pytest.raises(StorageError, match=r"holds ant/0\.jpg more than once"):
        open_source(tmp_path / "twice.tar")
    shutil.make_archive(str(tmp_path / "packed"), "gztar", jpeg_folder)
    with pytest.raises(StorageError, match="a gzip archive"):
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


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "F", "I;16", "RGBA", "P", "1"])
def test_items_of_any_mode_of_pillow_are_judged_as_their_files_are(mode: str, tmp_path: Path) -> None:
    image = smooth_image(24, 40, seed=0)
    image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else image
    source = open_source([image if image.mode == mode else _in_mode(image, mode)] * 2)
    convert(source, tmp_path / "x.beton", levels=(64,), num_workers=0)
    assert len(BetonDataset(tmp_path / "x.beton")) == 2


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode != "LAB":
        return image.convert(mode)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    assert converted is not None
    return converted


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
