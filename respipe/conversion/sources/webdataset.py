"""Tar shards as WebDataset has them: the files of a sample share a name, but for the extension."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from respipe.conversion.sources.archive import tar_members
from respipe.conversion.sources.base import SourceOptions, SourceSpec
from respipe.conversion.sources.columns import (
    LABELS,
    FieldKinds,
    fingerprint_of,
    json_row,
    label_column,
    logger,
    parsed_labels,
    recorded_classes,
)
from respipe.conversion.sources.paths import files_of, is_pattern
from respipe.errors import CorruptImageError, StorageError
from respipe.printable import printable
from respipe.storage.beton.string_table import TextTable
from respipe.storage.class_folder import counted, is_litter
from respipe.storage.fields import Column, Computed
from respipe.storage.regular_files import open_regular
from respipe.storage.upright import EXTENSIONS

# Extensions of what is text; "cls" is the label, and what "json" holds are fields.
_LABEL, _JSON, _TEXT = "cls", "json", ("txt", "text", "caption")
_COMPANIONS = {_LABEL, _JSON, *_TEXT}
_IMAGES = {extension[1:]: rank for rank, extension in enumerate(EXTENSIONS)}

# Files of a tar that are looked at to tell what it is.
_PEEK, _PEEK_FILES = 64, 4

# Places of a sample's files by their extension: offset in the shard, and length.
_Members = dict[str, tuple[int, int]]


class ShardSource:
    """Samples in uncompressed tars, indexed once and read where they lie.

    The files of a sample have one name up to the first dot: an image, its label in ``.cls``, fields in ``.json``, text
    in ``.txt``. A ``label`` in the JSON counts where there is no ``.cls``. Every other file is a field of bytes. Where
    no sample has a label, but every file the name of its tar in front, and the tars are not just numbered, that is the
    class.

    A file that is there twice, or not whole, is its sample's fault; and so is what follows the place where a tar ends
    without its end mark.

    Args:
        files: the tars.
        label_field: what has the label, if not ``cls`` or one of the usual names in ``json``; "" for no labels.

    Raises:
        StorageError: a tar cannot be read, or none has the label.
        ConversionError: half of the labels are of another kind than the other half.
    """

    def __init__(self, files: Sequence[Path], *, label_field: str | None = None) -> None:
        self.kind = "tar shards" if len(files) > 1 else "tar of samples"
        self._files = tuple(files)
        names: list[str] = []
        self._faults: dict[int, str] = {}
        shards, places = array("q"), _Places()
        rows: list[Any] = []
        kinds = FieldKinds()
        for number, file in enumerate(files):
            with open_regular(file) as stream:
                for key, members, wrong in _samples(stream, file):
                    if wrong:
                        self._faults[len(rows)] = wrong
                    image = _image_of(members)
                    name = f"{key}.{image}" if image else key
                    names.append(f"{file.name}/{name}" if len(files) > 1 else name)
                    shards.append(number)
                    places.add({("image" if ext == image else ext): place for ext, place in members.items()})
                    rows.append(self._label_of(stream.fileno(), members, label_field, kinds, len(rows)))
        self._names = TextTable.of(names)
        self._shards = np.frombuffer(shards, np.int64)
        self._places = places.arrays(len(names))
        if label_field and label_field not in kinds and label_field not in self._places:
            known = ", ".join(map(printable, (*self._places, *kinds.names)))
            raise StorageError(f"{files[0]} must have a field `{label_field}` for the labels; its fields are {known}.")
        if label_field is None and all(row is None for row in rows) and self._named_by_class(names):
            self.kind = "class archives"
            rows = [self._files[number].stem for number in self._shards.tolist()]
        labels = parsed_labels(rows) if (_LABEL if label_field is None else label_field) in self._places else rows
        label = label_column(labels, recorded_classes(files[0].parent), self.name)
        if label is None and label_field is None:
            logger.warning("%s: no labels: neither .cls files, nor JSON with a `label`", files[0])
        self.fields = self._columns(label, label_field, kinds)
        self.fingerprint = fingerprint_of(label, self._digest())

    def _named_by_class(self, names: Sequence[str]) -> bool:
        """Whether tars are classes, as those of ImageNet's training set: all images have their tar's name in front."""
        stems = [file.stem for file in self._files]
        numbers = sorted(int("0" + re.sub(r"\D", "", stem)) for stem in stems)
        numbered = numbers == [*range(numbers[0], numbers[0] + len(numbers))]
        return not numbered and all(
            name.rpartition("/")[2].startswith(f"{stems[number]}_")
            for number, name in zip(self._shards.tolist(), names, strict=True)
        )

    def _label_of(
        self, descriptor: int, members: _Members, label_field: str | None, kinds: FieldKinds, index: int
    ) -> Any:
        """The label of one sample, whose JSON is noted on the way."""
        if index in self._faults:
            return CorruptImageError(self._faults[index], index=index)
        row: dict[str, Any] = {}
        fault = None
        if _JSON in members:
            try:
                row = json_row(_read(descriptor, members[_JSON]))
            except ValueError as error:
                fault = CorruptImageError(f"its JSON cannot be read: {error}", index=index)
            kinds.add(row)
        extension = _LABEL if label_field is None else label_field
        if extension in members:
            return _read(descriptor, members[extension]).decode("utf-8", "surrogateescape").strip() or None
        names = LABELS if label_field is None else (label_field,)
        return next((row[name] for name in names if name in row), fault if label_field != "" else None)

    def _columns(self, label: Column | None, label_field: str | None, kinds: FieldKinds) -> dict[str, Column]:
        fields = {} if label is None else {"label": label}
        noted = (_LABEL if _LABEL in self._places else next((name for name in LABELS if name in kinds), ""),)
        used = {"image", "label", *(noted if label_field is None else (label_field,))}
        for extension in self._places:
            if extension not in (used | {_JSON}):
                kind = "text" if extension in _TEXT else "bytes"
                fields[extension] = Column(
                    kind=kind, values=Computed(partial(self.value, extension=extension), len(self))
                )
        for name in kinds.names:
            if name not in used:
                column = kinds.column(name, Computed(partial(self.value, extension=_JSON, key=name), len(self)))
                fields |= {} if column is None else {name: column}
        return {**fields, **({"caption": fields["txt"]} if "txt" in fields and "caption" not in fields else {})}

    def _digest(self) -> bytes:
        digest = hashlib.sha256("\n".join(sorted(self._places)).encode("utf-8", "surrogateescape"))
        arrays = (self._names.text, self._names.offsets, self._shards, *(self._places[n] for n in sorted(self._places)))
        for one in arrays:
            digest.update(np.ascontiguousarray(one).data)
        return digest.digest()

    def __len__(self) -> int:
        return len(self._shards)

    def member(self, index: int, extension: str) -> bytes:
        """One file of a sample; that of the image is called ``image``.

        Raises:
            CorruptImageError: the sample has none, or the tar ends before it does.
            OSError: the tar is out of reach.
        """
        if index in self._faults:
            raise CorruptImageError(self._faults[index], index=index)
        offset, size = self._places[extension][index].tolist()
        if offset < 0:
            raise CorruptImageError(f"it has no {'image' if extension == 'image' else f'.{extension}'}", index=index)
        path = self._files[int(self._shards[index])]
        with open_regular(path) as file:
            data = _read(file.fileno(), (offset, size))
        if len(data) < size:
            raise CorruptImageError(f"{path.name} ends after {len(data)} of its {size} bytes", index=index)
        return data

    def value(self, index: int, extension: str, key: str = "") -> Any:
        """A field of a sample: one file, or what a JSON has under a key."""
        data = self.member(index, extension)
        try:
            return json_row(data).get(key) if key else data.decode() if extension in _TEXT else data
        except ValueError as error:
            raise CorruptImageError(f"its .{extension} cannot be read: {error}", index=index) from error

    def read(self, index: int) -> bytes:
        """One image; see :meth:`respipe.conversion.Source.read`."""
        return self.member(index, "image")

    def name(self, index: int) -> str:
        """Its path in the tar, behind the tar's name where there are several."""
        return printable(self._names[index])


