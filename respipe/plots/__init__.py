"""Pictures of schedules, batches, training runs, models and benchmarks. They need the ``plots`` extra, on first use."""

from __future__ import annotations

from respipe.plots.batch import plot_batch
from respipe.plots.crop import plot_crop
from respipe.plots.evaluation import plot_accuracy, plot_activations, plot_evaluation
from respipe.plots.runs import plot_runs
from respipe.plots.schedule import plot_schedule
from respipe.plots.throughput import plot_throughput

__all__ = [
    "plot_accuracy",
    "plot_activations",
    "plot_batch",
    "plot_crop",
    "plot_evaluation",
    "plot_runs",
    "plot_schedule",
    "plot_throughput",
]
