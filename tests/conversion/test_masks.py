"""Masks from every source, stored at their image's size and loaded with its crops."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import respipe
from respipe.augment import ColorJitter, RandAugment, RandomApply
from respipe.conversion import TooManyCorruptError
from respipe.schedules import Constant, LowMode, MultiCrop, RSNet, View
from respipe.storage import BetonDataset
from respipe.storage.masks import crop_mask, read_mask, write_mask
from tests.memory_dataset import jpeg_bytes, smooth_image

SIDES = [(90, 120), (140, 100), (64, 64), (50, 80)]


def mask_of(number: int) -> NDArray[np.uint8]:
    """A bright disc's number on darkness; see :func:`picture_of`."""
    height, width = SIDES[number]
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - 0.4 * width) ** 2 < (0.3 * min(height, width)) ** 2
    return np.where(disc, 1 + number, 0).astype(np.uint8)


def picture_of(number: int) -> Image.Image:
    return Image.fromarray(np.where(mask_of(number)[..., None] > 0, 255, 0).astype(np.uint8).repeat(3, axis=2))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def dataset() -> list[dict[str, Any]]:
    return [{"image": picture_of(i), "label": i % 2, "mask": Image.fromarray(mask_of(i))} for i in range(len(SIDES))]


def manifest(folder: Path) -> Path:
    for number in range(len(SIDES)):
        (folder / f"{number}.png").write_bytes(png(picture_of(number)))
        (folder / f"{number}_mask.png").write_bytes(write_mask(mask_of(number)))
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "label", "mask"), *((f"{i}.png", i % 2, f"{i}_mask.png") for i in range(len(SIDES)))]
        )
    return folder / "data.csv"


def shards(folder: Path) -> Path:
    with tarfile.open(folder / "data-000.tar", "w") as tar:
        for number in range(len(SIDES)):
            members = {
                "png": png(picture_of(number)), "mask.png": write_mask(mask_of(number)), "cls": str(number % 2).encode()
            }  # fmt: skip
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{number:03}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return folder / "data-000.tar"


def parquet(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    rows = [
        {"image": {"bytes": png(picture_of(i))}, "label": i % 2, "mask": {"bytes": write_mask(mask_of(i)), "path": ""}}
        for i in range(len(SIDES))
    ]
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), folder / "data.parquet")
    return folder / "data.parquet"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("masks") / "x.beton"
    respipe.convert(dataset(), path, fields=("mask",), levels=(96, 48), keep="pixels", num_workers=0)
    return path


@pytest.mark.parametrize(
    ("make", "name"),
    [(manifest, "mask"), (shards, "mask.png"), (parquet, "mask")],
    ids=["csv", "tar shards", "Parquet"],
)
def test_every_source_gives_the_same_masks(make: Any, name: str, converted: Path, tmp_path: Path) -> None:
    respipe.convert(make(tmp_path), tmp_path / "x.beton", fields=(name,), levels=(96, 48), keep="pixels", num_workers=0)
    found, expected = BetonDataset(tmp_path / "x.beton").fields[name], BetonDataset(converted).fields["mask"]
    assert found.kind == expected.kind == "mask"
    for number, (height, width) in enumerate(SIDES):
        mask = read_mask(found[number])
        np.testing.assert_array_equal(mask, read_mask(expected[number]))
        scale = min(1, 96 / max(height, width))
        assert mask.shape == (round(height * scale), round(width * scale))
        assert {*np.unique(mask).tolist()} == {0, 1 + number}


