"""What the training methods gain on real data: `python -m benchmarks.evidence`, then `benchmarks.evidence.report`."""
