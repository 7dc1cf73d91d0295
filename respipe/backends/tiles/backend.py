"""The tiles backend decodes no more of a JPEG than the crop, and resizes it before it becomes colour."""

from __future__ import annotations

from functools import partial

from respipe.backends.pool.compiled import CompiledBackend, announce_compilation
from respipe.storage.dataset import Dataset


class TilesBackend(CompiledBackend):
    """Decodes ``.beton`` files of respipe's conversion on CPU threads that hold no GIL. Needs no compiled library.

    Every image must have restart markers with an index and the standard Huffman tables, as ``respipe convert`` writes
    them. Then only the restart intervals (tiles) that a crop touches are decoded, to planes of luma and chroma, which
    are resized straight to S x S, where colour is converted.

    Args:
        dataset: an open ``.beton`` with tiles.
        num_threads: decoding threads.
        level_margin: see :func:`respipe.backends.routing.route`.

    Raises:
        ValueError: the dataset has images without tiles.
    """

    def __init__(self, dataset: Dataset, *, num_threads: int, level_margin: float = 1.0) -> None:
        if not dataset.tiled:
            raise ValueError(
                f"`backend` 'tiles' must be given a .beton whose images all have restart markers with an index; "
                f"{dataset.path} is none. Make one with `respipe convert {dataset.path} TARGET.beton`, or choose "
                "another backend."
            )
        # Here, since importing respipe must not wait for Numba.
        from respipe.backends.tiles.entropy import standard_lookup
        from respipe.backends.tiles.kernel import decode_images

        announce_compilation(decode_images)
        super().__init__(
            "tiles",
            dataset,
            partial(decode_images, standard_lookup()),
            damage="its restart intervals are damaged",
            num_threads=num_threads,
            level_margin=level_margin,
        )
