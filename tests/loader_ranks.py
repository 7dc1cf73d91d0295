"""Run by ``torchrun`` in a test: loads its share of every batch, and leaves what all ranks together loaded.

Every batch is followed by a collective, as a training step is: a rank with a batch more than another would wait for it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed

from respipe.loading.loader import Loader
from respipe.schedules import Constant
from tests.loaders import InTurn, make
from tests.memory_dataset import MemoryDataset
from tests.torchrun import one_of_the_ranks

NUM_EPOCHS = len(InTurn.schedules)
SHAPES = [(40 + 3 * i % 17, 60 - 5 * i % 23) for i in range(21)]


def training_loader() -> Loader:
    return make(MemoryDataset(SHAPES), InTurn(), num_threads=1)


def evaluation_loader() -> Loader:
    """Three batches of 10, 10 and 1 samples, which no number of ranks but one shares equally."""
    return make(MemoryDataset(SHAPES), Constant(16), batch_size=10, training=False, num_threads=1)


def share(batch: tuple[Any, ...]) -> dict[str, Any]:
    """This rank's part of a batch: epoch, step and sizes, and one entry per image."""
    images, labels, plan = batch
    tensors = images if isinstance(images, tuple) else (images,)
    rows = zip(plan.indices.tolist(), labels.tolist(), *tensors, strict=True)
    images_of = [
        [index, label, *(hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16] for image in pixels)]
        for index, label, *pixels in rows
    ]
    return {"place": [plan.epoch, plan.number, list(plan.step.sizes), plan.step.mode], "images": images_of}


def whole(batch: tuple[Any, ...], world_size: int) -> dict[str, Any]:
    """The parts of all ranks together."""
    parts: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(parts, share(batch))
    assert all(part["place"] == parts[0]["place"] for part in parts), parts
    return {"place": parts[0]["place"], "images": [image for part in parts for image in part["images"]]}


def main(target: Path, state: str, num_batches: str) -> None:
    """Go on from a state, "null" for none, for so many batches of training; then run through the evaluation data."""
    with one_of_the_ranks() as process, training_loader() as loader, evaluation_loader() as evaluation:
        if (saved := json.loads(state)) is not None:
            loader.load_state_dict(saved)
        batches: list[dict[str, Any]] = []
        for epoch in range(loader.epoch, NUM_EPOCHS):
            loader.set_epoch(epoch)
            for batch in loader:
                batches.append(whole(batch, process.world_size))
                if len(batches) == int(num_batches):
                    break
            if len(batches) == int(num_batches):
                break
        states: list[Any] = [None] * process.world_size
        torch.distributed.all_gather_object(states, loader.state_dict())
        evaluated = [whole(batch, process.world_size) for batch in evaluation]
        if process.is_main:
            target.write_text(json.dumps({"batches": batches, "states": states, "evaluated": evaluated}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
