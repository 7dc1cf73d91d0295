"""Parts of ``bench_loaders.py``: the loaders under test, the processes they run in, fidelity and reports."""
