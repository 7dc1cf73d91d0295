"""What a conversion reads, and how a path is recognised. Every kind of source is one module of this package.

A module that offers a source defines ``SPEC``, a :class:`SourceSpec`; nothing else needs to know of it. Its
``recognise`` looks at a path, cheaply, and opens what it knows. The source it returns is a :class:`Source`:

* ``kind``: what it is in the words of its users, "tar of class archives"; ``convert`` says it at once.
* ``fields``: one :class:`respipe.storage.fields.Column` for each field beside the image. Labels that an index tells are
  an array; values that are only known when a sample is read are a ``Computed`` sequence, which workers ask for one by
  one. A value that is missing or makes no sense raises ``CorruptImageError``: it is that sample's fault, and within
  ``allow_corrupt``. What is known beforehand to be missing is told by :class:`Faulty` values.
* ``fingerprint``: a short text that changes with the samples, their order and their labels, without reading the images.
* ``read``: an encoded image. It is called in worker processes, in rising order within each, for numbers that are nearly
  consecutive: keep a file open, or the last row group decoded, between calls; but begin to do so in the first call, as
  the source reaches workers pickled.
* ``name``: the sample's name within the source, for reports and later errors.

It may have ``passed_over``, a mapping of what it leaves out, ".txt files", to how many there are, and ``num_bytes``, of
its images together.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from respipe.checks import check_path
from respipe.conversion.sources.columns import Faulty, label_column, noted
from respipe.conversion.sources.paths import copied, files_of, single
from respipe.errors import ConversionError, StorageError
from respipe.printable import not_there, printable
from respipe.storage.beton.structure import format_of
from respipe.storage.dataset import Records
from respipe.storage.fields import Column
from respipe.storage.masks import is_mask_name
from respipe.storage.remote import is_url

logger = logging.getLogger(__name__)


@runtime_checkable
class Source(Records, Protocol):
    """Encoded images with named fields; see :class:`respipe.storage.dataset.Records` and this module.

    Worker processes receive it pickled, so its class must be in a module that they can import, not in the main script.
    """

    def read(self, index: int) -> bytes:
        """One encoded image, of any format that Pillow reads.

        Raises:
            CorruptImageError: this image cannot be read; the message is the reason. Others may still be readable.
            OSError: the whole source is out of reach.
        """
        ...


@runtime_checkable
class LabelledImages(Protocol):
    """The shorter way to write a source: a method ``label`` instead of ``fields``.

    ``label`` returns an int, a float or a sequence of floats, for every sample the same, or None for no labels.
    """

    @property
    def kind(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def read(self, index: int) -> bytes: ...
    def label(self, index: int) -> Any: ...
    def name(self, index: int) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """What a user may say about a source beside its path.

    Args:
        label_field: name that the source, or the file of labels, has for the label.
        labels: path of what labels the images, for sources that do not.
        split: which part of the source is meant, "train".
    """

    label_field: str | None = None
    labels: str | os.PathLike[str] | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if not isinstance(value, (str, os.PathLike) if name == "labels" else str):
                raise TypeError(f"`{name}` must be a str{' or a path' * (name == 'labels')}; got {value!r}.")

    def given(self) -> dict[str, Any]:
        """The options that were given, by name."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSpec:
    """A kind of source, as the module that implements it declares.

    Args:
        format: name by which ``convert(format=...)`` chooses it.
        title: what it is, for the error that lists every kind: "a folder with one subfolder per class".
        recognise: whether something is of this kind, told from names and first bytes. It is given a str, which may be
            a pattern or the name of nothing, or an object that is no path.
        open: the source. Raises ``StorageError`` where it is damaged or lacks something.
        options: names of :class:`SourceOptions` that it takes; others are refused.
        priority: of kinds that recognise the same thing, the one with the highest is taken.
        glance: says what something recognised is, at once, in the words of ``Source.kind``. Default: ``title``.
    """

    format: str
    title: str
    recognise: Callable[[Any], bool]
    open: Callable[[Any, SourceOptions], Source]
    options: frozenset[str] = frozenset()
    priority: int = 0
    glance: Callable[[Any], str] | None = None


