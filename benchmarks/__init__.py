"""Benchmarks: what takes longer than a test may, with results in ``benchmarks/results/``."""
