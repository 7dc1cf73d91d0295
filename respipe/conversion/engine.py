"""Converting images to a ``.beton``: the whole way from a source to a finished file."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features

import respipe
from respipe.checks import check_choice, check_int
from respipe.conversion.journal import Journal
from respipe.conversion.pyramid import build_pyramid
from respipe.conversion.report import ConversionReport, SampleNote, TooManyCorruptError, make_report
from respipe.conversion.settings import ConversionSettings, Keep, Subsampling
from respipe.conversion.shards import Portion, Progress, check_part, combined
from respipe.conversion.sources.base import Source, SourceOptions, open_source, with_classes, with_fields
from respipe.conversion.sources.columns import Faulty
from respipe.conversion.workers import SampleWorkers, check_num_workers
from respipe.errors import ConversionError, CorruptImageError, StorageError
from respipe.printable import printable
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.beton.pages import CHECKSUM, PageBuilder, PageRecord, Pyramid, gathered
from respipe.storage.beton.writer import BetonWriter
from respipe.storage.remote import Cache, RemoteFolder, is_url
from respipe.storage.shards import index_shards, shard_name
from respipe.storage.upright import BrokenImageError, pixel_limit

logger = logging.getLogger(__name__)

Engine = Literal["local", "ray"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def convert(
    source: str | os.PathLike[str] | Source | object,
    target: str | os.PathLike[str],
    *,
    levels: tuple[int, ...] = (512, 344, 224, 144, 96),
    quality: int | tuple[int, ...] | None = None,
    subsampling: Subsampling = "4:2:0",
    restart_interval: int = 2,
    keep: Keep = "nothing",
    fields: Sequence[str] = (),
    classes_from: str | os.PathLike[str] | Sequence[str] | None = None,
    format: str | None = None,
    label_field: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    split: str | None = None,
    shards: int | None = None,
    part: tuple[int, int] | None = None,
    engine: Engine = "local",
    num_workers: int | None = None,
    allow_corrupt: int = 0,
    max_pixels: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Store images at several resolutions in a ``.beton``, or several, which respipe and stock FFCV read.

    Every image is decoded once, in full, so that what is damaged is found now, and becomes upright RGB JPEGs: baseline,
    with restart markers every few MCUs and an index of them that other decoders skip, so that a crop can be decoded
    without the rest. The result depends on source and settings alone, not on workers or interruptions.

    ``target`` appears only when it is finished. Until then the work is in ``TARGET.partial`` and ``TARGET.journal``;
    calling the same again, after whatever interrupted it, goes on from there.

    With ``shards`` the target is a folder of so many files, made one after the other in the same way. Each part of it
    may be made on another machine, in any order: whoever makes the last file makes ``index.json`` too, with which the
    folder can be opened (:func:`respipe.storage.shards.index_shards` makes it as well). Opened together they equal the
    one file. A finished file of the same source and settings is not made again.

    Args:
        source: a folder with one subfolder per class, a tar or zip of such folders, a tar of one tar per class, tar
            shards, Parquet files, a manifest, or a ``.beton``, each also as a pattern with wildcards or braces;
            anything with ``__len__`` and ``__getitem__``; or an object such as :class:`respipe.conversion.Source`
            describes.
        target: the file to make; with ``shards`` the folder. Source and target may be URLs that fsspec knows: sources
            are copied first, and files made in the folder of the cache; see :class:`respipe.storage.remote.Cache`.
        levels: longest side in pixels of each stored resolution, largest first. Smaller images are not enlarged; a
            level not smaller than an image shares the bytes of the level before.
        quality: of re-encoded JPEGs, 1 to 100; or one for each level, of which the last holds for all levels beyond.
            Default: 80 for levels above 384 px, 89 for others.
        subsampling: of the colour in re-encoded JPEGs.
        restart_interval: MCUs between restart markers, at most: the largest number that divides a row of the image's
            MCUs is taken. Crops are cut out the closer the fewer; 1, 2 and 4 cost some 10, 6 and 4% more bytes than 0,
            which leaves markers and index out, so that every image is decoded whole.
        keep: of baseline JPEGs that fit the first level: "nothing"; their exact "pixels", as their coefficients are
            coded anew between restart markers; or their "bytes", without such markers and decoded whole. With "pixels"
            other images that fit are stored nearly as they are too: at quality 100, without subsampling of the colour,
            which is 50 dB or more.
        fields: names of what to store beside image and label, as the source calls it, such as captions; FFCV sees none
            of them.
        classes_from: a converted file, any other source or a checkpoint of training whose classes the labels are to
            number, or the names in order, also a ``.txt`` of them: for validation data that lack some. Labels are
            matched by class name.
        format: of the source, where several could be meant: a key of
            :func:`respipe.conversion.sources.base.source_specs`.
        label_field: the source's name for the label, or that of a column of ``labels``; in a ``.beton`` by default
            ``label``, and "" for none.
        labels: what labels the images of a folder, tar or zip that is not sorted into classes: ImageNet's devkit,
            packed or not; Kaggle's ``LOC_val_solution.csv``; or a file of names and labels, separated by commas, tabs
            or spaces. Names may lack folders and extension. Labels are class names, which are numbered in sorted
            order, class numbers, or other numbers.
        split: which part of a folder or archive is meant, where it holds "train" and "val" rather than classes. Also
            in Kaggle's tree of ImageNet, whose "val" finds its labels by itself.
        shards: files to make, each of a run of the samples; None for a single one.
        part: ``(i, n)`` to make the files of the i-th of n parts alone, counted from 0.
        engine: "local", or "ray" for the parts to be tasks of a Ray cluster (:mod:`respipe.conversion.on_ray`).
        num_workers: processes, by default one per core; with 0 this one does the work.
        allow_corrupt: images that may turn out to be undecodable, in this part. They are left out and listed in the
            report.
        max_pixels: pixels that an image may have at most. Default: Pillow's limit, twice
            ``PIL.Image.MAX_IMAGE_PIXELS``.
        overwrite: replace an existing ``target``, in the moment the new one is finished.
        progress: called with the number of samples done and their total.

    Raises:
        ValueError, TypeError: an argument is out of range.
        StorageError: the source cannot be read.
        TooManyCorruptError: more images are undecodable than allowed; a ``ConversionError`` with a ``report``.
        ConversionError: the target exists, the disk is full, or another conversion is writing it.
        WorkerLostError: a worker process died or stalled.
    """
    given = dict(locals())
    settings = ConversionSettings(
        levels=levels, quality=quality, subsampling=subsampling, restart_interval=restart_interval, keep=keep
    )
    run = _Run(
        settings=settings,
        num_workers=check_num_workers(num_workers),
        allow_corrupt=allow_corrupt,
        overwrite=overwrite,
        progress=progress,
    )
    if shards is None and part is not None:
        raise ValueError(
            "`part` must be left out without `shards`, of which it names some. Pass for example shards=64."
        )
    check_choice("engine", engine, get_args(Engine))
    if engine == "ray":
        if shards is None or part is not None:
            raise ValueError("`engine` 'ray' must have `shards`, and no `part`: it makes all parts. Pass shards=64.")
        check_part(shards, part)
        from respipe.conversion.on_ray import convert_parts

        return convert_parts(convert, given)

    options = SourceOptions(label_field=label_field, labels=labels, split=split)

    def opened() -> Source:
        found = open_source(source, format=format, options=options)
        if not len(found):
            raise ConversionError("The source must hold at least one image; it is empty.")
        found = with_fields(found, fields)
        found = found if classes_from is None else with_classes(found, classes_from)
        _check_labels(found)
        return found

    with pixel_limit(max_pixels):
        if shards is not None:
            return _convert_shards(run, opened, target, shards, check_part(shards, part))
        place, (parent, _, name) = None, os.fspath(target).rpartition("/")
        if is_url(target):
            place = RemoteFolder(parent, Cache())
            if place.size(name) is not None and not overwrite:
                raise _exists(target)
        conversion = _Conversion(target=Path(target) if place is None else place.scratch / name, run=run)
        conversion.check_target()
        whole = opened()
        with _workers(whole, run) as workers:
            report = conversion.convert(whole, workers)
        if place is None:
            return report
        place.put(conversion.target)
        return replace(report, target=os.fspath(target))


