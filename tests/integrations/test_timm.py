"""timm's training loop, rebuilt from its parts, as its wheel has no ``train.py``. ``runs.train_timm`` is most of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("timm")

import torch
from timm.data import Mixup
from timm.utils import AverageMeter, accuracy

from respipe.integrations.timm import TimmLoader, create_loader
from respipe.schedules import Constant
from tests.integrations.runs import NUM_SAMPLES, Lengths, Seen, dataset, expected, make_network, train_timm

pytestmark = [pytest.mark.filterwarnings("ignore")]


def make(**options: Any) -> TimmLoader:
    return create_loader(dataset(), Lengths(), batch_size=4, backend="reference", num_threads=1, **options)


def test_its_loop_with_scheduler_average_and_mixup_sees_every_batch(tmp_path: Path) -> None:
    batches: list[Seen] = []
    train_timm(tmp_path, batches.append, resume=False)
    assert batches == expected()


def test_mixup_is_that_of_the_step_and_can_be_switched_off() -> None:
    def mixed() -> TimmLoader:
        return make(mixup_fn=Mixup(mixup_alpha=0.8, label_smoothing=0.0, num_classes=NUM_SAMPLES))

    loader, other = mixed(), mixed()
    state: dict[str, Any] = {}
    batches: list[Any] = []
    for batch in loader:
        state = state or loader.state_dict()
        batches.append(batch)
    other.load_state_dict(state)
    for one, again in zip(batches[1:], other, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, again, strict=True))
    assert any(targets.max() < 1 for _, targets in batches)
    assert loader.mixup_enabled
    loader.mixup_enabled = False
    assert not loader.mixup_enabled
    assert all((targets.max(1).values == 1).all() for _, targets in loader)


def test_without_timms_mixup_nothing_is_switched() -> None:
    loader = make()
    assert not loader.mixup_enabled
    with pytest.raises(AttributeError, match="without `mixup_fn`"):
        loader.mixup_enabled = False


def test_batch_size_of_each_process_becomes_that_of_all_which_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "respipe"):
        loader = make(rank=1, world_size=2)
    assert loader.batch_size == 8
    assert "batch_size=4 of each of 2 processes is 8 of the loader" in caplog.text
    with caplog.at_level(logging.INFO, "respipe"):
        caplog.clear()
        make()
    assert not caplog.text


def test_scheduled_sizes_scale_the_learning_rate_as_its_script_does() -> None:
    loader = make(rank=0, world_size=2)
    sampler = loader.batch_sampler
    assert (sampler.batch_sizes, sampler.average_batch_size, len(sampler)) == ((9, 9), 9, len(loader))


def test_its_validation_counts_every_image_once() -> None:
    loader = create_loader(dataset(), Constant(32), batch_size=10, training=False, backend="reference", num_threads=1)
    network, top1, rows = make_network().eval(), AverageMeter(), []
    length = len(loader)
    with torch.inference_mode():
        for images, labels in loader:
            output = network(images)
            top1.update(accuracy(output, labels)[0].item(), len(images))
            rows.append((output.argmax(1) == labels).float())
    assert (len(rows), top1.count) == (length, NUM_SAMPLES)
    assert top1.avg == pytest.approx(100 * torch.cat(rows).mean().item())
