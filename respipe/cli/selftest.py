"""Decoding a few images with the backends that "auto" takes, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

KINDS = (".beton file", "class folder")
_STALL_SECONDS = 120.0


def try_out_auto(device: str) -> dict[str, dict[str, Any]]:
    """Which backend decodes a ``.beton`` file and a class folder.

    A broken driver or library can take the whole process down, so another process tries.

    Args:
        device: where batches are to end up.

    Returns:
        by kind of data, ``backend`` and ``error``, one of which is None.
    """
    outcomes: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=_keep_stdout_clean) as pool:
            try:
                outcomes[kind] = pool.submit(try_out, kind, device).result()
            except BrokenProcessPool:
                outcomes[kind] = {"backend": None, "error": "the process that decoded it crashed"}
    return outcomes


def try_out(kind: str, device: str) -> dict[str, Any]:
    """Make a tiny dataset and decode it; see :func:`try_out_auto`."""
    from respipe.conversion import convert
    from respipe.errors import RespipeError
    from respipe.loading.loader import Loader
    from respipe.schedules.constant import Constant

    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "images")
        _write_images(data)
        try:
            if kind == KINDS[0]:
                convert(data, Path(scratch, "images.beton"), num_workers=0)
                data = Path(scratch, "images.beton")
            with Loader(data, Constant(32), batch_size=2, device=device, stall_timeout=_STALL_SECONDS) as loader:
                for _ in loader:
                    pass
                return {"backend": loader.backend, "error": None}
        except (RespipeError, OSError, RuntimeError, ValueError, ImportError) as error:
            return {"backend": None, "error": f"{type(error).__name__}: {error}"}


def _write_images(folder: Path) -> None:
    (folder / "noise").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "noise" / f"{number}.jpg")


def _keep_stdout_clean() -> None:
    """Libraries may print; stdout belongs to the report."""
    os.dup2(2, 1)
