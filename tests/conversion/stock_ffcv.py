"""What stock FFCV does, in a process of its own: its threads, compiler and habit of waiting forever stay out of pytest.

``python -m tests.conversion.stock_ffcv read FILE OUTPUT`` loads the images and labels in several ways into an ``.npz``;
``python -m tests.conversion.stock_ffcv write FOLDER`` makes ``jpg.beton``, ``raw.beton`` and ``smart.beton``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ffcv
import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import FloatDecoder, IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import OrderOption
from ffcv.transforms import ToTensor

from tests.memory_dataset import smooth_image

SMART_THRESHOLD = 5000
LABELS = tuple(range(-5, 31, 3))


def pictures() -> list[np.ndarray]:
    """Twelve images of different heights; with 60 pixels of width, up to 27 rows stay below the threshold."""
    return [np.asarray(smooth_image(20 + 4 * number, 60, seed=number)) for number in range(len(LABELS))]


def load(path: str, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels, by code that knows of these two fields alone."""
    pipelines = {
        "image": [SimpleRGBImageDecoder(), ToTensor()],
        "label": [(FloatDecoder if "float" in path else IntDecoder)(), ToTensor()],
    }
    loader = ffcv.Loader(path, batch_size=16, num_workers=1, pipelines=pipelines, drop_last=False, **options)
    batches = [(np.array(image), np.array(label)[:, 0]) for image, label in loader]
    return np.concatenate([image for image, _ in batches]), np.concatenate([label for _, label in batches])


def read(path: str, output: str) -> None:
    ways: dict[str, dict[str, Any]] = {
        "os_cache": {"os_cache": True},
        "process_cache": {"os_cache": False},
        "quasi_random": {"os_cache": False, "order": OrderOption.QUASI_RANDOM, "seed": 1},
    }
    found: dict[str, np.ndarray] = {}
    for way, options in ways.items():
        found[f"{way}/images"], found[f"{way}/labels"] = load(path, **options)
    np.savez(output, **found)


def write(folder: str) -> None:
    for mode in ("jpg", "raw", "smart"):
        fields = {"image": RGBImageField(write_mode=mode, smart_threshold=SMART_THRESHOLD), "label": IntField()}
        writer = ffcv.DatasetWriter(str(Path(folder) / f"{mode}.beton"), fields, num_workers=2)
        writer.from_indexed_dataset(list(zip(pictures(), LABELS, strict=True)), chunksize=3)


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
