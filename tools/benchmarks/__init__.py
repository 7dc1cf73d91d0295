"""Benchmarks: the loaders under test, the processes they run in, fidelity and reports."""
