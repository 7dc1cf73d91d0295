from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")

import torch
from accelerate import Accelerator

from respipe.integrations.accelerate import AccelerateLoader
from tests.integrations.runs import (
    NUM_EPOCHS,
    NUM_SAMPLES,
    Seen,
    cross_entropy,
    evaluation_loader,
    expected,
    make_loader,
    make_network,
    seen,
)
from tests.integrations.two_processes import expected_samples, in_two_processes

pytestmark = [pytest.mark.filterwarnings("ignore")]

UPDATES = 5
"""Of three batches each, or fewer at the end of an epoch of two or four."""


def train(
    accelerator: Accelerator, *, save_after: int | None = None, resume: Path | None = None, folder: Path | None = None
) -> tuple[list[Seen], list[bool], list[float]]:
    """Train with accumulation: what was seen, whether gradients were synced there, and each update's learning rate."""
    loader = AccelerateLoader(make_loader())
    network = make_network()
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=UPDATES)
    network, optimizer, scheduler = accelerator.prepare(network, optimizer, scheduler)
    accelerator.register_for_checkpointing(loader)
    if resume:
        accelerator.load_state(str(resume))
    batches, synced, rates = list[Seen](), list[bool](), list[float]()
    for _ in range(loader.epoch, NUM_EPOCHS):
        for images, labels in loader:
            batches.append(seen(loader, images, labels))
            with accelerator.accumulate(network):
                accelerator.backward(cross_entropy(network, images, labels))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            synced.append(accelerator.sync_gradients)
            if accelerator.sync_gradients:
                rates.append(scheduler.get_last_lr()[0])
            if len(batches) == save_after:
                accelerator.save_state(str(folder))
                return batches, synced, rates
    return batches, synced, rates


def evaluate(accelerator: Accelerator, **options: Any) -> list[int]:
    """Labels of the evaluation data, gathered from all processes."""
    found = list[int]()
    for _, labels, *_ in AccelerateLoader(evaluation_loader(**options)):
        gathered: Any = accelerator.gather_for_metrics(labels)
        found.extend(gathered.tolist())
    return found


def test_accumulation_ends_with_each_epoch() -> None:
    batches, synced, rates = train(Accelerator(cpu=True, gradient_accumulation_steps=3))
    assert batches == expected()
    assert synced == [False, True, *[False, False, True, True] * 2]
    assert rates == pytest.approx([0.01 * (1 - 0.9 * done / UPDATES) for done in range(1, UPDATES + 1)])


@pytest.mark.parametrize("steps", [2, 5])
def test_a_loaded_state_goes_on_with_the_very_next_batch(tmp_path: Path, steps: int) -> None:
    whole = train(Accelerator(cpu=True, gradient_accumulation_steps=3))
    before = train(Accelerator(cpu=True, gradient_accumulation_steps=3), save_after=steps, folder=tmp_path)
    after = train(Accelerator(cpu=True, gradient_accumulation_steps=3), resume=tmp_path)
    assert [first + second for first, second in zip(before, after, strict=True)] == list(whole)


def test_an_iteration_left_early_is_forgotten() -> None:
    accelerator, loader = Accelerator(cpu=True), AccelerateLoader(make_loader())
    for _ in loader:
        assert accelerator.gradient_state.in_dataloader
        break
    assert not accelerator.gradient_state.in_dataloader


def test_evaluation_within_training_is_told_apart() -> None:
    accelerator = Accelerator(cpu=True)
    loader = AccelerateLoader(make_loader())
    ends = list[bool]()
    for _ in loader:
        assert sorted(evaluate(accelerator)) == list(range(NUM_SAMPLES))
        ends.append(accelerator.gradient_state.end_of_dataloader)
    assert ends == [False, True]


def test_two_processes_share_every_batch(tmp_path: Path) -> None:
    assert in_two_processes("accelerate", tmp_path) == expected_samples()
