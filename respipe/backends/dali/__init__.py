"""The dali backend: NVIDIA's image decoders, on the CPU or on a GPU, fed with planned batches."""

from __future__ import annotations

import torch

from respipe.backends.base import Backend, BackendSpec
from respipe.backends.dali.hardware import jpeg_engines
from respipe.storage.dataset import Dataset


def _refuse(dataset: Dataset) -> str | None:
    if not any(level.raw.any() for level in dataset.levels):
        return None
    return (
        f"`backend` 'dali' must be given encoded images; got raw pixels in {dataset.path}. Choose backend='ffcv' or "
        "'reference', or convert the images again as JPEG."
    )


def _priority(device: torch.device) -> int:
    """Before tiles where the GPU has engines for JPEGs, or nobody knows; behind ffcv on a CPU.

    Without engines, DALI's decoder takes multiprocessors from training and cores from everyone.
    """
    if device.type != "cuda":
        return 10
    return 25 if jpeg_engines(device) == 0 else 40


def _build(dataset: Dataset, *, device: torch.device, num_threads: int) -> Backend:
    from respipe.backends.dali.backend import DaliBackend

    return DaliBackend(dataset, device=device, num_threads=num_threads)


_IS_CUDA_12 = (torch.version.cuda or "").startswith("12")

SPEC = BackendSpec(
    name="dali",
    summary="class folders and .beton files, on the CPU or a GPU",
    modules=("nvidia.dali",),
    distributions=("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    install=f"pip install 'respipe[{'dali-cuda12' if _IS_CUDA_12 else 'dali-cuda13'}]'",
    priority=_priority,
    refuse=_refuse,
    build=_build,
    interpolations=("bilinear", "bicubic"),
)
