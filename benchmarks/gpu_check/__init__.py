"""Everything that needs a GPU, in one call of at most eight minutes: `make gpu-check`."""

SKIPPED = 77  # the exit status of a part that cannot be run here; its last line says why
