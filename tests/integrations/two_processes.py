"""Run by ``torchrun`` in a test: trains in two processes, and leaves what this one's model was given."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch

from tests.integrations.runs import Seen, evaluation_loader, expected, make_loader
from tests.torchrun import torchrun


def in_two_processes(trainer: str, folder: Path) -> list[list[int]]:
    """Train in two processes: epoch, step and samples of each batch, of both together."""
    torchrun("tests.integrations.two_processes", trainer, folder)
    batches = list[list[int]]()
    for parts in zip(*(json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)), strict=True):
        assert parts[0][:3] == parts[1][:3], "ranks are at one step, with equal shares"
        batches.append([*parts[0][:2], *sorted(sample for part in parts for sample in part[3])])
    return batches


def expected_samples() -> list[list[int]]:
    """The same of a plain loop in one process."""
    return [[epoch, step, *sorted(samples)] for epoch, step, _, samples in expected()]


def lightning(seen: list[Seen], folder: Path) -> None:
    from tests.integrations.lightning_parts import Module, make_trainer

    trainer = make_trainer(strategy="ddp", devices=2)
    trainer.fit(Module(seen.append), make_loader(), evaluation_loader())
    trainer.strategy.teardown()


def accelerate(seen: list[Seen], folder: Path) -> None:
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    from tests.integrations.test_accelerate import evaluate, train

    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=3, dataloader_config=DataLoaderConfiguration(split_batches=True)
    )
    batches, synced, rates = train(accelerator)
    seen.extend(batches)
    assert synced == [False, True, *[False, False, True, True] * 2]
    assert len(set(rates)) == len(rates) == 5, "one step of the scheduler for each of the optimizer"
    assert sorted(evaluate(accelerator)) == list(range(36))
    assert evaluate(accelerator, indices=range(31), pad_shares=True) == list(range(31))


def transformers(seen: list[Seen], folder: Path) -> None:
    from tests.integrations.transformers_parts import make_trainer

    trainer = make_trainer(folder, seen.append)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    for number in (31, 26):  # the second rank's share of the last batch is short, or padding alone
        predicted = trainer.predict(evaluation_loader(indices=range(number), pad_shares=True))
        assert predicted.label_ids.tolist() == list(range(number))
        logits = torch.from_numpy(predicted.predictions)
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(number)).item()
        assert abs(predicted.metrics["test_loss"] - loss) < 1e-5


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    batches: list[Seen] = []
    globals()[sys.argv[1]](batches, Path(sys.argv[2]))
    rank = os.environ["RANK"]
    Path(sys.argv[2], f"{rank}.json").write_text(json.dumps(batches))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
