"""One tiny run of three epochs with 2, 4 and 4 steps in each trainer; and as a program, one that SIGKILL ends.

Every sample has a label of its own, so that what a model is given says which samples it was.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from respipe import Loader
from respipe.schedules import Constant, Schedule, Step
from respipe.storage.fields import Column
from tests.memory_dataset import MemoryDataset

NUM_SAMPLES, NUM_EPOCHS, SAVE_EVERY = 36, 3, 2

Seen = tuple[int, int, tuple[int, ...], tuple[int, ...]]
Record = Callable[[Seen], None]


@dataclass(frozen=True)
class Lengths:
    """Epochs of as many steps as they are said to have, whose sizes and batches vary; the last is repeated."""

    lengths: tuple[int, ...] = (2, 4, 4)
    base_size: int = 32
    sizes: tuple[int, ...] = (32, 16)

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> list[Step]:
        number = self.lengths[min(epoch, len(self.lengths) - 1)]
        batch = num_samples // number // 2 * 2
        return [Step((self.sizes[i % 2],), batch - 2 * (i % 2 and number > 2)) for i in range(number)]


@cache
def dataset() -> MemoryDataset:
    data = MemoryDataset([(24 + i % 7, 40 - i % 5) for i in range(NUM_SAMPLES)])
    data.labels = np.arange(NUM_SAMPLES)
    data.fields = {"label": Column(kind="class", values=data.labels)}
    return data


def make_loader(schedule: Schedule | None = None, *, batch_size: int = 4, **options: Any) -> Loader:
    options = {"backend": "reference", "num_threads": 1} | options
    return Loader(dataset(), schedule or Lengths(), batch_size=batch_size, **options)


def evaluation_loader(**options: Any) -> Loader:
    return make_loader(Constant(32), **{"batch_size": 12, "training": False} | options)


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, NUM_SAMPLES))


def seen(loader: Any, images: torch.Tensor, labels: torch.Tensor) -> Seen:
    """What the model is given now: epoch, step, shape and samples."""
    return *loader.last, tuple(images.shape), tuple(labels.tolist())


def expected(schedule: Schedule | None = None, *, num_epochs: int = NUM_EPOCHS, **options: Any) -> list[Seen]:
    """What a plain loop over the loader sees."""
    with make_loader(schedule, **options) as loader:
        return [seen(loader, *batch) for _ in range(num_epochs) for batch in loader]


def scaled_rate(optimizer: torch.optim.Optimizer, *, base: int = 18) -> torch.optim.lr_scheduler.LambdaLR:
    """A learning rate that follows the size of each step's batch, as the documentation has it."""
    schedule = Lengths()
    steps = [
        step for epoch in range(NUM_EPOCHS) for step in schedule.steps(epoch, num_samples=NUM_SAMPLES, batch_size=4)
    ]
    sizes = [step.batch_size for step in steps]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: sizes[min(step, len(sizes) - 1)] / base)


RATES = [0.01 * size / 18 for size in (18, 18, 8, 6, 8, 6, 8, 6, 8, 6)]
"""What ``scaled_rate`` makes of 0.01 in each step."""


def cross_entropy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(network(images), labels)


