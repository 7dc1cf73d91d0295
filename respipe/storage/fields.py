"""Named fields beside the images, such as labels, captions and masks: their kinds, and how a batch takes its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["class", "integer", "float", "vector", "text", "bytes", "mask"]

# How the values of a kind are kept in memory; others are sequences of their own.
_DTYPES: dict[Kind, type[np.generic]] = {
    "class": np.int64,
    "integer": np.int64,
    "float": np.float64,
    "vector": np.float32,
}


class Values(Protocol):
    """A sequence with one value per sample: an array, a string table, or something computed on demand."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One named field of every sample. A field that samples do not have is no column: there is no kind "none".

    Args:
        kind: what a value is. "class", an integer that numbers ``classes``; "integer"; "float"; "vector", K floats;
            "text"; "bytes"; or "mask", an encoded image of one channel.
        values: one value per sample: (N,) int64 for classes and integers, (N,) float64 for floats, (N, K) float32 for
            vectors, else a sequence of str, or of bytes. A source that does not know its values beforehand gives a
            :class:`Computed` sequence for any kind.
        classes: class names in the order of their numbers, for kind "class" where they are known.
        length: K of a vector; by default that of the array, or unknown.

    Raises:
        ValueError: the kind is unknown, or an array has another dtype or number of axes than its kind asks for.
    """

    kind: Kind
    values: Values
    classes: tuple[str, ...] | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"`kind` must be one of {get_args(Kind)}; got {self.kind!r}.")
        if isinstance(self.values, np.ndarray):
            axes, dtype = 2 if self.kind == "vector" else 1, _DTYPES.get(self.kind)
            if self.values.ndim != axes or self.values.dtype != dtype:
                raise ValueError(
                    f"`values` of kind {self.kind!r} must be {dtype and dtype.__name__} with {axes} axes; got "
                    f"{self.values.dtype} of shape {self.values.shape}."
                )
            if self.kind == "vector":
                object.__setattr__(self, "length", self.values.shape[1])

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        """One sample's value as it is stored: an int, float, (K,) float32, str or bytes."""
        value: Any = self.values[index]
        return cast("Any", value.item()) if isinstance(value, np.generic) else value

    def checked(self, index: int) -> Any:
        """One sample's value as plain Python: an int, a float, a list of K floats, str or bytes.

        Raises:
            ValueError: it is not of this kind, or not a number of ``classes``.
        """
        value = self.values[index]
        if self.kind == "text" and isinstance(value, str):
            return value
        if self.kind in ("bytes", "mask") and isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(cast("bytes", value))
        array = np.asarray(value) if self.kind in _DTYPES else np.array(None)
        whole = array.dtype.kind in "biu"
        if self.kind in ("class", "integer") and whole and not array.ndim:
            if self.classes is not None and not 0 <= int(array) < len(self.classes):
                raise ValueError(f"class {int(array)} is not in 0..{len(self.classes) - 1}")
            return int(array)
        if self.kind == "float" and not array.ndim and (whole or array.dtype.kind == "f"):
            return float(array)
        if self.kind == "vector" and array.ndim == 1 and (whole or array.dtype.kind == "f"):
            if self.length is not None and len(array) != self.length:
                raise ValueError(f"{len(array)} numbers where others have {self.length}")
            return array.astype(np.float32).tolist()
        raise ValueError(f"{value!r:.80} is not of the kind {self.kind!r} that others are of")

    def holding(self, values: Sequence[Any]) -> Column:
        """The same field with other values, given as :meth:`checked` returns them."""
        dtype = _DTYPES.get(self.kind)
        shape = (len(values), self.length or 0) if self.kind == "vector" else (len(values),)
        return replace(self, values=values if dtype is None else np.array(values, dtype).reshape(shape))

    def part(self, start: int, stop: int) -> Column:
        """The field of the samples from ``start`` to ``stop``, without the latter."""
        values: Any = self.values
        if isinstance(values, np.ndarray):
            return replace(self, values=cast("NDArray[Any]", values[start:stop]))
        return replace(self, values=Computed(lambda index: values[start + index], stop - start))

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any] | list[str] | list[bytes]:
        """The values of a batch.

        Args:
            rows: (B,) sample numbers.

        Returns:
            (B,) int64 for classes and integers, (B,) float32 for floats, (B, K) float32 for vectors; a list of B str
            for text, of B bytes for bytes and masks.
        """
        dtype = _DTYPES.get(self.kind)
        if isinstance(self.values, np.ndarray):
            taken = cast("NDArray[Any]", self.values[rows])
        else:
            found = [self.values[index] for index in rows.tolist()]
            if dtype is None:
                return found
            taken: NDArray[Any] = np.array(found, dtype)
        return taken.astype(np.float32) if self.kind == "float" else taken


@dataclass(frozen=True, slots=True)
class Computed:
    """Values that are computed whenever one is asked for.

    Args:
        function: gives the value of a sample number.
        length: number of samples.
    """

    function: Callable[[int], Any]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Any:
        return self.function(index)


def joined(columns: Sequence[Column]) -> Column:
    """The field of samples of several datasets, one after the other. All must be of one kind."""
    first, parts = columns[0], [column.values for column in columns]
    if all(isinstance(values, np.ndarray) for values in parts):
        values = np.concatenate(cast("list[NDArray[Any]]", parts))
        values.flags.writeable = False
        return replace(first, values=values)
    starts = np.concatenate([[0], np.cumsum([len(values) for values in parts])])

    def value(index: int) -> Any:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return parts[number][index - int(starts[number])]

    return replace(first, values=Computed(value, int(starts[-1])))


def kind_of(value: Any) -> Kind:
    """The kind of a label or another field, told from one value; integers pass for classes.

    Raises:
        TypeError: the value is of no kind.
    """
    if isinstance(value, str):
        return "text"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "bytes"
    array = np.asarray(value)
    if not array.ndim and array.dtype == np.uint64 and array > np.iinfo(np.int64).max:
        raise TypeError(f"A whole number must be below 2**63; got {value!r}.")
    if array.ndim <= 1 and array.size and array.dtype.kind in "biuf":
        return "vector" if array.ndim else "float" if array.dtype.kind == "f" else "class"
    raise TypeError(f"A field must be a number, a sequence of numbers, a str or bytes; got {value!r}.")
