"""The way back: a stored dataset as a class folder, tar shards or Parquet files, which need no respipe to be read."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, get_args

import numpy as np
from PIL import Image

from respipe.checks import check_int
from respipe.conversion.engine import explained, sync_folder
from respipe.conversion.journal import Journal
from respipe.conversion.report import SampleNote
from respipe.conversion.workers import SampleWorkers, check_num_workers
from respipe.errors import ConversionError, CorruptImageError
from respipe.jpeg.index import without_index
from respipe.storage.beton.pages import SIZE, PageRecord
from respipe.storage.beton.string_table import TextTable
from respipe.storage.class_folder import is_litter
from respipe.storage.dataset import Dataset
from respipe.storage.fields import Column
from respipe.storage.open import Data, open_dataset
from respipe.storage.upright import EXTENSIONS, BrokenImageError, decode

Format = Literal["folder", "webdataset", "parquet"]

# Images that are decoded at once when Parquet is read, as the Hub recommends.
_ROW_GROUP = 100
_FOLDER_CHUNK = 1000
_LONGEST_NAME = 150

# What the names of files and of class folders may consist of, everywhere; a dot would end a name in tar shards.
_NO_STEM = re.compile(r"[^\w+=@-]+")
_NO_FOLDER = re.compile(r"[^\w+=@,.()' -]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What an export did, over all its interrupted runs.

    Args:
        target: the folder.
        format: of what is in it.
        fields: names of those beside the label.
        num_samples: in the dataset.
        num_images: of these, samples exported.
        num_bytes: of their images together.
        quarantined: damaged samples, which were left out.
        num_resumed: samples that an earlier, interrupted run had finished.
        seconds: of this run.
    """

    target: str
    format: Format
    fields: tuple[str, ...]
    num_samples: int
    num_images: int
    num_bytes: int
    quarantined: tuple[SampleNote, ...]
    num_resumed: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def export(
    data: Data,
    target: str | os.PathLike[str],
    *,
    format: Format = "folder",
    fields: Sequence[str] | None = None,
    max_samples: int = 10_000,
    num_workers: int | None = None,
    allow_corrupt: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write the images, labels and fields of a dataset to files that other programs read, and that convert back.

    An image is the JPEG of the largest level as it is stored, without respipe's index; pixels become PNGs. Formats are

    * ``folder``: one subfolder per class, and a ``metadata.jsonl`` with file names, labels and fields, as the Hub's
      ``imagefolder`` has it;
    * ``webdataset``: tars with ``.jpg``, ``.cls``, and ``.json`` for fields, and for labels that are no classes;
    * ``parquet``: the Hub's layout, with the class names in the schema.

    The first two have the class names, in the order of their numbers, in ``classes.json``. All convert to the samples
    of the dataset in their order, with its labels and fields.

    ``target`` appears only when it is finished. Until then the work is in ``TARGET.partial`` and ``TARGET.journal``;
    calling the same again, after whatever interrupted it, goes on from there.

    Args:
        data: what :func:`respipe.open_dataset` opens: a ``.beton``, several, or a class folder.
        target: the folder to make; an empty one may exist.
        format: what to write.
        fields: names of the fields to write beside the label; by default all.
        max_samples: samples per tar or Parquet file, at most.
        num_workers: processes, by default one per core; with 0 this one does the work.
        allow_corrupt: damaged images that may be left out.
        progress: called with the number of samples done and their total.

    Raises:
        ValueError, TypeError: an argument is out of range.
        StorageError: the dataset cannot be opened.
        ConversionError: the target exists, more images are damaged than allowed, or another export is writing it.
        MissingBackendError: pyarrow is not installed.
    """
    if format not in get_args(Format):
        raise ValueError(f"`format` must be one of {', '.join(get_args(Format))}; got {format!r}.")
    check_int("max_samples", max_samples, least=1)
    opened = open_dataset(data)
    with nullcontext(opened) if opened is data else closing(opened) as dataset:
        others = [name for name in dataset.fields if name != "label"]
        if unknown := [name for name in fields or () if name not in dataset.fields]:
            raise ValueError(f"`fields` must be names of the dataset's fields, {others}; got {unknown[0]!r}.")
        chosen = {name: dataset.fields[name] for name in others if fields is None or name in fields}
        one = _Export(
            dataset=dataset,
            target=Path(target),
            format=format,
            fields=chosen,
            chunk=_FOLDER_CHUNK if format == "folder" else max_samples,
            allow_corrupt=allow_corrupt,
            progress=progress or (lambda done, total: None),
        )
        return one.run(check_num_workers(num_workers))


@dataclass(frozen=True, slots=True)
class _Encoded:
    """One image as it is written."""

    data: bytes
    extension: str


@dataclass(frozen=True, slots=True)
class _ReadImage:
    """What workers do: the bytes to write for a sample, or what is wrong with it."""

    dataset: Dataset

    def __call__(self, index: int) -> _Encoded | str:
        level = self.dataset.levels[0]
        try:
            self.dataset.check(index)
            data = self.dataset.encoded(index).tobytes()
            if not level.raw[index] and data.startswith(b"\xff\xd8"):
                return _Encoded(without_index(data), "jpg")
            size = int(level.widths[index]), int(level.heights[index])
            image = Image.frombytes("RGB", size, data) if level.raw[index] else decode(data).image
        except (CorruptImageError, BrokenImageError) as error:
            return str(error)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return _Encoded(buffer.getvalue(), "png")


class _Sink(Protocol):
    """Where some consecutive samples are written; what it makes is there, whole, once it is closed."""

    def add(self, path: str, image: _Encoded, label: Any, values: Mapping[str, Any]) -> None: ...
    def close(self) -> int: ...
    def abort(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class _Export:
    """One call of :func:`export`."""

    dataset: Dataset
    target: Path
    format: Format
    fields: Mapping[str, Column]
    chunk: int
    allow_corrupt: int
    progress: Callable[[int, int], None]

    @property
    def _partial(self) -> Path:
        return Path(f"{self.target}.partial")

    def run(self, num_workers: int) -> ExportReport:
        start, total = time.perf_counter(), len(self.dataset)
        if not (folder := self.target.absolute().parent).is_dir():
            raise ConversionError(f"The folder {folder} must exist for {self.target.name} to be made in it.")
        log = Path(f"{self.target}.journal")
        if not log.exists():
            self._check_free()
        identity = {
            "export": self.format,
            "fingerprint": self.dataset.fingerprint,
            "fields": [*self.fields],
            "chunk": self.chunk,
        }
        with explained(self.target), Journal(log, identity, num_levels=1) as journal:
            resumed = journal.num_done
            if not (resumed == total and not self._partial.exists() and self.target.exists()):
                self._check_free()
                folders = _class_folders(self.dataset)
                paths = TextTable.of(_paths(self.dataset, folders))
                resumed = self._resume(journal, paths, folders)
                self._write_rest(journal, paths, num_workers)
                self._check_lost(journal, [])
                self._partial.replace(self.target)
                sync_folder(folder)
            journal.remove()
            return self._report(journal, resumed, time.perf_counter() - start)

    def _check_free(self) -> None:
        if self.target.exists() and not (self.target.is_dir() and not any(self.target.iterdir())):
            raise ConversionError(f"{self.target} exists already. Choose another target, or remove it.")

    def _resume(self, journal: Journal, paths: TextTable, folders: Mapping[int, str]) -> int:
        """Go back to the last chunk that is there; returns the number of samples done by then."""
        if not journal.records:
            shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(exist_ok=True)
        for number, record in enumerate(journal.records):
            if not self._is_there(number, record, paths):
                journal.rewind(number)
                break
        if self.dataset.classes is not None and self.format != "parquet":
            (self._partial / "classes.json").write_text(json.dumps(self.dataset.classes, indent=0))
        for folder in folders.values() if self.format == "folder" else ():
            (self._partial / folder).mkdir(exist_ok=True)  # also where none of the samples is of the class
        return journal.num_done

    def _is_there(self, number: int, record: PageRecord, paths: TextTable) -> bool:
        if self.format != "folder":
            return self._file(number).exists()
        sizes = zip(record.indices.tolist(), record.images[:, 0, SIZE].tolist(), strict=True)
        files = ([self._partial / f"{paths[index]}.{one}" for one in ("jpg", "png")] for index, _ in sizes)
        written = (next((file.stat().st_size for file in pair if file.exists()), None) for pair in files)
        return [*written] == record.images[:, 0, SIZE].tolist()

    def _file(self, number: int) -> Path:
        count = -(-len(self.dataset) // self.chunk)
        name = _NO_STEM.sub("_", self.dataset.path.absolute().stem)
        if self.format == "webdataset":
            return self._partial / f"{name}-{number:06d}.tar"
        return self._partial / f"{name}-{number:05d}-of-{count:05d}.parquet"

    def _sink(self, journal: Journal) -> _Sink:
        if self.format == "folder":
            return _FolderSink(self._partial, journal.records[-1].values["length"][0] if journal.records else 0)
        path = self._file(len(journal.records))
        if self.format == "webdataset":
            return _TarSink(path)
        return _ParquetSink(path, self.dataset.fields.get("label"), self.fields)

    def _write_rest(self, journal: Journal, paths: TextTable, num_workers: int) -> None:
        first, total = journal.num_done, len(self.dataset)
        with SampleWorkers(_ReadImage(self.dataset), num_workers=num_workers) as workers:
            results = workers.map(range(first, total))
            for begin in range(first, total, self.chunk):
                stop = min(begin + self.chunk, total)
                sink = self._sink(journal)
                try:
                    images, lost = self._write(sink, islice(results, stop - begin), journal, paths)
                    length = sink.close()
                except BaseException:
                    sink.abort()
                    raise
                journal.append(_record(stop, images, lost, length))

    def _write(
        self, sink: _Sink, results: Iterable[tuple[int, _Encoded | str]], journal: Journal, paths: TextTable
    ) -> tuple[dict[int, tuple[int, int]], list[tuple[int, str]]]:
        """Write some samples; returns length and CRC-32 of each image by number, and what is wrong with the others."""
        label = self.dataset.fields.get("label")
        images: dict[int, tuple[int, int]] = {}
        lost: list[tuple[int, str]] = []
        for index, image in results:
            if isinstance(image, str):
                lost.append((index, image))
                self._check_lost(journal, lost)
            else:
                values = {name: column.checked(index) for name, column in self.fields.items()}
                sink.add(paths[index], image, None if label is None else label.checked(index), values)
                images[index] = len(image.data), zlib.crc32(image.data)
            self.progress(index + 1, len(self.dataset))
        return images, lost

    def _check_lost(self, journal: Journal, lost: Sequence[tuple[int, str]]) -> None:
        found = [*(note for record in journal.records for note in record.quarantined), *lost]
        if len(found) > self.allow_corrupt:
            raise ConversionError(
                f"{len(found)} images are damaged, {self.allow_corrupt} are allowed; the last: {found[-1][1]} "
                "What is done is kept."
            )

    def _report(self, journal: Journal, resumed: int, seconds: float) -> ExportReport:
        records = journal.records
        lost = [note for record in records for note in record.quarantined]
        return ExportReport(
            target=str(self.target),
            format=self.format,
            fields=(*self.fields,),
            num_samples=len(self.dataset),
            num_images=sum(len(record.indices) for record in records),
            num_bytes=int(sum(record.images[:, :, SIZE].sum() for record in records)),
            quarantined=tuple(SampleNote(index=i, name=self.dataset.name(i), reason=text) for i, text in lost),
            num_resumed=resumed,
            seconds=seconds,
        )


def _record(
    stop: int, images: Mapping[int, tuple[int, int]], lost: Sequence[tuple[int, str]], length: int
) -> PageRecord:
    """What is noted about a chunk: as about a page, and the length of a file that the next one goes on with."""
    return PageRecord(
        stop=stop,
        indices=np.array([*images], np.int64),
        images=np.array([(0, 0, *one) for one in images.values()], np.int64).reshape(-1, 1, 4),
        values={"length": [length]},
        num_kept=len(images),
        num_tiled=0,
        traits={},
        quarantined=tuple(lost),
        warned=(),
    )


class _FolderSink:
    """Images in class folders, and a line of metadata for each."""

    def __init__(self, folder: Path, length: int) -> None:
        self._folder = folder
        self._metadata: BinaryIO = (folder / "metadata.jsonl").open("ab")
        self._metadata.truncate(length)

    def add(self, path: str, image: _Encoded, label: Any, values: Mapping[str, Any]) -> None:
        file = f"{path}.{image.extension}"
        (self._folder / file).write_bytes(image.data)
        row = {"file_name": file, **({} if label is None else {"label": label}), **_plain(values)}
        self._metadata.write(json.dumps(row).encode() + b"\n")

    def close(self) -> int:
        _sync(self._metadata)
        return (self._folder / "metadata.jsonl").stat().st_size

    def abort(self) -> None:
        self._metadata.close()


class _TarSink:
    """A tar shard."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = _unfinished(path).open("wb")
        self._tar: Any = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115

    def add(self, path: str, image: _Encoded, label: Any, values: Mapping[str, Any]) -> None:
        members = {image.extension: image.data}
        row = _plain(values)
        if isinstance(label, int):
            members["cls"] = str(label).encode()
        elif label is not None:
            row = {"label": label, **row}
        if row:
            members["json"] = json.dumps(row).encode()
        for extension, data in members.items():
            member = tarfile.TarInfo(f"{path}.{extension}")
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))
        self._tar.members.clear()  # or each would be kept

    def abort(self) -> None:
        self._file.close()

    def close(self) -> int:
        self._tar.close()
        _sync(self._file)
        return _finish(self._path)


