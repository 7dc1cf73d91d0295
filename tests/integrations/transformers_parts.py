from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

from respipe import Loader
from respipe.integrations.transformers import LoaderTrainer
from tests.integrations.runs import NUM_EPOCHS, NUM_SAMPLES, Record, evaluation_loader, make_loader, seen


class RecordingTrainer(LoaderTrainer):
    record: Record

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        if model.training:
            self.record(seen(self.train_dataset, inputs["pixel_values"], inputs["labels"]))
        return super().compute_loss(model, inputs, *rest, **options)


def make_trainer(folder: Path, record: Record, *, loader: Loader | None = None, **options: Any) -> RecordingTrainer:
    """A trainer of a tiny Vision Transformer for 32 px, which the loader gives 16 px as well."""
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        num_labels=NUM_SAMPLES,
    )  # fmt: skip
    settings = {"num_train_epochs": NUM_EPOCHS, "save_strategy": "no"} | options
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to=[], disable_tqdm=True, **settings)
    trainer = RecordingTrainer(
        model=ViTForImageClassification(config), args=arguments, train_dataset=loader or make_loader(),
        eval_dataset=evaluation_loader(),
    )  # fmt: skip
    trainer.record = record
    return trainer
