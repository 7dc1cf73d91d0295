"""Tiles decoded by the GPU's kernels: the simulator's coefficients and samples, and that the kernels compile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import respipe

ROOT = Path(__file__).parents[2]

pytest.importorskip("numba_cuda", reason="needs numba-cuda")


@pytest.mark.parametrize("simulated", [True, pytest.param(False, marks=pytest.mark.gpu)])
def test_kernels_decode_what_tiles_do_and_flag_damage(simulated: bool, jpeg_folder: Path, tmp_path: Path) -> None:
    respipe.convert(jpeg_folder, tmp_path / "tiles.beton", num_workers=1)
    number, side = ("5", "6") if simulated else ("200", "150")
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.cuda_tiles_check", str(tmp_path / "tiles.beton"), number, side],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": str(int(simulated)), "PYTHONPATH": str(ROOT)},
        cwd=ROOT, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_kernels_compile_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import cuda, float32, int16, int32, int64, types, uint8, uint16, uint32
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv.nvvm import NvvmSupportError

    from tools.benchmarks import cuda_tiles

    def array(kind: types.Type, dimensions: int) -> types.Type:
        return types.Array(kind, dimensions, "C")

    hopper = (9, 0)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=hopper))
    intervals = array(uint32, 1), array(int32, 2), array(int64, 2), array(uint16, 1), array(int16, 2), array(int32, 1)
    blocks = array(int16, 2), array(int64, 2), array(float32, 2), array(uint8, 1)
    for kernel, signature in ((cuda_tiles.decode_intervals, intervals), (cuda_tiles.transform_blocks, blocks)):
        try:
            ptx, _ = cuda.compile_ptx(kernel.py_func, signature, cc=hopper)
        except NvvmSupportError as error:
            pytest.skip(f"NVIDIA's compiler is not installed: {error}")
        assert "sm_90" in ptx
        assert ".f64" not in ptx, "a GPU that trains has few units for double precision"
