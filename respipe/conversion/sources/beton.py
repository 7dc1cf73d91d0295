"""``.beton`` files, one or a folder of them: the largest level of respipe's own, and what FFCV's writer makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from respipe.conversion.sources.base import SourceOptions, SourceSpec
from respipe.errors import CorruptImageError
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.beton.structure import format_of
from respipe.storage.fields import Column
from respipe.storage.shards import ShardedDataset, is_sharded, open_shards


class BetonSource:
    """The largest level of a ``.beton``, such as FFCV's own writer makes, or of a folder of such files with an index.

    Args:
        path: the file or folder.
        label_field: name of the field that is the label, if not ``label``; "" for no labels.

    Raises:
        StorageError: it is not a sound ``.beton``.
    """

    def __init__(self, path: str | Path, *, label_field: str | None = None) -> None:
        if not Path(path).is_dir():
            self._dataset = BetonDataset(path, label_field=label_field)
        else:
            self._dataset = open_shards(Path(path))
            if label_field is not None:
                self._dataset = ShardedDataset([shard.path for shard in self._dataset.shards], label_field=label_field)
        self.kind = self._dataset.kind
        self.fingerprint = self._dataset.fingerprint

    @property
    def fields(self) -> Mapping[str, Column]:
        """Those of the file."""
        return self._dataset.fields

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int) -> bytes:
        """One stored image. Raw pixels come as a PPM, which adds nothing but their size in front."""
        if (problem := self._dataset.problem(index)) is not None:
            raise CorruptImageError(problem, index=index)
        data = self._dataset.encoded(index).tobytes()
        level = self._dataset.levels[0]
        return b"P6 %d %d 255\n%b" % (level.widths[index], level.heights[index], data) if level.raw[index] else data

    def name(self, index: int) -> str:
        """The name stored with it, or its number."""
        return self._dataset.name(index)


def _recognise(given: object) -> bool:
    path = Path(given) if isinstance(given, str) else Path()
    if path.is_dir():
        return isinstance(given, str) and is_sharded(path)
    return path.is_file() and (path.suffix == ".beton" or format_of(path) == "a .beton")


def _open(given: str, options: SourceOptions) -> BetonSource:
    return BetonSource(given, label_field=options.label_field)


SPEC = SourceSpec(
    format="beton",
    title="a .beton file or a folder of such files",
    recognise=_recognise,
    open=_open,
    options=frozenset({"label_field"}),
    priority=-1,
)
