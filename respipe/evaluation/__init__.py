"""How a trained model does: its accuracy, its cost and its activations at each image size."""

from __future__ import annotations

from respipe.evaluation.accuracy import Evaluation, evaluate
from respipe.evaluation.activations import Activations, measure_activations
from respipe.evaluation.calibrated import evaluate_calibrated
from respipe.evaluation.predictions import Predictions

__all__ = ["Activations", "Evaluation", "Predictions", "evaluate", "evaluate_calibrated", "measure_activations"]
