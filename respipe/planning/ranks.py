"""This process's place among the processes that share every batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed

from respipe.schedules.step import Step


def rank_and_world_size(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """The values given, else those of ``torch.distributed`` where it is initialised, else 0 of 1.

    Raises:
        ValueError: only one is given, or the rank lies outside the world.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"`rank` and `world_size` must be given together; got {rank} and {world_size}.")
    if rank is None or world_size is None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return 0, 1
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` must be in 0..world_size - 1; got rank {rank} of {world_size}.")
    return rank, world_size


def check_base_batch(batch_size: int, world_size: int) -> None:
    """Raise ``ValueError`` unless the ranks can share the base batch equally."""
    if batch_size % world_size:
        lower = batch_size // world_size * world_size
        raise ValueError(
            f"`batch_size` must be a multiple of the number of ranks ({world_size}); got {batch_size}. "
            f"Try {lower or world_size} or {lower + world_size}."
        )


def check_steps(steps: Iterable[Step], world_size: int) -> None:
    """Raise ``ValueError`` unless the ranks can share the batch of every step equally."""
    for step in steps:
        if step.batch_size % world_size:
            raise ValueError(
                f"`schedule` must plan batches that {world_size} ranks can share equally; got {step.batch_size} "
                f"samples at {' and '.join(map(str, step.sizes))} px. Plan multiples of {world_size} samples; MixSize "
                f"does with batch_multiple={world_size}."
            )