class _ParquetSink:
    """A Parquet file in the Hub's layout."""

    def __init__(self, path: Path, label: Column | None, fields: Mapping[str, Column]) -> None:
        from respipe.conversion.sources.parquet import import_pyarrow

        self._path, self._arrow = path, import_pyarrow()
        columns = {**({} if label is None else {"label": label}), **fields}
        image = self._arrow.struct([("bytes", self._arrow.binary()), ("path", self._arrow.string())])
        types = {name: _arrow_type(self._arrow, column) for name, column in columns.items()}
        features = {"image": {"_type": "Image"}, **{name: _feature(column) for name, column in columns.items()}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        self._schema = self._arrow.schema({"image": image, **types}, metadata=metadata)
        self._rows: list[dict[str, Any]] = []
        self._file: BinaryIO = _unfinished(path).open("wb")
        self._writer = self._arrow.parquet.ParquetWriter(
            self._file,
            self._schema,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        )

    def add(self, path: str, image: _Encoded, label: Any, values: Mapping[str, Any]) -> None:
        row = {} if label is None else {"label": label}
        self._rows.append({"image": {"bytes": image.data, "path": f"{path}.{image.extension}"}, **row, **values})
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def abort(self) -> None:
        self._writer.close()
        self._file.close()

    def _flush(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def close(self) -> int:
        if self._rows:
            self._flush()
        self._writer.close()
        _sync(self._file)
        return _finish(self._path)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _finish(path: Path) -> int:
    _unfinished(path).replace(path)
    return path.stat().st_size


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON has them, from which conversion has them back."""
    return {
        name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in values.items()
    }


def _arrow_type(arrow: Any, column: Column) -> Any:
    if column.kind == "vector":
        return arrow.list_(arrow.float32())
    names = {"class": "int64", "integer": "int64", "float": "float64", "text": "string", "bytes": "binary"}
    return getattr(arrow, names.get(column.kind, "binary"))()


def _feature(column: Column) -> dict[str, Any]:
    """A column's type in the words of the Hub's libraries."""
    if column.kind == "class" and column.classes is not None:
        return {"names": [*column.classes], "_type": "ClassLabel"}
    if column.kind == "vector":
        return {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    names = {"class": "int64", "integer": "int64", "float": "float64", "text": "string"}
    return {"dtype": names.get(column.kind, "binary"), "_type": "Value"}


def _paths(dataset: Dataset, folders: Mapping[int, str]) -> Iterator[str]:
    """A path for every sample, without extension: its class's folder, and the name that it came with, if it fits."""
    taken = set[str]()
    width = len(str(len(dataset) - 1))
    for index in range(len(dataset)):
        name = dataset.name(index).replace("\\", "/").rpartition("/")[2]
        stem = next((name[: -len(one)] for one in EXTENSIONS if name.lower().endswith(one)), name)
        stem = _NO_STEM.sub("_", stem)[:_LONGEST_NAME]
        number = f"{index:0{width}d}"
        if not stem or is_litter(stem) or name == f"sample {index}":
            stem = number
        path = f"{folders[dataset.fields['label'][index]]}/{stem}" if folders else stem
        while path.casefold() in taken:
            path = f"{path}-{number}"
        taken.add(path.casefold())
        yield path


def _class_folders(dataset: Dataset) -> Mapping[int, str]:
    """A folder's name for every class; in the order of the classes where these have no names. None for other labels."""
    label = dataset.fields.get("label")
    if label is None or label.kind != "class":
        return {}
    if dataset.classes is None:
        numbers: list[int] = np.unique(np.asarray(label.values)).tolist()
        return {number: f"{number:0{len(str(numbers[-1]))}d}" for number in numbers}
    folders: dict[int, str] = {}
    taken = set[str]()
    for number, name in enumerate(dataset.classes):
        folder = _NO_FOLDER.sub("_", name)[:_LONGEST_NAME].strip(". ") or "_"
        folder = f"_{folder}" if is_litter(folder) else folder
        while folder.casefold() in taken:
            folder = f"{folder}_{number}"
        taken.add(folder.casefold())
        folders[number] = folder
    return folders
