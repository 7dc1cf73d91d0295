"""The images of a class folder in every layout that ImageNet is downloaded in."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

FIELDS = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")


def images_of(folder: Path) -> list[tuple[Path, str]]:
    """Files and their classes, as if drawn at random, which validation images are."""
    files = sorted(folder.rglob("*.jpg"), key=lambda file: (file.stem, file.parent.name))
    return [(file, file.parent.name) for file in files]


def validation_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def flat_folder(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for number, (file, _) in enumerate(images_of(folder), 1):
        shutil.copy(file, target / validation_name(number))
    return target


def validation_tar(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w") as archive:
        for number, (file, _) in enumerate(images_of(folder), 1):
            archive.add(file, validation_name(number))
    return target


def devkit(folder: Path, target: Path) -> Path:
    """Its ids are in no order of their own; above the classes are synsets that no image has."""
    classes = sorted({label for _, label in images_of(folder)})
    ids = {name: number for number, name in enumerate(reversed(classes), 1)}
    synsets: Any = [(number, name, f"{name}, a word", "", 0) for name, number in ids.items()]
    synsets.append((len(classes) + 1, "animal", "animal", "", len(classes)))
    (target / "data").mkdir(parents=True)
    savemat(target / "data/meta.mat", {"synsets": np.array(synsets, [(name, object) for name in FIELDS])[:, None]})
    truth = "".join(f"{ids[label]}\n" for _, label in images_of(folder))
    (target / "data/ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    return target


def packed_devkit(folder: Path, target: Path) -> Path:
    unpacked = devkit(folder, target.parent / "ILSVRC2012_devkit_t12")
    with tarfile.open(target, "w:gz") as archive:
        archive.add(unpacked, unpacked.name)
    shutil.rmtree(unpacked)
    return target


def kaggle_solution(folder: Path, target: Path) -> Path:
    rows = (
        f"{Path(validation_name(number)).stem},{label} 1 2 30 40 {label} 5 6 7 8 \n"
        for number, (_, label) in enumerate(images_of(folder), 1)
    )
    target.write_text("ImageId,PredictionString\n" + "".join(rows))
    return target


def annotations(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for number, (_, label) in enumerate(images_of(folder), 1):
        xml = f"<annotation><filename>x</filename><object><name>{label}</name></object></annotation>"
        (target / validation_name(number)).with_suffix(".xml").write_text(xml)
    return target


def table(folder: Path, target: Path, line: str, *, header: str = "") -> Path:
    """Names and labels in lines such as "{name},{label}"; {stem} and {number} stand for others."""
    classes = sorted({label for _, label in images_of(folder)})
    target.write_text(
        header
        + "".join(
            line.format(
                name=validation_name(number),
                stem=Path(validation_name(number)).stem,
                label=label,
                number=classes.index(label),
            )
            for number, (_, label) in enumerate(images_of(folder), 1)
        )
    )
    return target


def kaggle_tree(folder: Path, target: Path) -> Path:
    images = target / "ILSVRC/Data/CLS-LOC"
    shutil.copytree(folder, images / "train")
    flat_folder(folder, images / "val")
    flat_folder(folder, images / "test")
    (target / "ILSVRC/ImageSets/CLS-LOC").mkdir(parents=True)
    table(folder, target / "ILSVRC/ImageSets/CLS-LOC/val.txt", "{stem} {number}\n")
    kaggle_solution(folder, target / "LOC_val_solution.csv")
    return target


def torchvision_root(folder: Path, target: Path) -> Path:
    target.mkdir()
    validation_tar(folder, target / "ILSVRC2012_img_val.tar")
    packed_devkit(folder, target / "ILSVRC2012_devkit_t12.tar.gz")
    return target


def packed(tree: Path, target: Path, name: str = ".") -> Path:
    with tarfile.open(target, "w") as archive:
        archive.add(tree, name)
    return target


def cut(archive: Path, length: int) -> Path:
    data = archive.read_bytes()
    archive.write_bytes(data[:length] if length >= 0 else data[: len(data) + length])
    return archive
