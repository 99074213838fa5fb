"""Everything that needs a GPU, in one call of at most eight minutes: `make gpu-check`."""
