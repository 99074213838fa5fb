"""Microbenchmarks and comparisons: every speed is a ratio against a named baseline in one run."""
