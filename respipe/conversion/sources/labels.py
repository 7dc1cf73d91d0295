"""Labels beside the images: ImageNet's devkit and annotations, Kaggle's solutions, tables of names and labels."""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np

from respipe.conversion.sources.base import Source, SourceOptions
from respipe.conversion.sources.columns import LABELS, Faulty, fingerprint_of, label_column, noted, parsed_labels
from respipe.errors import CorruptImageError, MissingBackendError, StorageError
from respipe.printable import printable
from respipe.storage.beton.string_table import TextTable
from respipe.storage.fields import Column
from respipe.storage.upright import EXTENSIONS

_META, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"

# What headers call the name of an image, and its label, in lower case.
_NAMES = {
    *("imageid", "image_id", "image", "img", "id", "name", "filename", "file_name", "file", "path", "filepath"),
    *("image_name", "image_path", "file_path"),
}
_LABELS = {*LABELS, "predictionstring", "class_name", "class_id", "category", "wnid", "synset"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelFile:
    """What a file says of images.

    Args:
        names: an image's name, with or without folders and extension; a name may come twice.
        labels: a class name, a number, or None where it is missing, for each name.
        classes: names of all classes, in order, where they are known to be more than ``labels`` shows.
    """

    names: Sequence[str]
    labels: Sequence[str | float | None]
    classes: tuple[str, ...] | None = None


def read_labels(path: str | os.PathLike[str], *, label_field: str | None = None) -> LabelFile:
    """Labels of whatever form they have: see the module.

    Args:
        path: ImageNet's devkit (the archive, its folder, or its ground truth), a folder of its annotations (XML), or a
            table separated by commas, tabs or spaces.
        label_field: name of the column of the label, for tables with a header.

    Raises:
        StorageError: it cannot be read, or is nothing of this.
        MissingBackendError: a devkit is given, and SciPy is not installed.
    """
    path = Path(path)
    try:
        folder = path.parent if path.name in (_TRUTH, _META) else path
        if folder.is_dir():
            meta = next(
                (found for inside in (".", "data", "*/data") for found in folder.glob(f"{inside}/{_META}")), None
            )
            if meta is not None:
                return _devkit(meta.read_bytes(), meta.with_name(_TRUTH).read_text())
            return _annotations(folder)
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            with tarfile.open(path) as archive:
                found = {PurePosixPath(member.name).name: member for member in archive if member.isfile()}
                meta, truth = (archive.extractfile(found[name]) for name in (_META, _TRUTH))
                assert meta is not None
                assert truth is not None
                return _devkit(meta.read(), truth.read().decode())
        return _table(path, path.read_bytes().decode("utf-8-sig"), label_field)
    except (OSError, EOFError, tarfile.TarError, ValueError, csv.Error, KeyError, ElementTree.ParseError) as error:
        raise StorageError(
            f"{path} cannot be read as labels: {error}. Give ImageNet's devkit, Kaggle's LOC_val_solution.csv, or a "
            "file with a name and a label in each line."
        ) from error


def _devkit(meta: bytes, truth: str) -> LabelFile:
    """The ground truth of ImageNet's validation images, whose names end with the line that is theirs."""
    try:
        from scipy.io import loadmat, matlab  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
    except ModuleNotFoundError as error:
        raise MissingBackendError(
            "ImageNet's devkit needs SciPy, which is not installed. Run: pip install 'respipe[imagenet]'"
        ) from error
    try:
        synsets: Any = np.atleast_1d(cast("Any", loadmat(io.BytesIO(meta), squeeze_me=True))["synsets"])
        leaves = [row for row in synsets if "num_children" not in synsets.dtype.names or not int(row["num_children"])]
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    except (matlab.MatReadError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{_META}: {error}") from error
    numbers = [int(line) for line in truth.split()]
    if unknown := {*numbers} - names.keys():
        raise ValueError(f"{_TRUTH} holds {min(unknown)}, which {_META} does not explain")
    labels = [names[number] for number in numbers]
    return LabelFile(
        names=[f"ILSVRC2012_val_{number:08d}" for number in range(1, len(labels) + 1)],
        labels=labels,
        classes=tuple(sorted(names.values())),
    )


def _annotations(folder: Path) -> LabelFile:
    """ImageNet's annotations: a file of XML per image, whose objects are all of one class."""
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise FileNotFoundError(f"there is neither {_META} nor an annotation (.xml) in it")
    return LabelFile(
        names=[file.stem for file in files],
        labels=[ElementTree.parse(file).findtext("object/name") for file in files],
    )


def _table(path: Path, text: str, label_field: str | None) -> LabelFile:
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((mark for mark in "\t,;" if mark in first), None)
    lines = [line.rsplit(maxsplit=1) for line in text.splitlines()]
    rows = [
        [cell.strip() for cell in row]
        for row in (csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if delimiter else lines)
        if any(map(str.strip, row))
    ]
    counts_lines = "ImageSets" in path.absolute().parts  # as ImageNet's own files there do
    if not rows or len(rows[0]) < 2 or counts_lines:
        raise StorageError(
            f"{path} must have a name and a label in each line; its first is {printable(first[:80])!r}. For ImageNet's "
            "validation images give the devkit, or Kaggle's LOC_val_solution.csv."
        )
    head, places = [cell.lower() for cell in rows[0]], range(len(rows[0]))
    files = [place for row in rows[:2] for place, cell in enumerate(row) if _bare(cell) != cell and place in places]
    name = (files or [place for place in places if head[place] in _NAMES] or [0])[0]
    has_header = (
        head[name] in _NAMES or label_field in rows[0] or (bool(files) and _bare(rows[0][name]) == rows[0][name])
    )
    if label_field is not None and label_field not in rows[0]:
        raise StorageError(f"`label_field` must be a column of {path}, {', '.join(rows[0])}; got {label_field!r}.")
    others = [place for place in places if place != name]
    known = [place for place in others if head[place] in _LABELS and has_header]
    if has_header and not known and len(others) > 1 and label_field is None:
        raise StorageError(
            f"{path} must have a column `label`; it has {', '.join(rows[0])}. Name one with `label_field` "
            "(--label-field)."
        )
    label = (known or others)[0] if label_field is None else rows[0].index(label_field)
    rows = rows[has_header:]
    texts = [row[label] if label < len(row) else "" for row in rows]
    if has_header and head[label] == "predictionstring":  # a class and a box for each object, all of one class
        texts = [text.split(" ", 1)[0] for text in texts]
    return LabelFile(names=[row[name] if name < len(row) else "" for row in rows], labels=parsed_labels(texts))


def is_flat(options: SourceOptions) -> bool:
    """Whether the folders that images lie in tell nothing, as a file labels them, or they are to have no labels.

    Raises:
        ValueError: a column of no file is named.
    """
    if options.label_field and options.labels is None:
        raise ValueError(
            f"`label_field` must name a column of the file given by `labels`; got {options.label_field!r} and no file."
        )
    return options.labels is not None or options.label_field == ""


def with_label_file(images: Source, path: str | os.PathLike[str], *, label_field: str | None = None) -> Source:
    """Images with the labels that a file gives them, those of a class one after another and sorted by name.

    Names agree as far as the file tells them: with or without folders, with or without extension. An image without
    a label, a label without an image, and what the file says twice differently, are each that sample's fault.

    Raises:
        StorageError: see :func:`read_labels`; or it names none of the images.
        ConversionError: the labels are not all of one kind.
    """
    file = read_labels(path, label_field=label_field)
    where = Path(path).name
    samples = _matched(images, file, where)
    if all(fault or row < 0 for _, row, _, fault in samples):
        names = f"the first of {len(file.names)} names in it is {printable(next(iter(file.names), ''))!r}"
        raise StorageError(
            f"{path} must label the images; of {samples[0][0]}, the first of {len(images)} images, {samples[0][3]}; "
            f"{names}."
        )
    good = [index for index, (*_, fault) in enumerate(samples) if not fault]
    known = file.classes
    if known is None and all(label is None or isinstance(label, str) for label in file.labels):
        known = tuple(sorted({label for label in file.labels if isinstance(label, str)}))
    given = [file.labels[samples[index][2]] for index in good]
    column = label_column(given, known, lambda at: samples[good[at]][0])
    assert column is not None, "labels that are good are not missing"
    found, faulty = column.values, dict[int, str]()
    if isinstance(found, Faulty):
        found, faulty = found.values, {good[at]: fault for at, fault in found.faults.items()}
    faults = {index: fault for index, (*_, fault) in enumerate(samples) if fault} | faulty
    numbers = np.zeros(len(samples), np.asarray(found).dtype)
    numbers[good] = np.asarray(found)
    order = sorted(
        range(len(samples)),
        key=lambda index: (index in faults, numbers[index] if column.kind == "class" else 0, samples[index][0]),
    )
    placed = {place: faults[index] for place, index in enumerate(order) if index in faults}
    values = noted(numbers[order], placed, lambda place: samples[order[place]][0]) if placed else numbers[order]
    label = replace(column, values=values)
    rows, table = np.array([samples[index][1] for index in order], np.int64), TextTable.of(samples[i][0] for i in order)
    others = (images.fingerprint.encode(), rows.tobytes(), table.text.tobytes(), table.offsets.tobytes())
    return _Labelled(
        images=images,
        kind=f"{images.kind} with labels of {where}",
        names=table,
        rows=rows,
        label=label,
        fingerprint=fingerprint_of(label, *others),
    )


def _matched(images: Source, file: LabelFile, where: str) -> list[tuple[str, int, int, str]]:
    """Images and lines that belong together: name, number among the images, line of the file, and what is wrong.

    Numbers are -1 where there is no image, or no line.
    """
    own = [images.name(index) for index in range(len(images))]
    names = [printable(name) for name in file.names]
    key = max(_KEYS, key=lambda key: len({*map(key, own)} & {*map(key, names)}))  # the first of equals
    lines_of, rows_of = _places(map(key, names)), _places(map(key, own))
    broken: Mapping[int, str] = getattr(images, "faults", {})
    samples: list[tuple[str, int, int, str]] = []
    for name, rows in rows_of.items():
        lines = lines_of.get(name, [-1])
        labels = {file.labels[line] if line >= 0 else None for line in lines}
        if labels == {None}:
            fault = f"{where} has no label for it"
        elif len(labels) > 1:
            fault = f"{where} has several labels for it: {', '.join(sorted(map(str, labels)))}"
        else:
            several = sum(row not in broken for row in rows) > 1
            fault = f"{where} does not tell it from another of its name" if several else ""
        samples += [(own[row], row, lines[0], broken.get(row, fault)) for row in rows]
    missing = [lines[0] for name, lines in lines_of.items() if name not in rows_of]
    return samples + [(names[line], -1, line, f"{where} labels it, but there is no such image") for line in missing]


@dataclass(frozen=True, kw_only=True)
class _Labelled:
    """Images of another source, in another order, with labels.

    Args:
        images: the source.
        rows: number there of each sample; -1 where there is no image.
    """

    images: Source
    kind: str
    names: TextTable
    rows: Any
    label: Column
    fingerprint: str

    @property
    def fields(self) -> dict[str, Column]:
        return {"label": self.label}

    @property
    def passed_over(self) -> Any:
        return getattr(self.images, "passed_over", {})

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> bytes:
        if self.rows[index] < 0:
            raise CorruptImageError("there is no such image", index=index)
        return self.images.read(int(self.rows[index]))

    def name(self, index: int) -> str:
        return printable(self.names[index])


def _places(keys: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        found.setdefault(key, []).append(place)
    return found


def _bare(name: str) -> str:
    """A name without the extension of an image."""
    stem, dot, extension = name.rpartition(".")
    return stem if dot and f".{extension.lower()}" in EXTENSIONS else name


def _last(name: str, *, parts: int | None, bare: bool) -> str:
    """The last parts of a path, for None all, with or without the extension."""
    path = name.replace("\\", "/").removeprefix("./")
    path = path if parts is None else "/".join(path.rsplit("/", parts)[-parts:])
    return _bare(path) if bare else path


# What images and labels may have in common, the most telling first.
_KEYS = tuple(partial(_last, parts=parts, bare=bare) for parts in (None, 3, 2, 1) for bare in (False, True))