class _Places:
    """Where the files of each sample lie: a table of two numbers for each extension."""

    def __init__(self) -> None:
        self._arrays: dict[str, array[int]] = {"image": array("q")}
        self._count = 0

    def add(self, members: Mapping[str, tuple[int, int]]) -> None:
        self._count += 1
        for extension, place in members.items():
            found = self._arrays.setdefault(extension, array("q"))
            found.extend([-1] * (2 * (self._count - 1) - len(found)))
            found.extend(place)

    def arrays(self, count: int) -> dict[str, NDArray[np.int64]]:
        """(N, 2) by extension: offset, or -1 where a sample has no such file, and length."""
        for found in self._arrays.values():
            found.extend([-1] * (2 * count - len(found)))
        return {name: np.frombuffer(found, np.int64).reshape(-1, 2) for name, found in self._arrays.items()}


def _read(descriptor: int, place: tuple[int, int]) -> bytes:
    return os.pread(descriptor, place[1], place[0])


def _members(file: BinaryIO, path: Path) -> Iterator[tuple[str, str, tuple[int, int], str]]:
    """Name up to its first dot, extension, place, and what is wrong, of every file in a tar, in order."""
    for member in counted(tar_members(file, path.name, 0, path.stat().st_size), path, "files"):
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        key, dot, extension = name.partition(".")
        if member.fault or (dot and key and not member.is_link and not any(map(is_litter, (*folder.split("/"), name)))):
            extension = extension.lower() if extension.lower() in _COMPANIONS | _IMAGES.keys() else extension
            yield f"{folder}/{key}" if folder else key, extension, (member.place, member.size), member.fault


