"""Training a network at the speed at which its batches come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import nn

import respipe
from respipe.loading.loader import Loader
from respipe.loading.placement import Placement
from respipe.schedules import RSNet
from respipe.schedules.parsing import schedule_from_expression
from respipe.schedules.step import Schedule

from .contender import Batch

_UNTIMED_STEPS = 3
_NUM_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class TrainingRate:
    """What was measured over some steps.

    Args:
        images_per_second: that the network was trained on.
        allocated_mib: most memory that torch's tensors had on the GPU meanwhile; 0 without one.
        used_mib: memory of the GPU in use afterwards, by whatever; 0 without one.
    """

    images_per_second: float
    allocated_mib: float
    used_mib: float


@dataclass(frozen=True, kw_only=True)
class EpochTime:
    """What epochs of a schedule took.

    Args:
        schedule: its expression.
        seconds: of a mean epoch.
        num_steps: of a mean epoch.
        relative_macs: multiply-adds of a mean epoch as a share of one at the base size, counted on the network.
    """

    schedule: str
    seconds: float
    num_steps: float
    relative_macs: float


def normalized(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """A contender's (B, 3, S, S) uint8 images as a network takes them: float32, channels_last, normalised."""
    images, labels = batch
    assert isinstance(images, torch.Tensor), "contenders are trained at one size"
    placement = Placement(device=images.device, dtype=torch.float32, normalize="imagenet")
    return placement.images(images.permute(0, 2, 3, 1).contiguous()), labels


class Trainer:
    """A network of torchvision, trained by SGD in bfloat16 autocast and channels_last.

    Args:
        name: of the network, such as "resnet50".
        device: where it is.
        schedule: to adapt it to; by default it is left as it is.
    """

    def __init__(self, name: str, device: str, schedule: Schedule | None = None) -> None:
        model = torchvision.models.get_model(name, num_classes=_NUM_CLASSES)
        self._device = torch.device(device)
        if schedule is not None:
            model = respipe.adapt(model, schedule)
        criterion = respipe.MRED(len(schedule.sizes)) if isinstance(schedule, RSNet) else _cross_entropy
        self.model = respipe.AllSizes(model, criterion)
        self.model.to(device=self._device, memory_format=torch.channels_last).train()
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step(self, images: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> None:
        """One step of the optimizer; several sizes of an image as RS-Net learns them."""
        self._optimizer.zero_grad()
        with torch.autocast(self._device.type, torch.bfloat16):
            loss = self.model(images, labels)
        loss.backward()
        self._optimizer.step()

    def run(
        self, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], num_batches: int, *, batches_ahead: int = 0
    ) -> TrainingRate:
        """Train on some batches, after a few that are not timed.

        Args:
            batches: images as :func:`normalized` returns them, and labels.
            num_batches: steps on the clock.
            batches_ahead: batches that may be ready before they are asked for. They are thrown away before the clock
                starts: a queue that was full at the start would feed the first steps whatever the loader's speed.
        """
        for _ in range(_UNTIMED_STEPS):
            self.step(*next(batches))
        self.synchronize()
        for _ in range(batches_ahead):
            next(batches)
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        self.synchronize()
        start, num_images = time.perf_counter(), 0
        for _ in range(num_batches):
            images, labels = next(batches)
            self.step(images, labels)
            num_images += len(labels)
        self.synchronize()
        seconds = time.perf_counter() - start
        free, total = torch.cuda.mem_get_info(self._device) if on_gpu else (0, 0)
        return TrainingRate(
            images_per_second=num_images / seconds,
            allocated_mib=torch.cuda.max_memory_allocated(self._device) / 2**20 if on_gpu else 0.0,
            used_mib=(total - free) / 2**20,
        )

    def synchronize(self) -> None:
        """Wait until the GPU has done all it was asked to."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def train_epochs(
    make_loader: Callable[..., Loader], expression: str, num_images: int, num_epochs: int, model: str, device: str
) -> EpochTime:
    """Train whole epochs of a schedule, after a step at each of its shapes.

    Args:
        make_loader: called with a schedule, the images of an epoch, and further arguments of the loader.
        expression: of the schedule, as ``respipe plan`` takes it.
        num_images: of an epoch.
        num_epochs: whose mean is taken.
        model, device: see :class:`Trainer`.
    """
    schedule = schedule_from_expression(expression)
    trainer = Trainer(model, device, schedule)
    with make_loader(schedule, num_images, dtype=torch.bfloat16) as loader:
        for images in loader.warmup_shapes():
            first = images[0] if isinstance(images, tuple) else images
            trainer.step(images, torch.zeros(len(first), dtype=torch.int64, device=first.device))
        trainer.synchronize()
        start = time.perf_counter()
        for epoch in range(num_epochs):
            loader.set_epoch(epoch)
            for images, labels in loader:
                trainer.step(images, labels)
        trainer.synchronize()
        seconds = time.perf_counter() - start
        network = torchvision.models.get_model(model, num_classes=_NUM_CLASSES)
        relative = respipe.cost.relative_epoch_macs(
            schedule,
            respipe.cost.counted(network),
            num_epochs=num_epochs,
            num_samples=num_images,
            batch_size=loader.batch_size,
        )
        num_steps = loader.total_steps(num_epochs) / num_epochs
    return EpochTime(schedule=expression, seconds=seconds / num_epochs, num_steps=num_steps, relative_macs=relative)


def _cross_entropy(outputs: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    (logits,) = outputs
    return nn.functional.cross_entropy(logits, labels)
