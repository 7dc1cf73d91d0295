"""Pictures of schedules, batches, training runs, models and benchmarks. They need the ``plots`` extra, on first use."""

from __future__ import annotations

from respipe.plots.batch import plot_batch as plot_batch
from respipe.plots.crop import plot_crop as plot_crop
from respipe.plots.evaluation import plot_accuracy as plot_accuracy
from respipe.plots.evaluation import plot_activations as plot_activations
from respipe.plots.evaluation import plot_evaluation as plot_evaluation
from respipe.plots.runs import plot_runs as plot_runs
from respipe.plots.schedule import plot_schedule as plot_schedule
from respipe.plots.throughput import plot_throughput as plot_throughput
