"""How a trained model does: its accuracy, its cost and its activations at each image size."""

from __future__ import annotations

from respipe.evaluation.accuracy import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
