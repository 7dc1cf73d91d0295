"""timm: what its ``train.py`` asks of a loader beyond batches.

The lines to change::

    from respipe.integrations.timm import create_loader

    size = args.batch_size  # of each process, as timm means it
    loader_train = create_loader("train.beton", schedule, batch_size=size, device=device)
    loader_eval = create_loader("val.beton", Constant(224), batch_size=size, device=device, training=False)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from respipe.loading.loader import Loader
from respipe.processes import rank_and_world_size
from respipe.schedules.step import Schedule

logger = logging.getLogger(__name__)


def create_loader(
    data: Any, schedule: Schedule, *, batch_size: int, mixup_fn: Any = None, **options: Any
) -> TimmLoader:
    """Make a loader in the place of timm's ``create_loader``.

    Args:
        data: as of :class:`respipe.Loader`.
        schedule: decision about the size of each step.
        batch_size: samples of each process, as ``--batch-size`` means them; the loader's is that times the processes.
        mixup_fn: timm's ``Mixup`` or None. Its random numbers are those of the loader's seed, epoch and step; timm
            switches it off by ``loader.mixup_enabled``. ``Loader(mixup=, cutmix=)`` needs none.
        options: others of :class:`respipe.Loader`.
    """
    world_size = rank_and_world_size(options.get("rank"), options.get("world_size"))[1]
    if world_size > 1:
        logger.info(
            "batch_size=%d of each of %d processes is %d of the loader", batch_size, world_size, batch_size * world_size
        )
    if mixup_fn is not None:
        options["batch_transform"] = mixup_fn
    return TimmLoader(Loader(data, schedule, batch_size=batch_size * world_size, **options), mixup_fn)


class TimmLoader:
    """A loader with the switch that timm's ``--mixup-off-epoch`` turns. It has all that the loader has.

    Args:
        loader: loader of this process.
        mixup_fn: its ``batch_transform`` where that is timm's ``Mixup``, else None.
    """

    def __init__(self, loader: Loader, mixup_fn: Any = None) -> None:
        self.loader, self._mixup_fn = loader, mixup_fn

    @property
    def mixup_enabled(self) -> bool:
        """Whether timm's Mixup mixes. False without one: mixing that is planned ends by ``Mixing(off_epoch=)``."""
        return self._mixup_fn is not None and self._mixup_fn.mixup_enabled

    @mixup_enabled.setter
    def mixup_enabled(self, value: bool) -> None:
        if self._mixup_fn is None:
            raise AttributeError("`mixup_enabled` has nothing to switch: the loader was made without `mixup_fn`.")
        self._mixup_fn.mixup_enabled = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)
