"""respipe puts resolution scheduling into the data loader.

A schedule decides every training step's image size; the loader decodes no more than that size needs; a small adapter
makes the model follow the size of its input::

    schedule = respipe.schedules.TRD(224, 112, 0.5, milestones=(75, 150, 225))
    loader = respipe.Loader("train.beton", schedule, batch_size=256, device="cuda")
    model = respipe.adapt(torchvision.models.resnet50(), schedule)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from respipe import augment as augment
    from respipe import cost as cost
    from respipe import sampling as sampling
    from respipe import schedules as schedules
    from respipe import testing as testing
    from respipe.conversion import convert as convert
    from respipe.conversion import export as export
    from respipe.conversion import inspect as inspect
    from respipe.conversion import verify as verify
    from respipe.evaluation import evaluate as evaluate
    from respipe.loading.loader import Loader as Loader
    from respipe.model.adapt import adapt as adapt
    from respipe.model.adapt import extract as extract
    from respipe.model.calibration import calibrate_batchnorm as calibrate_batchnorm
    from respipe.model.finetune import prepare_finetune as prepare_finetune
    from respipe.storage.open import open_dataset as open_dataset
    from respipe.training.batches import ColorJitter as ColorJitter
    from respipe.training.batches import average_duplicates as average_duplicates
    from respipe.training.batches import flip_each_size as flip_each_size
    from respipe.training.gradients import GradientSmoothing as GradientSmoothing
    from respipe.training.objective import MRED as MRED
    from respipe.training.objective import AllSizes as AllSizes

__version__ = "0.1.0"

# Where each public name lives; imported on first use, so that `respipe --help` does not wait for torch.
_HOMES = {
    "AllSizes": "respipe.training.objective",
    "ColorJitter": "respipe.training.batches",
    "GradientSmoothing": "respipe.training.gradients",
    "Loader": "respipe.loading.loader",
    "MRED": "respipe.training.objective",
    "adapt": "respipe.model.adapt",
    "augment": "respipe.augment",
    "average_duplicates": "respipe.training.batches",
    "calibrate_batchnorm": "respipe.model.calibration",
    "convert": "respipe.conversion",
    "cost": "respipe.cost",
    "evaluate": "respipe.evaluation",
    "export": "respipe.conversion",
    "extract": "respipe.model.adapt",
    "flip_each_size": "respipe.training.batches",
    "inspect": "respipe.conversion",
    "open_dataset": "respipe.storage.open",
    "prepare_finetune": "respipe.model.finetune",
    "sampling": "respipe.sampling",
    "schedules": "respipe.schedules",
    "testing": "respipe.testing",
    "verify": "respipe.conversion",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'respipe' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    value = home if _HOMES[name].endswith(f".{name}") and not hasattr(home, name) else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(["__version__", *_HOMES])
