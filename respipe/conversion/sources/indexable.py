"""Any dataset with a length and items: torchvision's, Hugging Face's, or a class of one's own."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageOps

from respipe.conversion.sources.base import SourceOptions, SourceSpec
from respipe.conversion.sources.columns import LABELS, fingerprint_of, label_column
from respipe.errors import CorruptImageError, StorageError
from respipe.storage.fields import Column, Computed, kind_of
from respipe.storage.masks import write_mask
from respipe.storage.regular_files import read_regular

_TIFF_MODES = ("CMYK", "YCbCr", "LAB", "F")
_SAVED_AS = {"HSV": "RGB", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA", "PA": "RGBA"}  # what no format holds
_IMAGES = ("image", "img", "pixel_values", "jpg", "jpeg", "png")


class IndexableSource:
    """A dataset of ``(image, label)`` pairs, of dicts, or of images alone.

    An image is a PIL image, an (H, W, 3), (H, W) or torch's (3, H, W) array of uint8, encoded bytes, or the path of a
    file. Labels are taken from the attribute ``targets`` or ``labels`` where there is one; else every item is asked for
    once more.

    Args:
        dataset: with ``__len__`` and ``__getitem__``.
        label_field: key of the label, for items that are dicts.

    Raises:
        StorageError: an item has no image.
    """

    def __init__(self, dataset: Any, *, label_field: str | None = None) -> None:
        self._dataset = dataset
        self._last: tuple[int, Mapping[str, Any]] | None = None
        self._label_key = label_field
        self.kind = f"dataset {type(dataset).__name__}"
        self.fields = self._columns()
        digest = hashlib.sha256(f"{self.kind} {len(self)} {fingerprint_of(self.fields.get('label'))}".encode())
        for index in sorted({0, len(self) // 2, len(self) - 1}) if len(self) else ():
            try:
                digest.update(self.read(index))
            except CorruptImageError as error:  # counted like any other when its turn comes
                digest.update(str(error).encode())
        self.fingerprint = digest.hexdigest()[:16]

    def _columns(self) -> dict[str, Column]:
        if not len(self):
            return {}
        labels = next((getattr(self._dataset, name, None) for name in ("targets", "labels")), None)
        if labels is None or len(labels) != len(self) or self._label_key is not None:
            labels = [self._label(index) for index in range(len(self))]
        classes = getattr(self._dataset, "classes", None)
        plain = [_plain(label) for label in cast("Sequence[Any]", labels)]
        column = label_column(plain, cast("Sequence[str] | None", classes), self.name)
        columns = {} if column is None else {"label": column}
        for name, value in self._first().items():
            if name in ("image", "label"):
                continue
            try:
                kind = "mask" if _is_mask(value) else kind_of(_plain(value))
            except TypeError:  # a second picture, a dict of boxes: nothing that a batch could hold
                continue
            values, length = Computed(_Field(self, name), len(self)), len(value) if kind == "vector" else None
            columns[name] = Column(kind="integer" if kind == "class" else kind, values=values, length=length)
        return columns

    def _label(self, index: int) -> Any:
        """An item's label, or why there is none where the dataset's own code fails."""
        try:
            return self._item(index).get("label")
        except CorruptImageError as error:
            return error
        except (StorageError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - a dataset's own code may raise anything
            return CorruptImageError(f"{type(error).__name__}: {error}", index=index)

    def _first(self) -> Mapping[str, Any]:
        """The first item that can be read, which tells what fields there are."""
        good = (index for index in range(len(self)) if not isinstance(self._label(index), CorruptImageError))
        index = next(good, None)
        return {} if index is None else self._item(index)

    def _item(self, index: int) -> Mapping[str, Any]:
        """An item as a dict; the last one is kept, since its image and its fields are asked for one by one."""
        if self._last is None or self._last[0] != index:
            item: Any = self._dataset[index]
            values: dict[str, Any]
            if isinstance(item, Mapping):
                values = dict(cast("Mapping[str, Any]", item))
                for name, keys in (("image", _IMAGES), ("label", (self._label_key,) if self._label_key else LABELS)):
                    if (key := next((key for key in keys if key in values), None)) is not None:
                        values[name] = values.pop(key)
            elif isinstance(item, (tuple, list)):
                values = dict[str, Any](zip(("image", "label"), cast("Sequence[Any]", item), strict=False))
            else:
                values = {"image": item}
            if "image" not in values:
                raise StorageError(
                    f"Item {index} of the {self.kind} must have an image; its keys are {sorted(values)}."
                )
            if values["image"] is None:
                raise CorruptImageError("it has no image", index=index)
            self._last = index, values
            return values
        return self._last[1]

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int) -> bytes:
        """An item's image, pixels without loss; see :meth:`respipe.conversion.Source.read`."""
        try:
            return _encoded(self._item(index)["image"], index)
        except (StorageError, CorruptImageError, MemoryError):
            raise
        except Exception as error:  # a dataset's own code, or an image that is decoded only now
            raise CorruptImageError(f"{type(error).__name__}: {error}", index=index) from error

    def name(self, index: int) -> str:
        """Its number."""
        return f"item {index}"

    def value(self, index: int, name: str) -> Any:
        """One field of an item, masks as a PNG."""
        value = self._item(index).get(name)
        return write_mask(np.asarray(value)) if _is_mask(value) else value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


