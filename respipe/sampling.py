"""Which samples each step sees, and how they are cropped: planned ahead of time, as NumPy arrays."""

from __future__ import annotations

from respipe.planning.batch import BatchPlan
from respipe.planning.crops import CenterCrop, Crop, RandomCrop, ShiftedCenterCrop, WholeImage
from respipe.planning.epoch import EpochPlan, plan_epoch, plan_evaluation
from respipe.planning.random_resized_crop import RandomResizedCrop

__all__ = [
    "BatchPlan",
    "CenterCrop",
    "Crop",
    "EpochPlan",
    "RandomCrop",
    "RandomResizedCrop",
    "ShiftedCenterCrop",
    "WholeImage",
    "plan_epoch",
    "plan_evaluation",
]
