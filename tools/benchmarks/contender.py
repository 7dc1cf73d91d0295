"""What a loader must offer to be benchmarked, and what it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

# Images in one epoch of every loader; small datasets are repeated. Long epochs, so that the visits measure the steady
# state; not longer, since several loaders permute the whole epoch before its first batch.
EPOCH_IMAGES = 2**18

Batch = tuple[torch.Tensor | tuple[torch.Tensor, ...], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all loaders have in common.

    Args:
        data: class folder of JPEGs.
        files: prepared files by name; see :mod:`tools.benchmarks.prepare`.
        batch_size: images per batch.
        num_threads: decoding threads, or worker processes where the loader has no threads.
        level_margin: of respipe's loaders, see :class:`respipe.Loader`.
        device: where batches end up, "cpu" or "cuda". DALI decodes there too.
    """

    data: Path
    files: Mapping[str, Path]
    batch_size: int
    num_threads: int
    level_margin: float = 1.0
    device: str = "cpu"

    @property
    def on_gpu(self) -> bool:
        """Whether batches end up on a GPU."""
        return torch.device(self.device).type == "cuda"

    def synchronize(self) -> None:
        """Wait until the GPU has done all it was asked to."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class Crops:
    """Given crops as a loader made them.

    Args:
        pixels: (N, S, S, 3) uint8.
        boxes: (N, 4) float64 ``top, left, height, width`` as shares of the image's height and width.
        bytes_read: mean number of encoded bytes that a crop was decoded from.
    """

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    bytes_read: float


class Fidelity(NamedTuple):
    """How good some crops are, and what they were made from.

    Args:
        psnr: in dB; see :data:`tools.benchmarks.fidelity.DEFINITION`.
        bytes_read: mean number of encoded bytes that a crop was decoded from.
    """

    psnr: float
    bytes_read: float


class Contender(Protocol):
    """A loader under test: random resized crops, mirrored half of the time, as uint8 tensors on ``settings.device``.

    Attributes:
        batches_ahead: batches it may have ready, or under way, before they are asked for.
    """

    batches_ahead: int

    def stream(self, sizes: tuple[int, ...]) -> Iterator[Batch]:
        """Batches without end, epoch after epoch.

        Yields:
            images (B, 3, S, S) uint8 in any memory format, or a tuple of them where there are several sizes; labels.
        """
        ...

    def crops(self, samples: Sequence[str], uniforms: NDArray[np.float64], size: int) -> Crops:
        """Cut given crops with the decoder and the resizer that ``stream`` uses.

        Args:
            samples: N paths relative to the class folder.
            uniforms: draws that decide the boxes; see :func:`tools.benchmarks.fidelity.draw_boxes`.
            size: side of the output.
        """
        ...

    def bytes_per_image(self) -> float:
        """Mean number of bytes stored per sample, all resolutions together."""
        ...


def folder_samples(data: Path) -> tuple[list[str], list[int]]:
    """Paths relative to a class folder and their labels, in the order in which all peers number them."""
    from torchvision.datasets import ImageFolder

    found = ImageFolder(str(data)).samples
    return [str(Path(path).relative_to(data)) for path, _ in found], [label for _, label in found]


def folder_bytes_per_image(data: Path) -> float:
    """Mean file size in a class folder."""
    paths, _ = folder_samples(data)
    return sum((data / path).stat().st_size for path in paths) / len(paths)
