"""The model follows the size of its input: adaptive pooling, BatchNorm for each size, pooled kernels."""

from __future__ import annotations
