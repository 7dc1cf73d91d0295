from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from respipe.integrations.lightning import ScheduledEpochs
from tests.integrations.runs import NUM_EPOCHS, Record, cross_entropy, make_network, seen


class Module(LightningModule):
    """Trains the tiny network; notes what it is given, and after how many batches it was validated."""

    def __init__(self, record: Record | None = None) -> None:
        super().__init__()
        self.network = make_network()
        self.seen: list[Any] = []
        self.record = record or self.seen.append
        self.validated: list[int] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        images, labels = batch
        self.record(seen(self.trainer.train_dataloader, images, labels))
        return cross_entropy(self.network, images, labels)

    def validation_step(self, batch: Any, index: int) -> None:
        if index == 0:
            self.validated.append(len(self.seen))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def make_trainer(**options: Any) -> Trainer:
    callbacks = [ScheduledEpochs(), *options.pop("callbacks", ())]
    settings = {"max_epochs": NUM_EPOCHS, "enable_checkpointing": False, "accelerator": "cpu"} | options
    return Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=callbacks, **settings,
    )  # fmt: skip
