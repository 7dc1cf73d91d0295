from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint

from respipe import Loader
from respipe.schedules import MixSize
from tests.integrations.lightning_parts import Module, make_trainer
from tests.integrations.runs import NUM_EPOCHS, evaluation_loader, expected, make_loader
from tests.integrations.two_processes import expected_samples, in_two_processes

pytestmark = [pytest.mark.filterwarnings("ignore")]  # Lightning's advice about tiny runs

MIXED = MixSize({16: 0.5, 32: 0.5}, base_size=32, weighting="progressive", num_epochs=4)


class Data(LightningDataModule):
    def train_dataloader(self) -> Loader:
        return make_loader()

    def val_dataloader(self) -> Loader:
        return evaluation_loader()


class Estimating(Module):
    """Builds its loader itself, and looks how long training will be, which builds it early."""

    def train_dataloader(self) -> Loader:
        return make_loader()

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches == 2 * NUM_EPOCHS
        return super().configure_optimizers()


@pytest.mark.parametrize("way", ["given to fit", "data module", "train_dataloader"])
def test_every_epoch_has_its_own_length(way: str) -> None:
    module = Estimating() if way == "train_dataloader" else Module()
    given = {"given to fit": {"train_dataloaders": make_loader()}, "data module": {"datamodule": Data()}}
    make_trainer().fit(module, **given.get(way, {}))
    assert [batch[:2] for batch in module.seen] == [(0, 0), (0, 1), *((e, s) for e in (1, 2) for s in range(4))]
    assert module.seen == expected()


def test_progressive_mixed_sizes_train_every_step() -> None:
    module = Module()
    make_trainer(max_epochs=4).fit(module, make_loader(MIXED))
    assert module.seen == expected(MIXED, num_epochs=4)
    assert [sum(batch[0] == epoch for batch in module.seen) for epoch in range(4)] == [2, 2, 9, 9]


@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 3}, {"max_steps": 9}], ids=str)
def test_fit_goes_on_with_the_very_next_batch_from_any_checkpoint(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = Module()
    saving = [
        ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(tmp_path, filename="end-{step}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True),
    ]
    make_trainer(enable_checkpointing=True, callbacks=saving, **options).fit(whole, make_loader())
    checkpoints = sorted(tmp_path.glob("*step=*.ckpt"))
    assert len(checkpoints) >= len(whole.seen)
    for path in checkpoints:
        module = Module()
        make_trainer(**options).fit(module, make_loader(), ckpt_path=path)
        assert module.seen == whole.seen[int(path.stem.split("=")[1]) :], path.stem


def test_a_loader_that_was_used_before_starts_at_the_first_epoch() -> None:
    loader, module = make_loader(), Module()
    make_trainer(max_epochs=2).fit(Module(), loader)
    make_trainer().fit(module, loader)
    assert module.seen == expected()


@pytest.mark.parametrize(("limit", "most"), [(3, (2, 3, 3)), (0.5, (1, 2, 2)), (1, (1, 1, 1))])
def test_limits_hold_in_each_epoch(limit: float, most: tuple[int, ...]) -> None:
    module = Module()
    make_trainer(limit_train_batches=limit).fit(module, make_loader())
    assert module.seen == [batch for batch in expected() if batch[1] < most[batch[0]]]


@pytest.mark.parametrize("way", ["given to fit", "data module"])
def test_overfitting_repeats_the_first_batches(way: str) -> None:
    module = Module()
    loaders: dict[str, Any] = {"train_dataloaders": make_loader(), "val_dataloaders": evaluation_loader()}
    given = loaders if way == "given to fit" else {"datamodule": Data()}
    make_trainer(overfit_batches=1).fit(module, **given)
    assert module.seen == expected()[:1] * NUM_EPOCHS
    assert module.validated == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({"val_check_interval": 0.5}, [1, 2, 4, 6, 8, 10]),
        ({"val_check_interval": 1.0}, [2, 6, 10]),
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, [3, 6, 9]),
    ],
    ids=str,
)
def test_validation_comes_at_its_share_of_each_epoch(options: dict[str, Any], after: list[int]) -> None:
    module = Module()
    make_trainer(**options).fit(module, make_loader(), evaluation_loader())
    assert (module.seen, module.validated) == (expected(), after)


def test_it_fits_the_trainer_by_its_older_name_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    pl = pytest.importorskip("pytorch_lightning")
    name = "respipe.integrations.lightning"
    monkeypatch.delitem(sys.modules, name)
    callback = importlib.import_module(name).ScheduledEpochs()
    assert isinstance(callback, pl.Callback)
    seen_lengths: list[int] = []

    class Older(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            seen_lengths.append(index)
            return self.weight.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[callback],
    ).fit(Older(), make_loader())  # fmt: skip
    assert seen_lengths == [0, 1, *range(4), *range(4)]


def test_two_processes_share_every_batch(tmp_path: Path) -> None:
    assert in_two_processes("lightning", tmp_path) == expected_samples()