def _samples(file: BinaryIO, path: Path) -> Iterator[tuple[str, _Members, str]]:
    """Name, files, and what is wrong, of each sample of a tar, in the order of their first files."""
    found: dict[str, _Members] = {}
    faults: dict[str, str] = {}
    try:
        for key, extension, place, fault in _members(file, path):
            members = found.setdefault(key, {})
            twice = (
                f"{path.name} holds {printable(f'{key}.{extension}')} more than once" if extension in members else ""
            )
            if wrong := fault or twice:
                faults.setdefault(key, wrong)
            members[extension] = place
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be read as an uncompressed tar: {error}. Is it whole, and not compressed? Copy it again."
        ) from error
    yield from ((key, members, faults.get(key, "")) for key, members in found.items())


def _image_of(members: _Members) -> str | None:
    """Extension of the sample's image: the plainest there is."""
    images = [extension for extension in members if extension.rpartition(".")[2].lower() in _IMAGES]
    return min(images, key=lambda name: (name.count("."), _IMAGES.get(name.lower(), 0)), default=None)


def _has_samples(path: Path, *, several: bool) -> bool:
    """Whether a tar's first files are samples: images with a label, or lying in no folder and with JSON or text.

    So they are in one of several tars where all have the tar's name in front.
    """
    found: dict[str, set[str]] = {}
    # What is wrong with it is said when it is indexed.
    with contextlib.suppress(tarfile.TarError, OSError, EOFError, ValueError), path.open("rb") as file:
        for key, extension, *_ in itertools.islice(_members(file, path), _PEEK):
            found.setdefault(key, set()).add(extension)
    of_class = several and bool(found) and all(key.startswith(f"{path.stem}_") for key in found)
    return of_class or any(
        extensions & _IMAGES.keys() and (_LABEL in extensions or ("/" not in key and extensions & _COMPANIONS))
        for key, extensions in found.items()
    )


def _shards(given: Any) -> list[Path]:
    """The tars that are meant; none where it is something else."""
    files = files_of(given, (".tar",)) if isinstance(given, str) else []
    return files if all(file.suffix == ".tar" or not is_pattern(given) for file in files) else []


def _recognise(given: Any) -> bool:
    files = _shards(given)
    # The first shards may be empty.
    return any(file.is_file() and _has_samples(file, several=len(files) > 1) for file in files[:_PEEK_FILES])


def _open(given: Any, options: SourceOptions) -> ShardSource:
    files = _shards(given)
    if not files or not all(map(Path.is_file, files)):
        raise StorageError(f"{given} must be tars, or a folder of them; there are none.")
    return ShardSource(files, label_field=options.label_field)


SPEC = SourceSpec(
    format="webdataset",
    title="tar shards with .jpg, .cls and .json (WebDataset)",
    recognise=_recognise,
    open=_open,
    options=frozenset({"label_field"}),
    priority=1,
)