def _convert_shards(
    run: _Run, open_it: Callable[[], Source], target: str | os.PathLike[str], shards: int, numbers: range
) -> ConversionReport:
    """Make some of the files of a folder, and its index where these were the last."""
    place = RemoteFolder(os.fspath(target), Cache()) if is_url(target) else None
    folder = Path(target) if place is None else place.scratch
    _check_folder(folder)
    whole = open_it()
    if shards > len(whole):
        raise ValueError(f"`shards` must be at most the number of images, {len(whole)}; got {shards}. Use fewer.")
    folder.mkdir(exist_ok=True)
    portions = [Portion(whole=whole, number=number, of=shards) for number in numbers]
    total, reports = sum(map(len, portions)), list[ConversionReport]()

    def report() -> ConversionReport:
        return combined(reports, [portion.start for portion in portions[: len(reports)]], os.fspath(target))

    with _workers(whole, run) as workers:
        for portion in portions:
            done = portion.start - portions[0].start
            allowed = run.allow_corrupt - sum(made.num_corrupt for made in reports)
            of_portion = replace(run, allow_corrupt=allowed, progress=_further(run.progress, done, total))
            conversion = _Conversion(target=folder / shard_name(portion.number, shards), run=of_portion)
            try:
                reports.append(conversion.make(portion, workers, place))
            except TooManyCorruptError as error:
                reports.append(error.report)
                raise TooManyCorruptError(str(error), report()) from error
    there = {path.name for path in folder.glob("*.beton")} if place is None else {*place.names()}
    if missing := [name for number in range(shards) if (name := shard_name(number, shards)) not in there]:
        logger.info("%s: %d of %d shards are still to be made, first %s", target, len(missing), shards, missing[0])
    elif place is not None:
        place.make_index()
    else:
        index_shards(folder)
    return report()


