"""A learning rate that follows each step's batch, in every trainer; timm scales one rate for the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.runs import NUM_EPOCHS, RATES, cross_entropy, make_loader, make_network, scaled_rate

pytestmark = [pytest.mark.filterwarnings("ignore")]


def rate_of(optimizer: Any) -> float:
    return optimizer.param_groups[0]["lr"]


def test_in_a_loop_of_ones_own() -> None:
    network, loader = make_network(), make_loader()
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    scheduler, rates = scaled_rate(optimizer), []
    for _ in range(NUM_EPOCHS):
        for images, labels in loader:
            rates.append((rate_of(optimizer), len(images)))
            cross_entropy(network, images, labels).backward()
            optimizer.step()
            scheduler.step()
    assert [rate for rate, _ in rates] == pytest.approx(RATES)
    assert pytest.approx([0.01 * size / 18 for _, size in rates]) == RATES


def test_in_lightning() -> None:
    pytest.importorskip("lightning")
    from tests.integrations.lightning_parts import Module, make_trainer

    rates = list[float]()

    class Scaled(Module):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            rates.append(rate_of(self.trainer.optimizers[0]))
            return super().training_step(batch, index)

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": scaled_rate(optimizer), "interval": "step"}]

    make_trainer().fit(Scaled(), make_loader())
    assert rates == pytest.approx(RATES)


def test_in_accelerate() -> None:
    pytest.importorskip("accelerate")
    from accelerate import Accelerator

    from respipe.integrations.accelerate import AccelerateLoader

    accelerator, network = Accelerator(cpu=True), make_network()
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    network, optimizer, scheduler = accelerator.prepare(network, optimizer, scaled_rate(optimizer))
    loader, rates = AccelerateLoader(make_loader()), list[float]()
    for _ in range(NUM_EPOCHS):
        for images, labels in loader:
            rates.append(rate_of(optimizer))
            accelerator.backward(cross_entropy(network, images, labels))
            optimizer.step()
            scheduler.step()
    assert rates == pytest.approx(RATES)


def test_in_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.integrations.transformers_parts import make_trainer

    rates = list[float]()
    trainer = make_trainer(tmp_path, lambda batch: rates.append(rate_of(trainer.optimizer)))
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), 0.01)
    trainer.lr_scheduler = scaled_rate(trainer.optimizer)
    trainer.train()
    assert rates == pytest.approx(RATES)