def train_plain(folder: Path, record: Record, *, resume: bool) -> nn.Module:
    loader, network = make_loader(), make_network()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=loader.total_steps(NUM_EPOCHS))
    average = torch.optim.swa_utils.AveragedModel(network)
    parts = {"network": network, "optimizer": optimizer, "scheduler": scheduler, "average": average, "loader": loader}
    step = 0
    if resume:
        saved = torch.load(folder / "latest.pt", weights_only=True)
        step = saved.pop("step")
        for name, state in saved.items():
            parts[name].load_state_dict(state)
    for _ in range(loader.epoch, NUM_EPOCHS):
        for images, labels in loader:
            record(seen(loader, images, labels))
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(network, images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            average.update_parameters(network)
            step += 1
            if step % SAVE_EVERY == 0:
                states = {name: part.state_dict() for name, part in parts.items()}
                torch.save({"step": step, **states}, folder / "latest.pt")
    assert step == loader.total_steps(NUM_EPOCHS)
    return average


def train_timm(folder: Path, record: Record, *, resume: bool) -> None:
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import ModelEmaV3

    from respipe.integrations.timm import create_loader

    mixup_off_epoch = 2
    mixup_fn = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=NUM_SAMPLES)
    loader = create_loader(
        dataset(), Lengths(), batch_size=4, mixup_fn=mixup_fn, backend="reference", num_threads=1, with_spec=True
    )
    network = make_network()
    ema = ModelEmaV3(network, decay=0.9)
    optimizer = create_optimizer_v2(network, opt="sgd", lr=0.05)
    scheduler, num_epochs = create_scheduler_v2(
        optimizer, num_epochs=NUM_EPOCHS, warmup_epochs=1, updates_per_epoch=len(loader)
    )
    criterion, step, start_epoch = SoftTargetCrossEntropy(), 0, 0
    parts = {"network": network, "optimizer": optimizer, "ema": ema, "loader": loader}
    if resume:
        saved = torch.load(folder / "latest.pt", weights_only=True)
        step = saved.pop("step")
        for name, state in saved.items():
            parts[name].load_state_dict(state)
        start_epoch = loader.epoch
        scheduler.step(start_epoch)
    for epoch in range(start_epoch, num_epochs):
        if hasattr(loader.batch_sampler, "set_epoch"):
            loader.batch_sampler.set_epoch(epoch)
        if epoch >= mixup_off_epoch and loader.mixup_enabled:
            loader.mixup_enabled = False
        for images, targets, plan in loader:
            assert (targets.max(1).values > 0.9).all() or epoch < mixup_off_epoch
            record(seen(loader, images, plan.indices))
            loss = criterion(network(images), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            ema.update(network, step=step)
            scheduler.step_update(step)
            if step % SAVE_EVERY == 0:
                states = {name: part.state_dict() for name, part in parts.items()}
                torch.save({"step": step, **states}, folder / "latest.pt")
        scheduler.step(epoch + 1)


def train_lightning(folder: Path, record: Record, *, resume: bool) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from tests.integrations.lightning_parts import Module, make_trainer

    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=SAVE_EVERY, save_top_k=-1)
    trainer = make_trainer(callbacks=[saving], enable_checkpointing=True)
    path = folder / f"step={NUM_SAVED}.ckpt" if resume else None
    trainer.fit(Module(record), make_loader(), evaluation_loader(), ckpt_path=path)


def train_accelerate(folder: Path, record: Record, *, resume: bool) -> None:
    from accelerate import Accelerator

    from respipe.integrations.accelerate import AccelerateLoader

    accelerator = Accelerator(cpu=True)
    loader = AccelerateLoader(make_loader())
    network = make_network()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=loader.total_steps(NUM_EPOCHS))
    network, optimizer, scheduler = accelerator.prepare(network, optimizer, scheduler)
    accelerator.register_for_checkpointing(loader)
    if resume:
        accelerator.load_state(str(folder / str(NUM_SAVED)))
    for epoch in range(loader.epoch, NUM_EPOCHS):
        loader.set_epoch(epoch)
        for images, labels in loader:
            record(seen(loader, images, labels))
            accelerator.backward(cross_entropy(network, images, labels))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if (step := loader.total_steps(loader.epoch) + loader.step) % SAVE_EVERY == 0:
                accelerator.save_state(str(folder / str(step)))


def train_transformers(folder: Path, record: Record, *, resume: bool) -> None:
    from tests.integrations.transformers_parts import make_trainer

    trainer = make_trainer(folder, record, save_strategy="steps", save_steps=SAVE_EVERY)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{NUM_SAVED}") if resume else None)


TRAINERS: dict[str, Callable[..., Any]] = {
    "plain": train_plain,
    "timm": train_timm,
    "lightning": train_lightning,
    "accelerate": train_accelerate,
    "transformers": train_transformers,
}

NUM_BEFORE_KILL, NUM_SAVED = 5, 4
"""Batches that the model has been given when it is killed, in the second epoch; and those of them that are saved."""


def main(trainer: str, folder: Path) -> None:
    """Train until the process is killed, with what the model was given in ``folder/seen``, a line each."""
    number = 0

    def record(batch: Seen) -> None:
        nonlocal number
        number += 1
        with (folder / "seen").open("a") as file:
            file.write(f"{batch!r}\n")
        if number == NUM_BEFORE_KILL:
            os.kill(os.getpid(), signal.SIGKILL)

    TRAINERS[trainer](folder, record, resume=False)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
