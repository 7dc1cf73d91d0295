"""PyTorch Lightning: epochs of different lengths, resuming, overfitting.

The lines to change::

    from respipe.integrations.lightning import ScheduledEpochs

    train = respipe.Loader("train.beton", schedule, batch_size=256)  # of all devices
    val = respipe.Loader("val.beton", Constant(224), batch_size=256, training=False)
    trainer = lightning.Trainer(max_epochs=90, callbacks=[ScheduledEpochs()])
    trainer.fit(module, train, val)
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from typing import Any

from respipe.loading.loader import Loader

# One trainer by two names, neither of which takes the other's callbacks: the one in use, else the newer.
_is_older = "pytorch_lightning" in sys.modules or find_spec("lightning") is None
_Callback: Any = importlib.import_module("pytorch_lightning" if _is_older else "lightning.pytorch").Callback


class ScheduledEpochs(_Callback):
    """Gives every epoch the length and the samples that its schedule gives it, also after ``fit(ckpt_path=)``.

    Lightning measures the first epoch alone, and before it restores the loader's position. ``limit_train_batches`` and
    a fractional ``val_check_interval`` then apply to each epoch's own length. With ``overfit_batches`` every epoch has
    the first batches of epoch 0, where Lightning would put a sampler of its own into the loader.
    """

    def __init__(self) -> None:
        self._overfits, self._num_batches = False, 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.overfit_batches > 0:  # what limits the batches has been derived from it
            self._overfits, trainer.overfit_batches = True, 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        loop = trainer.fit_loop
        # Lightning chooses the epoch next; here already, so that its first iteration begins in the right one.
        self._choose(trainer, loop.epoch_progress.current.processed)
        iter(loop._data_fetcher)  # noqa: SLF001  Lightning has no public way to measure again
        finished = loop.epoch_loop.batch_progress
        if finished.is_last_batch:  # Lightning goes on with the next epoch if this many are those of an epoch
            loop.max_batches = finished.current.ready
        if loop.restarted_on_epoch_end:  # with `max_steps`, Lightning would go on counting where that epoch ended
            loop.epoch_loop.restarting = False

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._choose(trainer, trainer.fit_loop.epoch_progress.current.processed)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        trainer.fit_loop.max_batches = self._num_batches

    def _choose(self, trainer: Any, epoch: int) -> None:
        """Put the loaders into an epoch, and take their lengths there for those of Lightning's epoch."""
        loop, limit = trainer.fit_loop, trainer.limit_train_batches
        combined = loop._combined_loader  # noqa: SLF001
        for place, loader in enumerate(combined.flattened):
            if isinstance(loader, Loader):
                loader.set_epoch(0 if self._overfits else epoch)
                length = len(loader)
                combined.limits[place] = min(length, limit) if isinstance(limit, int) else max(1, int(length * limit))
        loop.max_batches = self._num_batches = len(combined)
        if isinstance(trainer.val_check_interval, float) and trainer.val_check_batch is not None:
            trainer.val_check_batch = max(1, int(self._num_batches * trainer.val_check_interval))
