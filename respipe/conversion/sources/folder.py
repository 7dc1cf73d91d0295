"""Class folders, flat folders with a file of labels, and the splits of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from respipe.conversion.sources.archive import open_archive
from respipe.conversion.sources.base import Source, SourceOptions, SourceSpec
from respipe.conversion.sources.labels import is_flat, with_label_file
from respipe.errors import CorruptImageError, StorageError
from respipe.printable import printable
from respipe.storage.class_folder import find_splits, has_folders, scan_class_folder, scan_flat_folder
from respipe.storage.fields import Column
from respipe.storage.regular_files import read_regular


class FolderSource:
    """A folder with one subfolder per class.

    Args:
        path: the folder.
        flat: whether the folders that its images lie in tell nothing; they have no labels then.

    Raises:
        StorageError: it cannot be read, or has no classes or no images.
    """

    def __init__(self, path: str | Path, *, flat: bool = False) -> None:
        self.kind = "flat folder" if flat else "folder"
        self._folder = scan_flat_folder(Path(path)) if flat else scan_class_folder(Path(path))
        self.fingerprint = self._folder.fingerprint
        self.passed_over = self._folder.passed_over
        self.num_bytes = int(self._folder.sizes.sum())

    @property
    def fields(self) -> Mapping[str, Column]:
        """The label: the place of an image's subfolder among the sorted ones. None for a flat folder."""
        return self._folder.fields

    def __len__(self) -> int:
        return len(self._folder.labels)

    def read(self, index: int) -> bytes:
        """The bytes of one file; see :meth:`respipe.conversion.Source.read`."""
        try:
            return read_regular(self._folder.root / self._folder.names[index])
        except OSError as error:
            # Where the whole folder is gone, as with a lost mount, no single file is to blame.
            self._folder.root.stat()
            raise CorruptImageError(error.strerror or str(error), index=index) from error

    def name(self, index: int) -> str:
        """Its path relative to the folder."""
        return printable(self._folder.names[index])


def _open(given: str, options: SourceOptions) -> Source:
    root, labels, flat = Path(given), options.labels, is_flat(options)
    if options.split is not None:
        download = root / f"ILSVRC2012_img_{options.split}.tar"
        if download.is_file():
            labels = labels or (_devkit_in([root]) if options.split == "val" else None)
            return open_archive(str(download), replace(options, labels=labels, split=None))
        splits = find_splits(root) or {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
        if options.split not in splits:
            raise StorageError(
                f"`split` must be one that {root} holds, {', '.join(splits) or 'none'}; got {options.split!r}."
            )
        root = splits[options.split]
        labels = labels or _labels_of(root)
        # Nobody outside has the labels of a test set: it is images alone.
        flat |= labels is not None or (options.split.startswith("test") and not has_folders(root))
    source = FolderSource(root, flat=flat)
    return source if labels is None else with_label_file(source, labels, label_field=options.label_field)


def _labels_of(split: Path) -> Path | None:
    """What labels the flat folder of a split of ImageNet, from where Kaggle and the challenge put it."""
    tree = split.absolute().parent
    if tree.name != "CLS-LOC" or split.name == "train":
        return None
    around = tree.parents[:3]
    places = [*(folder / f"LOC_{split.name}_solution.csv" for folder in around)]
    places.append(around[1] / "Annotations/CLS-LOC" / split.name)
    return next((place for place in places if place.exists()), None) or _devkit_in(around)


def _devkit_in(folders: Sequence[Path]) -> Path | None:
    names = ("ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12.tar.gz")
    return next((place for folder in folders for name in names if (place := folder / name).exists()), None)


SPEC = SourceSpec(
    format="folder",
    title="a folder with one subfolder per class, or of images with a file of their labels",
    recognise=lambda given: isinstance(given, str) and Path(given).is_dir(),
    open=_open,
    options=frozenset({"labels", "label_field", "split"}),
    priority=-2,
    glance=lambda given: "folder",
)
