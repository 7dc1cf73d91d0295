"""The ffcv backend: FFCV's file format and libjpeg-turbo under one compiled loop that checks every result.

Stock FFCV compiles one pipeline per size, draws its own crops and ignores the decoder's return code. This backend calls
the libjpeg-turbo that FFCV is linked with from a loop over the batch which takes sizes and boxes as data. JPEGs with
restart markers are cut first, so that no more is decoded than the crop needs.
"""

from __future__ import annotations

import torch

from respipe.backends.base import Backend, BackendSpec
from respipe.backends.pool import PooledBackend
from respipe.storage.dataset import Dataset


def _refuse(dataset: Dataset) -> str | None:
    if dataset.buffers:
        return None
    return (
        f"`backend` 'ffcv' must be given a .beton file; got the folder {dataset.path}. Convert it with "
        f"`respipe convert {dataset.path} TARGET.beton`, or choose backend='dali' or 'reference'."
    )


def _build(dataset: Dataset, *, device: torch.device, num_threads: int) -> Backend:
    # Here, since importing respipe must not wait for Numba.
    from respipe.backends.compiled.memory import prepare_loop
    from respipe.backends.ffcv.kernel import decode_images, decode_part

    prepare_loop(decode_images)
    return PooledBackend("ffcv", dataset, decode_part, device=device, num_threads=num_threads)


SPEC = BackendSpec(
    name="ffcv",
    summary="any .beton file, on the CPU",
    modules=("ffcv", "numba"),
    distributions=("ffcv",),
    install="pip install 'respipe[ffcv]'",
    priority=lambda _: 20,
    refuse=_refuse,
    build=_build,
    interpolations=("bilinear", "bicubic"),
)
