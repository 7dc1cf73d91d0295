"""Which samples each step sees, and how they are cropped: planned ahead of time, as NumPy arrays."""

from __future__ import annotations

from respipe.planning.batch import BatchPlan
from respipe.planning.crops import CenterCrop, Crop, RandomCrop, ResizedCenterCrop, ShiftedCenterCrop, WholeImage
from respipe.planning.epoch import EpochPlan, plan_epoch
from respipe.planning.order import class_balanced
from respipe.planning.policy import Blocks, SamplingPolicy
from respipe.planning.random_resized_crop import RandomResizedCrop

__all__ = [
    "BatchPlan",
    "Blocks",
    "CenterCrop",
    "Crop",
    "EpochPlan",
    "RandomCrop",
    "RandomResizedCrop",
    "ResizedCenterCrop",
    "SamplingPolicy",
    "ShiftedCenterCrop",
    "WholeImage",
    "class_balanced",
    "plan_epoch",
]
