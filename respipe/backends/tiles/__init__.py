"""The tiles backend: decodes no more of a JPEG than the crop, and resizes it before it becomes colour.

It reads ``.beton`` files of respipe's conversion, and needs no compiled library. Every image has restart markers with
an index and the standard Huffman tables. So only the restart intervals (tiles) that a crop touches are decoded, to
planes of luma and chroma, which are resized straight to S x S, where colour is converted.
"""

from __future__ import annotations

import torch

from respipe.backends.base import Backend, BackendSpec
from respipe.backends.pool import PooledBackend
from respipe.storage.dataset import Dataset


def _refuse(dataset: Dataset) -> str | None:
    if dataset.tiled:
        return None
    return (
        "`backend` 'tiles' must be given a .beton whose images all have restart markers with an index; "
        f"{dataset.path} is not one. Make one with `respipe convert {dataset.path} TARGET.beton`, or choose another "
        "backend."
    )


def _build(dataset: Dataset, *, device: torch.device, num_threads: int) -> Backend:
    # Here, since importing respipe must not wait for Numba.
    from respipe.backends.compiled.memory import prepare_loop
    from respipe.backends.tiles.kernel import decode_images, decode_part

    prepare_loop(decode_images)
    return PooledBackend("tiles", dataset, decode_part, device=device, num_threads=num_threads)


SPEC = BackendSpec(
    name="tiles",
    summary="fastest on the CPU, for .beton files of `respipe convert`",
    modules=("numba",),
    distributions=("numba",),
    install="pip install numba",
    priority=lambda _: 30,
    refuse=_refuse,
    build=_build,
    interpolations=("bilinear", "bicubic"),
)
