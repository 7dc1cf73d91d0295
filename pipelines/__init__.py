"""Jobs to run from a checkout: ``python -m pipelines.train`` and ``python -m pipelines.demo``."""
