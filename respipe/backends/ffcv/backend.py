"""The FFCV backend: FFCV's file format and libjpeg-turbo decoder under one compiled loop that checks every result."""

from __future__ import annotations

from respipe.backends.pool.compiled import CompiledBackend, announce_compilation
from respipe.errors import MissingBackendError
from respipe.storage.dataset import Dataset


class FfcvBackend(CompiledBackend):
    """Decodes ``.beton`` files, respipe's own and those of FFCV's writer, on CPU threads that hold no GIL.

    Stock FFCV compiles one pipeline per size, draws its own crops and ignores the decoder's return code. This backend
    calls the libjpeg-turbo that FFCV is linked with from a loop over the batch which takes sizes and boxes as data.
    JPEGs with restart markers are cut first, so that no more is decoded than the crop needs.

    Args:
        dataset: an open ``.beton``.
        num_threads: decoding threads.
        level_margin: see :func:`respipe.backends.routing.route`.

    Raises:
        MissingBackendError: ffcv is not installed.
        ValueError: the dataset is a folder.
    """

    def __init__(self, dataset: Dataset, *, num_threads: int, level_margin: float = 1.0) -> None:
        if not dataset.buffers:
            raise ValueError(
                f"`backend` 'ffcv' must be given a .beton file; got the folder {dataset.path}. Convert it with "
                f"`respipe convert {dataset.path} TARGET.beton`, or choose backend='dali' or 'reference'."
            )
        try:
            from respipe.backends.ffcv import kernel as ffcv_kernel
        except ImportError as error:
            raise MissingBackendError(
                f"backend='ffcv' needs the package ffcv, which cannot be imported here ({error}). "
                "Install it with: pip install 'respipe[ffcv]'"
            ) from error
        announce_compilation(ffcv_kernel.decode_images)
        super().__init__(
            "ffcv",
            dataset,
            ffcv_kernel.decode_images,
            damage="its size or its restart markers are wrong, or libjpeg-turbo reports damaged data",
            num_threads=num_threads,
            level_margin=level_margin,
        )
