"""How a trained model does: its accuracy, its cost and its activations at each image size."""

from __future__ import annotations

from respipe.evaluation.accuracy import Evaluation, evaluate
from respipe.evaluation.activations import Activations, measure_activations

__all__ = ["Activations", "Evaluation", "evaluate", "measure_activations"]