def test_a_crop_is_that_of_the_nearest_pixels() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (37, 53), np.uint8)
    for box in ((0.0, 0.0, 37.0, 53.0), (3.0, 5.0, 20.0, 31.0), (2.5, 1.25, 17.75, 40.0)):
        top, left, height, width = box
        expected = Image.fromarray(mask).resize(
            (16, 16), Image.Resampling.NEAREST, box=(left, top, left + width, top + height)
        )
        np.testing.assert_array_equal(crop_mask(mask, box, (16, 16)), np.asarray(expected))
        np.testing.assert_array_equal(crop_mask(mask, box, (16, 16), flip=True), np.asarray(expected)[:, ::-1])
    outside = crop_mask(mask, (-4.0, -4.0, 8.0, 8.0), (8, 8))
    assert not outside[:4].any()
    assert not outside[:, :4].any()
    np.testing.assert_array_equal(outside[4:, 4:], mask[:4, :4])


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(48),
        RSNet((48, 32, 16)),
        MultiCrop([View(32, 2, scale=(0.3, 1.0)), View(16, scale=(0.1, 0.5))]),
        LowMode(48),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_masks_are_cropped_and_mirrored_with_their_images(schedule: Any, converted: Path) -> None:
    with respipe.Loader(
        converted, schedule, batch_size=4, normalize=None, fields=("label", "mask"), seed=3, num_threads=1
    ) as loader:
        for _ in range(3):
            for images, fields in loader:
                several, masks = (one if isinstance(one, tuple) else (one,) for one in (images, fields["mask"]))
                assert len(several) == len(masks)
                for image, mask in zip(several, masks, strict=True):
                    assert (mask.dtype, mask.shape) == (torch.uint8, image[:, 0].shape)
                    # Filters blur the edge of the disc; a mask that was not mirrored would be off by far more.
                    differing = ((mask > 0) != (image[:, 0] > 0.5)).float().mean()
                    assert differing < 0.03


def test_what_does_not_fit_its_image_is_one_samples_fault(tmp_path: Path) -> None:
    items = dataset()
    items[1]["mask"] = Image.fromarray(mask_of(1)[:-1])
    with pytest.raises(TooManyCorruptError, match=r"its field `mask`: .*100 x 140 px, upright; it has 100 x 139 px"):
        respipe.convert(items, tmp_path / "x.beton", fields=("mask",), levels=(96,), num_workers=0)
    report = respipe.convert(
        items, tmp_path / "x.beton", fields=("mask",), levels=(96,), num_workers=0, allow_corrupt=1
    )
    assert report.num_images == 3
    for data, reason in (
        (jpeg_bytes(smooth_image(9, 9, seed=0)), "whole PNG"),
        (png(picture_of(0)), "has the mode RGB"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_mask(data)


def test_what_would_move_an_image_and_not_its_mask_is_refused(converted: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "fields": ("label", "mask"), "num_threads": 1}
    respipe.Loader(converted, Constant(32), augment=ColorJitter(0.4), **options).close()
    for augment in (RandAugment(), RandomApply((ColorJitter(0.1), RandAugment()))):
        with pytest.raises(ValueError, match=r"`augment` must leave pixels in their places .*RandAugment"):
            respipe.Loader(converted, Constant(32), augment=augment, **options)
        with pytest.raises(ValueError, match=r"`augment` must leave pixels in their places"):
            respipe.Loader(converted, MultiCrop([View(32, 2, augment=(augment,))]), **options)
    with pytest.raises(ValueError, match="`mixup` and `cutmix` must be left out with masks"):
        respipe.Loader(converted, Constant(32), mixup=0.2, **options)


@pytest.mark.parametrize("format", ["folder", "webdataset", "parquet"])
def test_masks_come_back_from_an_export(format: str, converted: Path, tmp_path: Path) -> None:
    respipe.export(converted, tmp_path / "out", format=format, num_workers=0)
    respipe.convert(tmp_path / "out", tmp_path / "x.beton", fields=("mask",), levels=(96,), num_workers=0)
    found, expected = BetonDataset(tmp_path / "x.beton"), BetonDataset(converted)
    masks = {found.levels[0].widths[i]: read_mask(found.fields["mask"][i]) for i in range(len(SIDES))}
    for number in range(len(SIDES)):
        expected_mask = read_mask(expected.fields["mask"][number])
        np.testing.assert_array_equal(masks[expected_mask.shape[1]], expected_mask)
    assert json.dumps(found.attributes["fields"])
