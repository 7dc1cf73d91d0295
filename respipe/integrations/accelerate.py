"""Hugging Face Accelerate: gradient accumulation that ends with the epoch, and gathering in evaluation.

In evaluation it wraps a loader with ``pad_shares=True``, of which ``gather_for_metrics`` returns every sample once.

The lines to change::

    from respipe.integrations.accelerate import AccelerateLoader

    train = respipe.Loader("train.beton", schedule, batch_size=256, device=accelerator.device)  # of all processes
    loader = AccelerateLoader(train)  # instead of prepare(loader)
    accelerator.register_for_checkpointing(loader)
    for epoch in range(loader.epoch, 90):  # also after load_state
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate.state import GradientState

from respipe.loading.loader import Loader


class AccelerateLoader:
    """A loader that tells Accelerate which batch is the epoch's last, so that gradients are synced there.

    It has all that the loader has. ``accelerator.prepare`` leaves it as it is, since the loader places batches and
    shares them among ranks by itself; register it with ``accelerator.register_for_checkpointing``.

    Args:
        loader: loader of this process, on ``accelerator.device``. Its ``batch_size`` is that of all processes.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.end_of_dataloader = False

    @property
    def remainder(self) -> int:
        """Real samples of the last batch, to which ``gather_for_metrics`` cuts it; 0 for all; -1 in training."""
        return -1 if self.loader.drop_last else self.loader.num_samples % self.loader.batch_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        state: Any = GradientState()
        self.end_of_dataloader = False
        state._add_dataloader(self)  # noqa: SLF001  as Accelerate's own loaders do
        try:
            for batch in self.loader:
                self.end_of_dataloader = self.loader.step == 0  # the last batch has moved the loader on
                yield batch
        finally:
            state._remove_dataloader(self)  # noqa: SLF001
