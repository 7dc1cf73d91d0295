"""Which samples each step sees, and how they are cropped: planned ahead of time, as NumPy arrays."""

from __future__ import annotations

from respipe.sampling.crops import CenterCrop, Crop, RandomCrop, ShiftedCenterCrop, WholeImage
from respipe.sampling.epoch import EpochPlan, plan_epoch, plan_evaluation
from respipe.sampling.plan import BatchPlan
from respipe.sampling.random_resized_crop import RandomResizedCrop

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
