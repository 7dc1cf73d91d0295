from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from respipe.errors import StateMismatchError
from respipe.schedules import MixSize
from tests.integrations.runs import NUM_EPOCHS, Seen, evaluation_loader, expected, make_loader
from tests.integrations.transformers_parts import make_trainer
from tests.integrations.two_processes import expected_samples, in_two_processes

pytestmark = [pytest.mark.filterwarnings("ignore")]


def test_a_vision_transformer_trains_every_step_of_every_epoch_and_is_evaluated_after_each(tmp_path: Path) -> None:
    batches: list[Seen] = []
    trainer = make_trainer(tmp_path, batches.append, eval_strategy="epoch", logging_strategy="epoch")
    trainer.train()
    assert batches == expected()
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [(entry["step"], entry["epoch"]) for entry in evaluated] == [(2, 1.0), (6, 2.0), (10, 3.0)]


def test_progressive_mixed_sizes_train_every_step(tmp_path: Path) -> None:
    schedule = MixSize({16: 0.5, 32: 0.5}, base_size=32, weighting="progressive", num_epochs=4)
    batches: list[Seen] = []
    make_trainer(tmp_path, batches.append, loader=make_loader(schedule), num_train_epochs=4).train()
    assert batches == expected(schedule, num_epochs=4)


@pytest.mark.parametrize(
    ("options", "num_batches", "num_updates"),
    [
        ({"max_steps": 5}, 5, 5),
        ({"num_train_epochs": 1.5}, 4, 4),
        ({"gradient_accumulation_steps": 3}, 10, 5),
        ({"gradient_accumulation_steps": 3, "max_steps": 4}, 9, 4),
    ],
    ids=str,
)
def test_training_ends_where_it_was_told_to(
    tmp_path: Path, options: dict[str, Any], num_batches: int, num_updates: int
) -> None:
    batches: list[Seen] = []
    trainer = make_trainer(tmp_path, batches.append, **options)
    trainer.train()
    assert [batch[2:] for batch in batches] == [batch[2:] for batch in expected()[:num_batches]]
    assert (trainer.state.global_step, trainer.state.max_steps) == (num_updates, num_updates)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_resuming_goes_on_with_the_very_next_batch_from_any_checkpoint(tmp_path: Path, accumulation: int) -> None:
    whole: list[Seen] = []
    options = {"gradient_accumulation_steps": accumulation}
    first = make_trainer(tmp_path, whole.append, save_strategy="steps", save_steps=1, **options)
    first.train()
    consumed = {1: range(1, 11), 3: (2, 5, 6, 9, 10)}[accumulation]
    for update, done in list(enumerate(consumed, 1))[:-1]:
        batches: list[Seen] = []
        trainer = make_trainer(tmp_path, batches.append, **options)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{update}"))
        assert [batch[2:] for batch in batches] == [batch[2:] for batch in whole[done:]], update
        assert (trainer.state.global_step, trainer.state.epoch) == (first.state.global_step, NUM_EPOCHS)


def test_the_checkpoint_of_another_seed_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, lambda batch: None, save_strategy="steps", save_steps=3, max_steps=3).train()
    trainer = make_trainer(tmp_path, lambda batch: None, loader=make_loader(seed=1))
    with pytest.raises(StateMismatchError, match="seed"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_batch_size_is_the_loaders_which_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "respipe"):
        trainer = make_trainer(tmp_path, lambda batch: None, max_steps=1, per_device_train_batch_size=16)
        trainer.train()
    assert caplog.text.count("per_device_train_batch_size=16 is not used") == 1
    assert trainer.state.train_batch_size == 4


def test_data_that_is_no_loader_is_left_to_the_trainer(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, lambda batch: None)
    trainer.train_dataset = trainer.eval_dataset = [{"pixel_values": [0.0], "labels": 0}] * 16
    assert len(trainer.get_train_dataloader()) == len(trainer.get_eval_dataloader()) == 2


def test_evaluation_that_ranks_cannot_share_equally_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, lambda batch: None)
    trainer.eval_dataset = evaluation_loader(indices=range(31), rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"2 ranks can share equally.*got one of 7 images. Pass pad_shares=True"):
        trainer.get_eval_dataloader()


def test_the_loss_of_a_short_last_batch_counts_by_its_samples(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, lambda batch: None)
    losses = [
        trainer.evaluate(evaluation_loader(indices=range(31), pad_shares=pad))["eval_loss"] for pad in (False, True)
    ]
    images, labels = next(iter(evaluation_loader(indices=range(31), batch_size=31)))
    loss = trainer.model(pixel_values=images, labels=labels).loss.item()
    assert losses == pytest.approx([loss, loss])


def test_fields_beside_the_label_are_passed_on(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, lambda batch: None, loader=make_loader(fields=("label",)))
    assert set(next(iter(trainer.get_train_dataloader()))) == {"pixel_values", "labels"}


def test_two_processes_share_every_batch(tmp_path: Path) -> None:
    assert in_two_processes("transformers", tmp_path) == expected_samples()