@cache
def source_specs() -> Mapping[str, SourceSpec]:
    """Every kind of source by its format: the ``SPEC`` of each module beside this one."""
    package = importlib.import_module(__package__ or "")
    modules = (
        importlib.import_module(f"{__package__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    )
    specs = [module.SPEC for module in modules if hasattr(module, "SPEC")]
    return {spec.format: spec for spec in sorted(specs, key=lambda spec: -spec.priority)}


def open_source(
    source: str | os.PathLike[str] | Source | object,
    *,
    format: str | None = None,
    options: SourceOptions = SourceOptions(),
) -> Source:
    """A source for a path, a pattern of paths or an object; what is a source already is returned as it is.

    Args:
        source: what to convert.
        format: key of :func:`source_specs`, instead of recognising what is there.
        options: what the user said about it.

    Raises:
        StorageError: there is nothing at the path, or nothing that can be converted.
        ValueError: there is no such format, or the source does not take an option.
        TypeError: it is neither a path nor anything that can be read.
    """
    given: Any = source
    if isinstance(source, (str, os.PathLike)):
        given = os.fspath(cast("str", source))
        check_path("source", given)
    if isinstance(given, Source):
        return given
    if isinstance(given, LabelledImages):
        return with_labels(given)
    given = copied(given) if is_url(given) else single(given) if isinstance(given, str) else given
    spec = source_spec(given, format, options)
    if refused := options.given().keys() - spec.options:
        raise ValueError(
            f"`{min(refused)}` must be left out for {spec.title}; got {options.given()[min(refused)]!r}. "
            f"It takes {', '.join(f'`{name}`' for name in sorted(spec.options)) or 'no options'}."
        )
    name = given if isinstance(given, str) else type(given).__name__
    logger.info("%s: %s, indexing ...", name, spec.glance(given) if spec.glance else spec.title)
    opened = with_masks(spec.open(given, options))
    logger.info("%s: %s, %s samples", name, opened.kind, f"{len(opened):,}")
    return opened


def source_spec(given: Any, format: str | None = None, options: SourceOptions = SourceOptions()) -> SourceSpec:
    """What kind of source something is, where several could be meant one that takes the options."""
    specs = source_specs()
    if format is not None:
        if format not in specs:
            raise ValueError(f"`format` must be one of {', '.join(sorted(specs))}; got {format!r}.")
        return specs[format]
    try:
        found = [spec for spec in specs.values() if spec.recognise(given)]
    except OSError as error:
        raise StorageError(f"{given} cannot be read: {error}. Check the path and its permissions.") from error
    found = [spec for spec in found if options.given().keys() <= spec.options] or found
    if not found:
        known = "; ".join(spec.title for spec in specs.values())
        if not isinstance(given, str):
            raise TypeError(f"`source` must be a path or offer what respipe.conversion.Source lists; got {given!r}.")
        there = files_of(given)
        if not there:
            raise StorageError(f"{not_there(Path(given))}. `respipe convert --help` lists what can be converted.")
        what = format_of(there[0]) or "of no known kind"
        unpack = "Unpack it, or give" if what.endswith("archive") else "Give"
        raise StorageError(f"{given} is {what}. {unpack} one of: {known}.")
    if len(found) > 1 and found[1].priority == found[0].priority:
        kinds = " or ".join(f"format={spec.format!r} ({spec.title})" for spec in found)
        raise StorageError(f"{given} may be several things. Say which: {kinds}.")
    return found[0]


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A source with other fields.

    Args:
        source: where kind, images and names come from.
        fields: instead of its own.
        fingerprint: instead of its own.
    """

    source: Source | LabelledImages
    fields: Mapping[str, Column]
    fingerprint: str

    @property
    def kind(self) -> str:
        return self.source.kind

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> bytes:
        return self.source.read(index)

    def name(self, index: int) -> str:
        return self.source.name(index)


def with_fields(source: Source, names: Sequence[str]) -> Source:
    """A source with its label and these of its other fields.

    Raises:
        ConversionError: it has no such field.
    """
    if isinstance(names, str):
        raise TypeError(f"`fields` must be a sequence of names; got {names!r}. Did you mean ({names!r},)?")
    if missing := [name for name in names if name not in source.fields]:
        known = ", ".join(f"`{name}`" for name in source.fields) or "none"
        raise ConversionError(f"`fields` must be names of the source's fields, {known}; got {missing[0]!r}.")
    chosen = {name: column for name, column in source.fields.items() if name == "label" or name in names}
    if chosen.keys() == source.fields.keys():
        return source
    return Derived(source=source, fields=chosen, fingerprint=source.fingerprint)


def with_masks(source: Source) -> Source:
    """A source whose fields of bytes are masks where they are called so."""
    masks = {
        name: replace(column, kind="mask")
        for name, column in source.fields.items()
        if column.kind == "bytes" and is_mask_name(name)
    }
    if not masks:
        return source
    return Derived(source=source, fields={**source.fields, **masks}, fingerprint=source.fingerprint)


def with_classes(source: Source, classes_from: str | os.PathLike[str] | Sequence[str]) -> Source:
    """A source whose labels number other classes: matched by name.

    Args:
        source: labelled with classes whose names it knows.
        classes_from: a source or a checkpoint that has class names; the names in order, also as a ``.txt`` file with
            one in each line.

    Raises:
        ConversionError: one of the two has no class names, or a class of the source is not among the others.
        ValueError: the checkpoint cannot be read.
    """
    names = class_names_of(classes_from) if isinstance(classes_from, (str, os.PathLike)) else tuple(classes_from)
    own = source.fields.get("label")
    # Whoever lists the names says what the numbers mean; another dataset may have numbered them otherwise.
    numbered = own is not None and own.kind == "class" and not isinstance(classes_from, (str, os.PathLike))
    if names is None or own is None or (own.classes is None and not numbered):
        raise ConversionError(
            f"`classes_from` must name classes, and the source have classes of its own to match them with; "
            f"{'the source' if names is not None else classes_from} has no class names."
        )
    # Names are stored as they can be printed, whatever bytes a folder's name holds.
    places = {printable(name): number for number, name in enumerate(names)}
    if len(places) < len(names):
        twice = max(names, key=names.count)
        raise ConversionError(f"`classes_from` must name each class once; got {twice!r} more than once. Remove one.")
    own_names = [*map(printable, own.classes)] if own.classes else [str(number) for number in range(len(names))]
    numbers = np.array([places.get(name, -1) for name in own_names] if own.classes else range(len(names)), np.int64)
    plain: Mapping[int, str] = {}
    values, known = (own.values.values, own.values.faults) if isinstance(own.values, Faulty) else (own.values, plain)
    labels = np.asarray(replace(own, values=values).take(np.arange(len(source))))
    inside = (labels >= 0) & (labels < len(numbers))
    found = np.where(inside, numbers[labels * inside], -1)
    rows = [index for index in map(int, np.flatnonzero(found < 0)) if index not in known]
    lost: dict[int, str] = {row: own_names[labels[row]] if inside[row] else str(labels[row]) for row in rows}
    if lost and 2 * len(lost) >= len(source):
        raise ConversionError(
            f"`classes_from` must name every class of the source; {len({*lost.values()})} of {len({*labels.tolist()})} "
            f"are not in it, first {next(iter(lost.values()))!r}."
        )
    faults = {**known, **{index: f"its class {name!r} is not in `classes_from`" for index, name in lost.items()}}
    column = replace(own, values=noted(found, faults, source.name) if faults else found, classes=names)
    digest = hashlib.sha256("\0".join((source.fingerprint, *names)).encode("utf-8", "surrogateescape"))
    return Derived(source=source, fields={**source.fields, "label": column}, fingerprint=digest.hexdigest()[:16])


def class_names_of(path: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """Class names of a source, a checkpoint of training, or a ``.txt`` with one a line; None where there are none."""
    from respipe.model.loading import class_names_in, is_checkpoint  # imports torch

    if is_checkpoint(Path(path)):
        return class_names_in(path)
    if Path(path).suffix.lower() == ".txt" and Path(path).is_file():
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ConversionError(f"{path} must be a text in UTF-8, a class name in each line; {error}.") from error
        return tuple(line.strip() for line in lines if line.strip()) or None
    label = open_source(path).fields.get("label")
    return None if label is None else label.classes


def with_labels(images: LabelledImages) -> Source:
    """A source of images whose labels are a method.

    Raises:
        ConversionError: the labels are not all of one kind.
    """
    labels = label_column([images.label(index) for index in range(len(images))], images.classes, images.name)
    return Derived(source=images, fields={} if labels is None else {"label": labels}, fingerprint=images.fingerprint)
