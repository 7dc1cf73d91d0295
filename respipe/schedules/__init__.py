"""When each image size is used: every schedule decides the steps of a run ahead of time, as plain data."""

from __future__ import annotations

from respipe.schedules.constant import Constant
from respipe.schedules.lowmode import LowMode
from respipe.schedules.mixsize import MixSize
from respipe.schedules.multicrop import MultiCrop
from respipe.schedules.progressive import Progressive
from respipe.schedules.rsnet import RSNet
from respipe.schedules.sequence import mean_batch_size
from respipe.schedules.step import Schedule, Step, View
from respipe.schedules.trd import TRD

__all__ = [
    "TRD", "Constant", "LowMode", "MixSize", "MultiCrop", "Progressive", "RSNet", "Schedule", "Step", "View",
    "mean_batch_size",
]  # fmt: skip