def _plain(label: Any) -> Any:
    """A label as a Python number, where it is an array or tensor of one."""
    return label.item() if hasattr(label, "item") and not getattr(label, "shape", ()) else label


def _is_mask(value: Any) -> bool:
    """Whether a value has one number of 8 bits for each pixel."""
    if isinstance(value, Image.Image):
        return value.mode in ("L", "P", "1")
    return getattr(value, "ndim", 0) == 2 and np.asarray(value).dtype.name in ("uint8", "bool")


class _Field:
    """A field of an item, as a function that can be pickled."""

    def __init__(self, source: IndexableSource, name: str) -> None:
        self._source, self._name = source, name

    def __call__(self, index: int) -> Any:
        return self._source.value(index, self._name)


def _encoded(image: Any, index: int) -> bytes:
    if isinstance(image, dict):  # as Hugging Face's datasets give images that are not decoded
        given = cast("dict[str, Any]", image)
        image = given["bytes"] if given.get("bytes") is not None else given["path"]
    if isinstance(image, (str, os.PathLike)):
        return read_regular(Path(cast("str", image)))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(cast("bytes", image))
    if not isinstance(image, Image.Image):
        image = _from_array(np.asarray(image), index, channels_first=hasattr(image, "permute"))
    buffer = io.BytesIO()
    if image.mode == "I":
        raise CorruptImageError(
            "its 32-bit pixels (Pillow's mode I) have no known range. Convert it to mode L or I;16", index=index
        )
    upright = ImageOps.exif_transpose(image)
    upright = upright.convert(_SAVED_AS.get(upright.mode, upright.mode))
    # PNG has neither CMYK nor floats; what becomes of those is decided where images are judged.
    format = "PPM" if upright.mode in ("RGB", "L") else "TIFF" if upright.mode in _TIFF_MODES else "PNG"
    upright.save(buffer, format)
    return buffer.getvalue()


def _from_array(array: Any, index: int, *, channels_first: bool) -> Image.Image:
    if array.ndim == 3 and channels_first:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise CorruptImageError(
            f"an image must be uint8, (H, W), (H, W, 3) or (H, W, 4), or a tensor with channels first; "
            f"got {array.dtype} of shape {array.shape}",
            index=index,
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _open(given: Any, options: SourceOptions) -> IndexableSource:
    return IndexableSource(given, label_field=options.label_field)


SPEC = SourceSpec(
    format="dataset",
    title="an object with __len__ and __getitem__",
    recognise=lambda given: not isinstance(given, str) and hasattr(given, "__len__") and hasattr(given, "__getitem__"),
    open=_open,
    options=frozenset({"label_field"}),
)
