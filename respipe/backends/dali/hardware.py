"""What a GPU has for JPEGs: some have engines that decode them beside the multiprocessors, and most have none."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch

# Of nvjpeg.h.
_HARDWARE = 3
_SUCCESS, _ARCH_MISMATCH = 0, 7


@functools.cache
def jpeg_engines(device: torch.device) -> int | None:
    """Number of hardware JPEG engines that a CUDA device has for this process.

    A100, A30, H100 and their successors have some, but small MIG slices of them none.

    Returns:
        None where that cannot be found out: nvJPEG, which comes with DALI, is not installed or fails.
    """
    library = _nvjpeg() if torch.cuda.is_available() else None
    if library is None:
        return None
    handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # nvJPEG uses the context that is current, and makes none
        status = library.nvjpegCreateEx(_HARDWARE, None, None, 0, ctypes.byref(handle))
        if status != _SUCCESS:
            return 0 if status == _ARCH_MISMATCH else None
        try:
            status = library.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
        finally:
            library.nvjpegDestroy(handle)
    return engines.value if status == _SUCCESS else None


def _nvjpeg() -> Any:
    """The library, where a package of NVIDIA's or the system has it, of the CUDA version that torch is built for."""
    major = (torch.version.cuda or "").partition(".")[0]
    name = f"libnvjpeg.so.{major}"
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for place in [*(str(found) for folder in folders for found in Path(folder).glob(f"*/lib/{name}")), name]:
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    return None
