"""What a model answers on each sample at each size, as a table in a file."""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray

from respipe.errors import MissingBackendError
from respipe.storage.dataset import Dataset


class Predictions:
    """Gathers the answers of all ranks, and writes one row per sample, in the order of their numbers.

    The columns are ``index``; ``name`` of the sample; ``label``, as the number of the model's output; and for each size
    S ``top1_S``, the output that scored highest, and ``top5_S``, the five highest or all if there are fewer, best
    first: a list in Parquet, numbers between spaces in CSV.

    Args:
        path: file to write, ``.parquet`` or ``.csv``. It is replaced where it exists.

    Raises:
        ValueError: it has another suffix, or cannot be written there.
        MissingBackendError: it is a Parquet file, and pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._batches: dict[int, list[NDArray[np.int64]]] = {}
        if self._path.suffix not in (".parquet", ".csv"):
            raise ValueError(f"`predictions` must be a file .parquet or .csv; got {path}. Choose one of them.")
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise ValueError(
                f"`predictions` must be a file in a folder that exists; got {path}. Make its folder first."
            )
        if self._path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
            raise MissingBackendError(
                f"Writing {path} needs pyarrow, which is not installed. Name a .csv file, or install it with: "
                "pip install pyarrow"
            )

    def add(self, size: int, indices: NDArray[np.int64], labels: torch.Tensor, logits: torch.Tensor) -> None:
        """The answers to some samples.

        Args:
            size: side of the images in pixels.
            indices: (B,) int64, sample numbers.
            labels: (B,) int64, numbers of the right outputs.
            logits: (B, K).
        """
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        rows = np.column_stack([indices, torch.column_stack([labels, best]).cpu().numpy()])
        self._batches.setdefault(size, []).append(rows)

    def write(self, dataset: Dataset) -> None:
        """Write the file, on the first rank; call it on all of them."""
        mine = {size: np.concatenate(rows) for size, rows in self._batches.items()}
        parts: list[Any] = [mine]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, mine)
            if torch.distributed.get_rank() > 0:
                return
        sizes = sorted({size for part in parts for size in part}, reverse=True)
        rows = {size: np.concatenate([part[size] for part in parts if size in part]) for size in sizes}
        rows = {size: some[np.argsort(some[:, 0], kind="stable")] for size, some in rows.items()}
        indices, labels = rows[sizes[0]][:, :2].T
        columns: dict[str, list[Any]] = {
            "index": indices.tolist(), "name": [dataset.name(index) for index in indices.tolist()],
            "label": labels.tolist(),
        }  # fmt: skip
        for size, some in rows.items():
            columns |= {f"top1_{size}": some[:, 2].tolist(), f"top5_{size}": some[:, 2:].tolist()}
        _write(self._path, columns)


def _write(path: Path, columns: dict[str, list[Any]]) -> None:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        parquet: Any = pyarrow.parquet
        parquet.write_table(pyarrow.table(columns), path)
        return
    with path.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow([" ".join(map(str, cast("list[int]", v))) if isinstance(v, list) else v for v in row])
