"""What a backend does: turn a planned batch into pixels."""

from __future__ import annotations

from typing import Protocol

import torch

from respipe.planning.batch import BatchPlan


class Backend(Protocol):
    """Decodes planned batches in the order they were submitted. Draws nothing at random and keeps no notion of size.

    The pixels of an image are defined as: crop the level that :func:`respipe.backends.routing.route` picks to the box's
    integer hull (what lies outside the image is black), resize the box within that hull to S x S with an antialiased
    bilinear (triangle) filter that sees the hull only, then mirror. ``reference`` computes exactly that with Pillow;
    the others stay within the tolerances of the contract suite.

    Calls come from one thread at a time. ``submit`` may be called several times before ``collect``.
    """

    @property
    def name(self) -> str:
        """The backend's name as given to ``Loader(backend=...)``."""
        ...

    def room(self, plan: BatchPlan) -> int:
        """How many batches like this one should be in flight to keep the backend busy, at least 2."""
        ...

    def submit(self, plan: BatchPlan) -> None:
        """Start decoding a batch in the background."""
        ...

    def collect(self) -> tuple[torch.Tensor, ...]:
        """Wait for the oldest submitted batch.

        Returns:
            one (B, S, S, 3) uint8 tensor, values 0..255, contiguous, for each size of the step. It is the caller's:
            no later batch overwrites it.

        Raises:
            CorruptImageError: one image cannot be decoded. The batch is lost; call ``reset`` before going on.
        """
        ...

    def reset(self) -> None:
        """Forget every submitted batch that was not collected."""
        ...

    def close(self) -> None:
        """Release threads, buffers and engine state. Safe to call twice."""
        ...
