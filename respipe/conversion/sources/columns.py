"""Fields whose values are met one by one while a source is indexed, and may be missing or of another kind in some."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from respipe.errors import ConversionError, CorruptImageError
from respipe.storage.fields import Column, Kind, Values, kind_of

logger = logging.getLogger(__name__)

# What the path of an image and its label are called, where nobody says.
PATHS = ("file_name", "path", "filename", "filepath", "file", "image_path", "image", "img")
LABELS = ("label", "labels", "target", "targets", "class", "fine_label", "cls")

# A number as programs write it; "007" is a name.
_WHOLE = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)
_PADDED = re.compile(r"[+-]?0\d+")

_NUMBERS = {"class", "float"}


@dataclass(frozen=True, slots=True)
class Faulty:
    """Values of which some are missing or make no sense: each a fault of its sample alone.

    Args:
        values: with anything in the place of those.
        faults: what is wrong, by the number of the sample.
    """

    values: Values
    faults: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int, /) -> Any:
        if index in self.faults:
            raise CorruptImageError(self.faults[index], index=index)
        return self.values[index]


def label_column(labels: Sequence[Any], classes: Sequence[str] | None, name: Callable[[int], str]) -> Column | None:
    """Labels of any kind as a column; None where no sample has one.

    What most labels are decides; others are their samples' fault.

    Args:
        labels: whole numbers are classes, other numbers floats, sequences of numbers vectors, and strings class names;
            None for samples without one, or the error that says why there is none.
        classes: class names in the order of their numbers; for labels that are names, by default their sorted set.
        name: gives a sample's name, for errors.

    Raises:
        ConversionError: half of the labels or more are missing or make no sense.
    """
    kinds = [_kind(label) for label in labels]
    if not any(kinds):
        return None
    common = most_common(Counter(filter(None, kinds)))
    if common is None or common[0] == "bytes":
        raise ConversionError(f"The labels of the source cannot be stored. That of {name(0)} is {labels[0]!r:.80}.")
    kind, length = common
    names = tuple(sorted({label for label in labels if isinstance(label, str)})) if classes is None else tuple(classes)
    places = {text: number for number, text in enumerate(names)} if kind == "text" else {}
    values: list[Any] = []
    faults: dict[int, str] = {}
    for index, (label, own) in enumerate(zip(labels, kinds, strict=True)):
        if (fault := _fault(label, own, common, places if kind == "text" else classes)) is not None:
            faults[index] = fault
        values.append(([0.0] * length if kind == "vector" else 0) if fault else places[label] if places else label)
    others = [index for index in faults if not isinstance(labels[index], CorruptImageError)]
    numbers = [int(label) for label, own in zip(labels, kinds, strict=True) if own == ("class", 0) == common]
    if classes is not None and 2 * sum(not 0 <= number < len(classes) for number in numbers) >= len(labels):
        raise ConversionError(
            f"The labels of the source must be in 0..{len(classes) - 1}, as it names {len(classes)} classes; they are "
            f"in {min(numbers)}..{max(numbers)}."
        )
    if 2 * len(others) >= len(labels):
        sound, first = next((index for index in range(len(labels)) if index not in faults), None), others[0]
        other = "" if sound is None else f"that of {name(sound)} is {labels[sound]!r:.80}, "
        raise ConversionError(
            f"The labels of the source must be of one kind; {other}that of {name(first)} is {labels[first]!r:.80}: "
            f"{faults[first]}. This holds for {len(others)} of {len(labels)} samples."
        )
    column = Column(kind="class" if kind == "text" else kind, values=labels, length=length or None).holding(values)
    array = np.asarray(column.values)
    return Column(
        kind=column.kind,
        values=noted(array, faults, name) if faults else array,
        length=length or None,
        classes=names if kind == "text" else None if classes is None or kind != "class" else tuple(classes),
    )


def noted(values: Values, faults: Mapping[int, str], name: Callable[[int], str]) -> Faulty:
    """Values with faults, which are logged: a long conversion begins with the news, not only ends with it."""
    first = min(faults)
    logger.warning(
        "%d of %d samples cannot be converted; first %s: %s", len(faults), len(values), name(first), faults[first]
    )
    return Faulty(values, faults)


def _kind(value: Any) -> tuple[Kind | None, int] | None:
    """Kind and length of a value: (None, 0) where it is of no kind, None where there is no value."""
    if value is None or isinstance(value, CorruptImageError):
        return None
    if isinstance(value, str):  # what is usual needs no closer look
        return "text", 0
    try:
        kind = "class" if type(value) is int and abs(value) < 1 << 63 else kind_of(cast("Any", value))
    except (TypeError, ValueError):
        return None, 0
    return kind, len(cast("Sequence[float]", value)) if kind == "vector" else 0


def most_common(kinds: Counter[tuple[Kind | None, int]]) -> tuple[Kind, int] | None:
    """The kind and length that most values have; whole numbers beside others are floats."""
    counts = Counter[tuple[Kind, int]]()
    has_floats = ("float", 0) in kinds
    for (kind, length), count in kinds.items():
        if kind is not None:
            counts["float" if kind in _NUMBERS and has_floats else kind, length] += count
    return counts.most_common(1)[0][0] if counts else None


def _fault(
    label: Any, own: tuple[Kind | None, int] | None, common: tuple[Kind, int], classes: Collection[str] | None
) -> str | None:
    """What is wrong with a label where most are of one kind; None where nothing is."""
    kind, _ = common
    if own != common and not (kind == "float" and own == ("class", 0)):
        return _difference(label, own, common)
    if kind == "text" and classes is not None and label not in classes:
        return f"its label {label!r:.80} is none of the {len(classes)} classes"
    if kind == "class" and classes is not None and not 0 <= int(label) < len(classes):
        return f"its label {int(label)} is not in 0..{len(classes) - 1}, as there are {len(classes)} classes"
    if kind in ("float", "vector") and not np.isfinite(np.asarray(label, np.float64)).all():
        return f"its label {label!r:.80} is no finite number"
    return None


def _difference(label: Any, own: tuple[Kind | None, int] | None, common: tuple[Kind, int]) -> str:
    if own is None:
        return "it has no label" if label is None else str(label)
    if own[0] is None:
        return f"its label {label!r:.80} cannot be stored"
    if own[0] == common[0]:
        return f"its label has {own[1]} numbers where others have {common[1]}"
    return f"its label {label!r:.80} is not of the kind {common[0]!r} that others are of"


class FieldKinds:
    """What kinds of values a source's fields have, counted as they are met."""

    def __init__(self) -> None:
        self._kinds = defaultdict[str, Counter[tuple[Kind | None, int]]](Counter)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count the values of one sample."""
        for name, value in row.items():
            counts = self._kinds[name]
            if (kind := _kind(value)) is not None:
                counts[kind] += 1

    def __contains__(self, name: str) -> bool:
        return name in self._kinds

    @property
    def names(self) -> tuple[str, ...]:
        """Every field that some sample has."""
        return tuple(self._kinds)

    def kind(self, name: str) -> tuple[Kind, int] | None:
        """Kind and length that most values of a field have; None where they are of no kind."""
        return most_common(self._kinds[name])

    def column(self, name: str, values: Values) -> Column | None:
        """A field as a column, where it is of any kind."""
        if (found := self.kind(name)) is None:
            return None
        kind, length = found
        return Column(kind="integer" if kind == "class" else kind, values=values, length=length or None)


def parsed(text: str) -> Any:
    """A value written as text: an int or float where it is a number, None where it is empty, else the text."""
    bare = text.strip()
    if _WHOLE.fullmatch(bare):
        return int(bare)
    return float(bare) if _NUMBER.fullmatch(bare) and not _PADDED.fullmatch(bare) else bare or None


def parsed_labels(texts: Sequence[Any]) -> list[Any]:
    """Labels written as text, by :func:`parsed`; but all of them names where most of them are."""
    values = [parsed(text) if isinstance(text, str) else text for text in texts]
    num_names = sum(isinstance(value, str) for value in values)
    num_numbers = sum(isinstance(value, (int, float)) for value in values)
    if num_names <= num_numbers:
        return values
    return [text.strip() or None if isinstance(text, str) else text for text in texts]


def json_row(data: str | bytes) -> dict[str, Any]:
    """The values of a JSON object, in which bytes are ``{"base64": "..."}``; see :func:`respipe.export`.

    Raises:
        ValueError: it is no JSON object, or such bytes are no base64.
    """
    try:
        found = json.loads(data)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError(f"it is no JSON object: {data.strip()!r:.80}")
    return {
        name: base64.b64decode(text, validate=True)
        if isinstance(value, dict)
        and [*cast("dict[str, Any]", value)] == ["base64"]
        and isinstance(text := cast("dict[str, Any]", value)["base64"], str)
        else value
        for name, value in cast("dict[str, Any]", found).items()
    }


def recorded_classes(folder: Path) -> tuple[str, ...] | None:
    """Class names in the order of their numbers, from a ``classes.json`` such as ``export`` writes; else None."""
    try:
        found = json.loads((folder / "classes.json").read_bytes())
    except (OSError, ValueError):
        return None
    names = cast("list[Any]", found) if isinstance(found, list) else []
    return tuple(names) if names and all(isinstance(name, str) for name in names) else None


def fingerprint_of(column: Column | None, *others: bytes) -> str:
    """Sixteen hexadecimal digits that change with labels, their classes, and whatever else tells sources apart."""
    digest = hashlib.sha256()
    if column is not None:
        values = column.values
        if isinstance(values, Faulty):
            digest.update(repr(sorted(values.faults.items())).encode("utf-8", "surrogateescape"))
            values = values.values
        digest.update(np.asarray(values).tobytes())
        digest.update("\0".join(column.classes or ()).encode("utf-8", "surrogatepass"))
    for other in others:
        digest.update(len(other).to_bytes(8, "little") + other)
    return digest.hexdigest()[:16]
