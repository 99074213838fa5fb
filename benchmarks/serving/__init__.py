"""Widefield's ensemble against other servers of the same weights: `python -m benchmarks.serving`."""
