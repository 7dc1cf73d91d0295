"""Hugging Face Trainer: batches as dicts, epochs of different lengths, resuming at the very next batch.

The lines to change::

    from respipe.integrations.transformers import LoaderTrainer

    train = respipe.Loader("train.beton", schedule, batch_size=256)  # of all processes
    val = respipe.Loader("val.beton", Constant(224), batch_size=256, training=False, pad_shares=True)
    trainer = LoaderTrainer(model=model, args=args, train_dataset=train, eval_dataset=val)
    trainer.train()
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from itertools import accumulate, count
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from respipe.integrations.accelerate import AccelerateLoader
from respipe.loading.loader import Loader
from respipe.model.positions import make_positions_adaptive

logger = logging.getLogger(__name__)

_POSITION = "respipe.Loader"
"""Where a checkpoint's ``trainer_state.json`` keeps the loader's state, among those of callbacks."""

_Trainer: Any = transformers.Trainer  # whose types know of no other data than datasets
if not hasattr(_Trainer, "_run_epoch"):  # without which every epoch would silently be as long as the first
    raise ImportError(
        f"respipe.integrations.transformers needs transformers 5.24 or newer; found {transformers.__version__}. "
        "Install it by pip install 'respipe[trainers]'."
    )


class LoaderTrainer(_Trainer):
    """A Trainer whose ``train_dataset`` and ``eval_dataset`` may be loaders.

    Epochs are the loader's, of whatever lengths, and a resumed run goes on with the very next batch, without reading
    those before. The loaders' ``batch_size`` decides, not ``per_device_train_batch_size``. Vision
    transformers take images of every size (:func:`respipe.model.positions.make_positions_adaptive`).

    Args:
        args, kwargs: as of ``transformers.Trainer``.

    Raises:
        ValueError: ranks cannot share a last evaluation batch equally, which the Trainer needs to gather results, and
            the loader was not built with ``pad_shares=True``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.train_dataset, Loader):
            self.add_callback(_Position(self.train_dataset))

    @property
    def _plain(self) -> Any:
        """This trainer, with the methods of its base."""
        return super()

    def get_train_dataloader(self) -> Any:
        if not isinstance(loader := self.train_dataset, Loader):
            return self._plain.get_train_dataloader()
        if (per_device := loader.sampler.batch_size) != self._train_batch_size:
            logger.info(
                "the loader's batch_size=%d is %d for each of %d processes; per_device_train_batch_size=%d is not used",
                loader.batch_size, per_device, loader.world_size, self._train_batch_size,
            )  # fmt: skip
            self._train_batch_size = per_device
        return self._dicts(loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        chosen = self.eval_dataset[chosen] if isinstance(chosen, str) else chosen
        return self._evaluated(chosen) if isinstance(chosen, Loader) else self._plain.get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        is_loader = isinstance(test_dataset, Loader)
        return self._evaluated(test_dataset) if is_loader else self._plain.get_test_dataloader(test_dataset)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        epochs, updates, *middle, max_steps = self._plain.set_initial_training_values(args, dataloader)
        if isinstance(self.train_dataset, Loader):
            if args.max_steps > 0:
                ends = accumulate(self._updates_in(epoch) for epoch in count())
                epochs = next(number for number, end in enumerate(ends, 1) if end >= max_steps)
            else:
                whole, share = divmod(args.num_train_epochs, 1)
                updates_in = [self._updates_in(epoch) for epoch in range(int(whole) + 1)]
                max_steps = sum(updates_in[:-1]) + math.ceil(share * updates_in[-1])
        return epochs, updates, *middle, max_steps

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:  # fmt: skip
        found = self._plain._init_training_state(  # noqa: SLF001
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if not isinstance(loader := self.train_dataset, Loader):
            return found
        if resume_from_checkpoint is None:
            loader.set_epoch(0)
        else:
            loader.load_state_dict(self.state.stateful_callbacks[_POSITION]["attributes"])
        return loader.epoch, 0  # batches to skip

    def _run_epoch(self, *, epoch: int, steps_in_epoch: int, num_update_steps_per_epoch: int, **rest: Any) -> None:
        if isinstance(loader := self.train_dataset, Loader):
            loader.set_epoch(epoch)
            steps_in_epoch = len(loader) - loader.step
            num_update_steps_per_epoch = self._updates(steps_in_epoch)
        self._plain._run_epoch(  # noqa: SLF001
            epoch=epoch, steps_in_epoch=steps_in_epoch, num_update_steps_per_epoch=num_update_steps_per_epoch, **rest
        )

    def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> Any:
        # In evaluation every rank's loss is the mean of its samples; the Trainer would divide by those of all ranks.
        return self._plain._get_num_items_in_batch(batch_samples, device) if self.model.training else None  # noqa: SLF001

    def _updates(self, num_steps: int) -> int:
        accumulation: int = self.args.gradient_accumulation_steps
        return -(-num_steps // accumulation)

    def _updates_in(self, epoch: int) -> int:
        return self._updates(self.train_dataset.num_steps(epoch))

    def _dicts(self, loader: Loader | AccelerateLoader) -> _DictLoader:
        make_positions_adaptive(self.model)
        return _DictLoader(loader)

    def _evaluated(self, loader: Loader) -> _DictLoader:
        # The Trainer weighs the loss of each batch by this.
        self.args.per_device_eval_batch_size = loader.sampler.batch_size
        return self._dicts(AccelerateLoader(loader))


class _Position(TrainerCallback):
    """Keeps the loader's position where checkpoints take it from, and tells how far training is."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._loader.last is not None, "a step has a batch"
        epoch, step = self._loader.last
        state.epoch = epoch + (step + 1) / self._loader.num_steps(epoch)
        state.stateful_callbacks[_POSITION] = {"args": {}, "attributes": self._loader.state_dict()}


class _DictLoader:
    """A loader whose batches are what models of transformers take: ``pixel_values``, ``labels``, and other fields."""

    def __init__(self, loader: Loader | AccelerateLoader) -> None:
        self._loader = loader
        uneven = [size for size in loader.batch_sizes if size % loader.world_size]
        if uneven and not loader.drop_last:
            raise ValueError(
                f"`eval_dataset` must have batches that {loader.world_size} ranks can share equally, since the Trainer "
                f"gathers results of equal shapes; got one of {uneven[-1]} images. Pass pad_shares=True to the Loader."
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for images, values, *rest in self._loader:
            fields: dict[str, Any] = {**values} if isinstance(values, dict) else {"label": values}
            labels, real = fields.pop("label", None), rest[0] if rest else None
            if isinstance(real, torch.Tensor) and labels is not None and not labels.is_floating_point():
                labels = labels.masked_fill(~real, -100)  # which losses leave out
            yield {"pixel_values": images, "labels": labels, **fields}