def _exists(target: str | os.PathLike[str]) -> ConversionError:
    return ConversionError(
        f"{target} exists already. Choose another target, remove it, or pass overwrite=True (--overwrite)."
    )


def _further(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of a part as that of the whole."""
    return None if progress is None else lambda done, _: progress(before + done, total)


def _workers(source: Source, run: _Run) -> SampleWorkers[tuple[Pyramid, dict[str, Any]] | str]:
    return SampleWorkers(_ConvertSample(source, run.settings), num_workers=run.num_workers)


def _check_folder(target: Path) -> None:
    if not target.parent.is_dir():
        raise ConversionError(f"The folder {target.parent} must exist for {target.name} to be made in it.")


def _check_labels(source: Source) -> None:
    column = source.fields.get("label")
    if column is not None and column.classes is not None and isinstance(column.values, np.ndarray):
        labels = cast("NDArray[Any]", column.values)
        if labels.min() < 0 or labels.max() >= len(column.classes):
            raise ConversionError(
                f"The labels of the source must be in 0..{len(column.classes) - 1}, as it names {len(column.classes)} "
                f"classes; they are in {labels.min()}..{labels.max()}."
            )


def known_faults(source: Source) -> dict[int, str]:
    """What is known to be wrong with some samples' fields before any image is read."""
    whole, start = (source.whole, source.start) if isinstance(source, Portion) else (source, 0)
    known = [column.values.faults for column in whole.fields.values() if isinstance(column.values, Faulty)]
    return {i - start: fault for faults in known for i, fault in faults.items() if 0 <= i - start < len(source)}


@dataclass(frozen=True, slots=True)
class _ConvertSample:
    """What workers do: a sample's pyramid and the values of its fields, or the reason why there is none."""

    source: Source
    settings: ConversionSettings

    def __call__(self, index: int) -> tuple[Pyramid, dict[str, Any]] | str:
        try:
            # Fields first: what is wrong with them is told without decoding.
            values = {name: self._value(name, column.checked, index) for name, column in self.source.fields.items()}
            pyramid = build_pyramid(self.source.read(index), self.settings)
            for name, column in self.source.fields.items():
                if column.kind == "mask":
                    values[name] = self._value(name, pyramid.fitted_mask, values[name])
            return pyramid, values
        except (CorruptImageError, BrokenImageError) as error:
            return str(error)

    @staticmethod
    def _value(name: str, function: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return function(argument)
        except ValueError as error:
            raise BrokenImageError(f"its field `{name}`: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What holds for all files of one call of :func:`convert`."""

    settings: ConversionSettings
    num_workers: int
    allow_corrupt: int
    overwrite: bool
    progress: Progress | None

    def __post_init__(self) -> None:
        check_int("allow_corrupt", self.allow_corrupt, least=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Conversion:
    """The making of one file."""

    target: Path
    run: _Run

    @property
    def _log(self) -> Path:
        return Path(f"{self.target}.journal")

    def check_target(self) -> None:
        """Refuse early what will not work.

        Raises:
            ConversionError: there is no folder for the file, or it exists.
        """
        _check_folder(self.target)
        if self.target.is_dir():
            raise ConversionError(
                f"`target` must be a file to make; {self.target} is a folder. Name one in it, such as all.beton."
            )
        if not self._log.exists():
            self._check_free()

    def finished(self, portion: Portion) -> ConversionReport | None:
        """The report of an earlier run that has made this file of several; None where there is none."""
        if self._log.exists() or not self.target.exists():
            return None
        try:
            with closing(BetonDataset(self.target)) as found:
                attributes = found.attributes
        except StorageError:
            return None  # it is in the way, which the conversion says
        expected = _attributes(portion, self.run.settings)
        kinds = [{"name": name, "kind": column.kind} for name, column in portion.fields.items()]
        if attributes.get("fields") != kinds or any(
            attributes.get(name) != expected[name] for name in ("classes", "settings", "source")
        ):
            return None
        return ConversionReport.from_dict({**attributes["report"], "target": str(self.target)})

    def make(
        self,
        portion: Portion,
        workers: SampleWorkers[tuple[Pyramid, dict[str, Any]] | str],
        place: RemoteFolder | None,
    ) -> ConversionReport:
        """Make the file, unless an earlier run has, and copy it to where it belongs."""
        if place is not None and (sketch := place.sketch(self.target.name)) is not None:
            found = replace(self, target=sketch).finished(portion)
            if found is not None:
                return found
            if not self.run.overwrite:
                raise _exists(place.url(self.target.name))
        report = self.finished(portion) or self.convert(portion, workers)
        if place is not None:
            place.put(self.target)
        return report

    def convert(self, opened: Source, workers: SampleWorkers[tuple[Pyramid, dict[str, Any]] | str]) -> ConversionReport:
        """Make the file, or go on with it.

        Args:
            opened: what is to be in it.
            workers: processes that convert a sample of the source, which may be larger.
        """
        partial, settings = Path(f"{self.target}.partial"), self.run.settings
        if not self._log.exists():
            self._check_free()
        start = time.perf_counter()
        if len(faults := known_faults(opened)) > self.run.allow_corrupt:
            notes = (SampleNote(index=i, name=opened.name(i), reason=fault) for i, fault in sorted(faults.items()))
            found = make_report([], opened, settings, self.target, 0, 0.0)
            found = replace(found, quarantined=tuple(notes))
            _check_corrupt(found, self.run.allow_corrupt, "samples cannot be converted")
        identity = _identity(opened, settings)
        with explained(self.target), Journal(self._log, identity, num_levels=len(settings.levels)) as journal:

            def report(num_resumed: int) -> ConversionReport:
                seconds = time.perf_counter() - start
                return make_report(journal.records, opened, settings, self.target, num_resumed, seconds)

            num_resumed = journal.num_done
            if not (num_resumed == len(opened) and not partial.exists() and _holds(self.target, journal.records)):
                self._check_free()
                with BetonWriter(
                    partial,
                    num_samples=len(opened),
                    levels=settings.names,
                    label=opened.fields["label"].kind if "label" in opened.fields else None,
                    page_size=settings.page_size,
                ) as writer:
                    num_resumed = self._resume(journal, writer, opened)
                    self._convert_rest(journal, writer, opened, workers)
                    done = report(num_resumed)
                    _check_corrupt(done, self.run.allow_corrupt)
                    indices = np.concatenate([record.indices for record in journal.records])
                    attributes = _attributes(opened, settings)
                    writer.finish(
                        journal.records,
                        names=(opened.name(index) for index in indices.tolist()),
                        fields={
                            name: gathered(journal.records, name, column) for name, column in opened.fields.items()
                        },
                        attributes=attributes | ({"report": done.lasting()} if isinstance(opened, Portion) else {}),
                    )
                partial.replace(self.target)
                sync_folder(self.target.parent)
            journal.remove()
            return report(num_resumed)

    def _check_free(self) -> None:
        if self.target.exists() and not self.run.overwrite:
            raise _exists(self.target)

    def _resume(self, journal: Journal, writer: BetonWriter, source: Source) -> int:
        """Go back to the last page that still holds; returns the number of samples done by then."""
        if not writer.holds(journal.records):
            logger.warning("%s.partial is not as its journal tells; starting again", self.target)
            journal.rewind(0)
        convert_sample = _ConvertSample(source, self.run.settings)
        for number, record in enumerate(journal.records):
            # What could not be read may have been repaired, or its disk be back.
            if not all(isinstance(convert_sample(index), str) for index, _ in record.quarantined):
                logger.info("%s: an image quarantined earlier can be read now; going back to it", self.target)
                journal.rewind(number)
                break
        writer.truncate(journal.records)
        return journal.num_done

    def _convert_rest(
        self,
        journal: Journal,
        writer: BetonWriter,
        source: Source,
        workers: SampleWorkers[tuple[Pyramid, dict[str, Any]] | str],
    ) -> None:
        first, total = journal.num_done, len(source)
        offset = source.start if isinstance(source, Portion) else 0

        def tell(done: int) -> None:
            if self.run.progress is not None:
                self.run.progress(done, total)

        tell(first)
        if first == total:
            return

        def new_page() -> PageBuilder:
            _, room = writer.page_bounds(len(journal.records))
            return PageBuilder(page_size=room, num_levels=len(self.run.settings.levels))

        def finish_page(stop: int) -> None:
            data, record = page.finish(stop)
            writer.write_page(len(journal.records), data)
            journal.append(record)

        page = new_page()
        with closing(workers.map(range(offset + first, offset + total))) as results:
            for number, result in results:
                index = number - offset
                if isinstance(result, str):
                    page.quarantine(index, result)
                else:
                    pyramid, values = result
                    while not page.has_room(pyramid):  # the first page may be too short for any sample
                        finish_page(index)
                        page = new_page()
                        assert page.has_room(pyramid) or len(journal.records) == 1, "pages are large enough"
                    page.add(index, pyramid, values)
                tell(index + 1)
        finish_page(total)


def _check_corrupt(report: ConversionReport, allow_corrupt: int, what: str = "images cannot be decoded") -> None:
    if report.num_corrupt <= allow_corrupt and report.num_images:
        return
    listed = "; ".join(f"{note.name}: {note.reason}" for note in report.quarantined[:3])
    raise TooManyCorruptError(
        f"{report.num_corrupt} of {report.num_samples} {what}, {allow_corrupt} are allowed; first "
        f"{listed}. Repair or remove them, or allow as many; what is done is kept, so that running again is quick.",
        report,
    )


def _attributes(source: Source, settings: ConversionSettings) -> dict[str, Any]:
    """What is recorded about a conversion in the file that it makes."""
    classes = source.fields["label"].classes if "label" in source.fields else None
    return {
        "writer": f"respipe {respipe.__version__}",
        "classes": None if classes is None else [printable(name) for name in classes],
        "settings": settings.to_dict(),
        "source": _origin(source),
    }


def _origin(source: Source) -> dict[str, Any]:
    if isinstance(source, Portion):
        return {**_origin(source.whole), "shard": [source.number, source.of]}
    return {"kind": source.kind, "num_samples": len(source), "fingerprint": source.fingerprint}


def _identity(source: Source, settings: ConversionSettings) -> dict[str, Any]:
    """What must not change between the runs of one conversion."""
    software = {"respipe": respipe.__version__, "pillow": PIL.__version__, "jpeg": features.version("libjpeg_turbo")}
    kinds = {name: column.kind for name, column in source.fields.items()}
    return {"source": _origin(source), "fields": kinds, "settings": settings.to_dict(), "software": software}


def _holds(path: Path, records: Sequence[PageRecord]) -> bool:
    """Whether a file is what the pages of a journal became: the last run was ended just before it could say so."""
    try:
        levels = BetonDataset(path).levels
    except StorageError:
        return False
    written = np.concatenate([record.images[:, :, CHECKSUM] for record in records]).T
    stored = [level.checksums for level in levels if level.checksums is not None]
    return len(stored) == len(written) and np.array_equal(stored, written)


@contextmanager
def explained(path: Path) -> Generator[None, None, None]:
    """Turn errors of the operating system into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ConversionError(
                f"There is no room left for {path} ({error.strerror}). Free some space and run the same again: it "
                "goes on where it stopped."
            ) from error
        raise ConversionError(
            f"The work on {path} had to stop: {error}. Once that is solved, run the same again: it goes on "
            "where it stopped."
        ) from error


def sync_folder(folder: Path) -> None:
    """Put the renaming of a file on disk, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.warning(
            "%s: the folder cannot be synced (%s); the finished file is whole, but its name might not survive a power "
            "cut in the next seconds",
            folder,
            error.strerror,
        )
