"""Augmentation of each image on its own, planned ahead: ``Loader(augment=(RandAugment(), RandomErasing(0.25)))``.

What is drawn depends on the seed, the epoch, the sample and its copy alone, so it is the same on any rank, thread and
backend, and resumes exactly.
"""

from __future__ import annotations

from respipe.augment.policies import (
    AugMix,
    AutoAugment,
    ColorJitter,
    Cutout,
    GaussianBlur,
    Posterize,
    RandAugment,
    RandomApply,
    RandomChoice,
    RandomErasing,
    RandomGrayscale,
    RandomOrder,
    Solarize,
    ThreeAugment,
    TrivialAugmentWide,
)
from respipe.planning.mixing import Mixing

__all__ = [
    "AugMix",
    "AutoAugment",
    "ColorJitter",
    "Cutout",
    "GaussianBlur",
    "Mixing",
    "Posterize",
    "RandAugment",
    "RandomApply",
    "RandomChoice",
    "RandomErasing",
    "RandomGrayscale",
    "RandomOrder",
    "Solarize",
    "ThreeAugment",
    "TrivialAugmentWide",
]
